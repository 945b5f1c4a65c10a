package node

import (
	"os"
	"path/filepath"
	"testing"
)

// TestLinkFollowsLinks holds that a second name for a relative symbolic link, as the
// cache of Hugging Face has them, leads to the file.
func TestLinkFollowsLinks(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "blob"), []byte("weights"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("blob", filepath.Join(dir, "name")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "deep"), 0o700); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "deep", "file")
	if err := link(filepath.Join(dir, "name"), to); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(to); err != nil || string(b) != "weights" {
		t.Errorf("it reads %q, %v", b, err)
	}
}

// TestSweepOddHome holds that the name of a home folder is no pattern.
func TestSweepOddHome(t *testing.T) {
	parent := t.TempDir()
	other := filepath.Join(parent, "home-1", "packed", ".half.1")
	own := filepath.Join(parent, "home-*", "packed", ".half.1")
	for _, f := range []string{other, own} {
		if err := os.MkdirAll(filepath.Dir(f), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h := &Home{Dir: filepath.Join(parent, "home-*")}
	if err := h.sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Errorf("another home lost a file: %v", err)
	}
	if _, err := os.Stat(own); err == nil {
		t.Error("what was half written is still there")
	}
}
