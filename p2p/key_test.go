package p2p

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestLoadOrCreateKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "home", "node.key")
	key, err := LoadOrCreateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	again, err := LoadOrCreateKey(path)
	if err != nil || !again.Equal(key) {
		t.Errorf("read back: another key, or %v", err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("%d files in the folder, want one", len(left))
	}
}

func TestLoadKeyRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.key")
	if _, err := LoadOrCreateKey(path); err != nil {
		t.Fatal(err)
	}
	good, _ := os.ReadFile(path)
	rsa := "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VuBCIEIHcHbQpzGKV9PBbBclGyZkXfTC+H68CZKrF3+6UduSwq\n-----END PRIVATE KEY-----\n"
	tests := []struct {
		name, content string
		mode          os.FileMode
		want          string
	}{
		{"readable by others", string(good), 0o644, "chmod 600"},
		{"empty", "", 0o600, "damaged"},
		{"half", string(good[:len(good)/2]), 0o600, "damaged"},
		{"two", string(good) + string(good), 0o600, "damaged"},
		{"another kind", rsa, 0o600, "want an ed25519 key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			os.WriteFile(path, []byte(tt.content), 0o600)
			os.Chmod(path, tt.mode)
			if _, err := LoadOrCreateKey(path); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want an error about %q", err, tt.want)
			}
			if now, _ := os.ReadFile(path); string(now) != tt.content {
				t.Error("the file was changed")
			}
		})
	}
}

func TestCreateKeyRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.key")
	var all sync.WaitGroup
	keys := make([]string, 8)
	for i := range keys {
		all.Go(func() {
			key, err := LoadOrCreateKey(path)
			if err != nil {
				t.Error(err)
			}
			keys[i] = string(key)
		})
	}
	all.Wait()
	for _, k := range keys {
		if k != keys[0] {
			t.Error("two callers got different keys")
		}
	}
}
