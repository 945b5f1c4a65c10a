package keyfile

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"filippo.io/age/armor"
)

func TestLoadOrCreateKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "home", "node.key")
	key, err := LoadOrCreate(path, "")
	if err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	again, err := LoadOrCreate(path, "")
	if err != nil || !again.Equal(key) {
		t.Errorf("read back: another key, or %v", err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("%d files in the folder, want one", len(left))
	}
}

func TestLoadKeyRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.key")
	if _, err := LoadOrCreate(path, ""); err != nil {
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
			if _, err := LoadOrCreate(path, ""); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want an error about %q", err, tt.want)
			}
			if now, _ := os.ReadFile(path); string(now) != tt.content {
				t.Error("the file was changed")
			}
		})
	}
}

func TestPassphrase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.key")
	key, err := Create(path, "correct horse")
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := os.ReadFile(path)
	if bytes.Contains(raw, []byte(pemType)) || bytes.Contains(raw, key.Seed()) {
		t.Error("the file shows what it should hide")
	}
	if again, err := Load(path, "correct horse"); err != nil || !again.Equal(key) {
		t.Errorf("read back: another key, or %v", err)
	}
	if _, err := Load(path, ""); !errors.Is(err, ErrPassphrase) {
		t.Errorf("without passphrase: %v", err)
	}
	if _, err := Load(path, "wrong"); err == nil || !strings.Contains(err.Error(), "passphrase is not") {
		t.Errorf("with a wrong passphrase: %v", err)
	}
	err = Write(path, key, "")
	if !errors.Is(err, fs.ErrExist) {
		t.Fatalf("a key was overwritten: %v", err)
	}
	if text := err.Error(); strings.Count(text, filepath.Base(path)) != 1 || !strings.Contains(text, "move it away") {
		t.Errorf("no word of what to do: %v", err)
	}
}

// FuzzDecode reads the bytes of a key file.
func FuzzDecode(f *testing.F) {
	path := filepath.Join(f.TempDir(), "key")
	if _, err := Create(path, ""); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:40])
	f.Add([]byte(armor.Header + "\nYWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IHNjcnlwdA==\n" + armor.Footer))
	f.Fuzz(func(t *testing.T, b []byte) {
		if key, err := decode(b, ""); err == nil && len(key) != ed25519.PrivateKeySize {
			t.Errorf("a key of %d bytes", len(key))
		}
	})
}

func TestCreateKeyRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.key")
	var all sync.WaitGroup
	keys := make([]string, 8)
	for i := range keys {
		all.Go(func() {
			key, err := LoadOrCreate(path, "")
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
