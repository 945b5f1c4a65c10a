package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestDevPaid: mesh dev says ready when answers are paid, from the first one on, and after
// a stop too.
func TestDevPaid(t *testing.T) {
	home := filepath.Join(t.TempDir(), "net")
	for _, start := range []string{"new", "again"} {
		d := startDev(t, home, "--hosts", "2", "--block", "500ms")
		light, _ := d.clients()
		code, _, stderr := meshCommand(t, "chat", "What is Mesh?", "--max-tokens", "2", "--api", d.ready.API)
		got, err := light.Receipts(t.Context(), 1)
		if code != exitDone || err != nil || len(got) != 1 || got[0].Price == 0 || got[0].Escrow.IsZero() {
			t.Errorf("the first answer of a network that is %s: exit code %d, %+v, %v: %s", start, code, got, err, stderr)
		}
		if code, stdout, _ := meshCommand(t, "receipt", "ls", "--api", d.ready.API); code != exitDone || strings.Contains(stdout, free) {
			t.Errorf("the first answer of a network that is %s is free:\n%s", start, stdout)
		}
		d.stop()
	}
}

// TestReached: a host that has ended is not waited for; one that does not answer is.
func TestReached(t *testing.T) {
	gone, mute := make(chan struct{}), make(chan struct{})
	close(gone)
	d := &devNet{hosts: []*child{{ended: gone}}}
	if !d.reached(t.Context(), 1) {
		t.Error("a host that has ended is waited for")
	}
	d.hosts = append(d.hosts, &child{ended: mute})
	if d.reached(t.Context(), 1) {
		t.Error("a host that does not answer has a block")
	}
}
