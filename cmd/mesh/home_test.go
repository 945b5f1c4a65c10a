package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh/node"
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

// TestSecretsStayHome: the token and the key of a home go to the node that runs in it, or
// to the address that was typed beside --home, and to nobody who listens elsewhere.
func TestSecretsStayHome(t *testing.T) {
	var seen []string // of each call: the token, and the key
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("a redirect was followed, with token %q", r.Header.Get("Mesh-Token"))
	}))
	defer elsewhere.Close()
	listener := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, strings.TrimPrefix(r.Header.Get("Mesh-Token")+" "+r.Header.Get("Authorization"), " "))
		http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
	}))
	defer listener.Close()
	user := t.TempDir()
	t.Setenv("HOME", user)
	home := filepath.Join(user, ".mesh")
	h, err := node.OpenHome(home)
	if err != nil {
		t.Fatal(err)
	}
	token, err := h.NewToken()
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(home, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	address := strings.TrimPrefix(listener.URL, "http://")
	write("config.yaml", "api: "+address+"\napi-key: k1\n")
	calls := func(want string, args ...string) {
		t.Helper()
		seen = nil
		code, _, stderr := meshCommand(t, args...)
		if code != exitFailed || !strings.Contains(stderr, "is no mesh node") || len(seen) != 1 || seen[0] != want {
			t.Errorf("mesh %s: exit code %d, the listener saw %q, want %q: %s", strings.Join(args, " "), code, seen, want, stderr)
		}
	}
	both := token + " Bearer k1"
	const to = "12D3KooWKAaw5UXQrQim2QRXCLwzYKGcEUFaEPWCZerB1GUytibo"
	// Here runs another node than the one that listens.
	write("api.addr", "http://127.0.0.1:1\n")
	calls("", "status", "--api", address)
	calls("", "wallet", "send", to, "1", "--api", listener.URL)
	calls("Bearer k2", "status", "--api", address, "--api-key", "k2")
	calls(both, "status", "--api", address, "--home", home)
	t.Setenv("MESH_HOME", home)
	calls("", "status", "--api", address)
	t.Setenv("MESH_HOME", "")
	// Here it is this one.
	write("api.addr", listener.URL+"\n")
	calls(both, "status")
	calls(both, "wallet", "send", to, "1")
	calls(both, "status", "--api", address)
	// Here nobody does, and somebody has taken its address.
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	calls("", "status")
	calls("", "wallet", "send", to, "1")
	calls("Bearer k2", "status", "--api-key", "k2")
}

// TestDevInANodesHome: `mesh dev` makes no network inside the home of a node.
func TestDevInANodesHome(t *testing.T) {
	home := t.TempDir()
	h, err := node.OpenHome(home)
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
	before, _ := os.ReadDir(home)
	if code, _, stderr := meshCommand(t, "dev", "--hosts", "1", "--home", home, "--once", "hello"); code != exitFailed || !strings.Contains(stderr, "is the home of a node") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if after, _ := os.ReadDir(home); len(after) != len(before) {
		t.Errorf("the home had %v, and has %v", before, after)
	}
}
