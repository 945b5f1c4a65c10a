package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestHomeFindsNode gives commands the home of a node alone: they ask the node that
// runs there, and say so when none does.
func TestHomeFindsNode(t *testing.T) {
	n := newNetwork(t, 1, "")
	home, peer := n.hosts[0].Ready.Home, n.hosts[0].Ready.Peer.String()
	for _, args := range [][]string{{"status"}, {"doctor"}, {"chat", "hello", "--json"}} {
		if code, stdout, stderr := meshCommand(t, append(args, "--home", home)...); code != exitDone || !strings.Contains(stdout, peer) {
			t.Errorf("mesh %s --home: exit code %d, want %s in\n%s%s", args[0], code, peer, stdout, stderr)
		}
	}
	t.Setenv("MESH_HOME", n.light.Ready.Home)
	if code, stdout, stderr := meshCommand(t, "status"); code != exitDone || !strings.Contains(stdout, n.light.Ready.Peer.String()) {
		t.Errorf("with MESH_HOME: exit code %d:\n%s%s", code, stdout, stderr)
	}
	if code, stdout, _ := meshCommand(t, "status", "--api", n.hosts[0].Ready.API); code != exitDone || !strings.Contains(stdout, peer) {
		t.Errorf("--api does not win: exit code %d:\n%s", code, stdout)
	}
	// The folder of `mesh dev` stands for its light node.
	if code, stdout, stderr := meshCommand(t, "status", "--home", n.dir); code != exitDone || !strings.Contains(stdout, n.light.Ready.Peer.String()) {
		t.Errorf("with the home of a network: exit code %d:\n%s%s", code, stdout, stderr)
	}
	absent := func(home string) {
		t.Helper()
		code, _, stderr := meshCommand(t, "status", "--home", home)
		if want := "no node runs in " + home; code != exitFailed || !strings.Contains(stderr, want) || !strings.Contains(stderr, "mesh up --home "+home) {
			t.Errorf("exit code %d, want %q and what to type, got %s", code, want, stderr)
		}
	}
	absent(t.TempDir())
	n.kill(n.hosts[0])
	if _, err := os.Stat(filepath.Join(home, "api.addr")); err != nil {
		t.Errorf("nothing was left to be mistaken: %v", err)
	}
	absent(home)
	light := n.light.Ready.Home
	n.light.stop()
	if _, err := os.Stat(filepath.Join(light, "api.addr")); !os.IsNotExist(err) {
		t.Errorf("the address stays after an orderly stop: %v", err)
	}
	absent(light)
}
