package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh/node"
)

// TestErrorsAreWords makes the mistakes that newcomers make. What they read is one line
// in plain words, and says what to type.
func TestErrorsAreWords(t *testing.T) {
	n := newNetwork(t, 0, "")
	c := n.start("light", "--light")
	defer c.stop()
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	silent := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer silent.Close()
	const peer = "/p2p/12D3KooWKAaw5UXQrQim2QRXCLwzYKGcEUFaEPWCZerB1GUytibo"
	home := filepath.Join(n.dir, "new")
	at := func(args ...string) []string { return append(args, "--home", c.Ready.Home) }
	up := func(args ...string) []string {
		return append([]string{"up", "--home", home, "--network", n.genesis, "--no-mdns", "--no-portmap"}, args...)
	}
	for _, tt := range []struct {
		args []string
		want []string
	}{
		{[]string{"status", "--api", "127.0.0.1:1"}, []string{"no node answers", "mesh up", "--api"}},
		{[]string{"status", "--api", "nowhere.invalid:80"}, []string{"no node answers", "mesh up"}},
		{[]string{"status", "--api", other.URL}, []string{"is no mesh node", "--api"}},
		{[]string{"chat", "hi", "--api", other.URL}, []string{"is no mesh node", "--api"}},
		{[]string{"status", "--api", silent.URL}, []string{"the connection broke off", "--api"}},
		{at("chat", "hi"), []string{"no host can answer now", "mesh doctor"}},
		{at("chat", "hi", "--model", "abc"), []string{"abc", "mesh model ls"}},
		{at("peer", "connect", "/ip4/127.0.0.1/tcp/1"+peer), []string{"nobody listens there"}},
		{at("model", "pull", strings.Repeat("ab", 32)), []string{"nobody within reach has file", "mesh model ls"}},
		{up("--api", strings.TrimPrefix(other.URL, "http://"), "--light"), []string{"another program has that address", "--api"}},
		{up("--listen", strings.TrimPrefix(other.URL, "http://"), "--api", "127.0.0.1:0", "--light"), []string{"another program has that address", "--listen"}},
		{up("--model", n.dir, "--api", "127.0.0.1:0"), []string{"there is no " + filepath.Join(n.dir, "config.json")}},
		{[]string{"up", "--home", "/proc/nobody/x"}, []string{"choose another folder with --home"}},
		// Not wrong use: it may be the name of a file, and a file that is missing is a failure.
		{[]string{"up", "--home", home, "--network", "nonsense"}, []string{"main, dev or a genesis file", "there is no nonsense"}},
		{up("--api", "127.0.0.1:0", "--engine", "http://127.0.0.1:1"), []string{"nobody listens there", "start the server first"}},
	} {
		code, stdout, stderr := meshCommand(t, tt.args...)
		if code != exitFailed || stdout != "" {
			t.Errorf("mesh %s: exit code %d: %s", strings.Join(tt.args, " "), code, stdout)
		}
		_, line, _ := strings.Cut(stderr, "mesh: ")
		for _, want := range tt.want {
			if !strings.Contains(line, want) {
				t.Errorf("mesh %s: want %q in %s", strings.Join(tt.args, " "), want, stderr)
			}
		}
		for _, ours := range []string{"dial tcp", "Get \"", "Post \"", "context deadline", "EOF", "bind:", "no such file", "lookup ", "\n\n"} {
			if strings.Contains(strings.TrimSuffix(line, "\n")+"\n", ours) {
				t.Errorf("mesh %s: %q is no word for people: %s", strings.Join(tt.args, " "), ours, line)
			}
		}
		if strings.Count(line, "\n") != 1 {
			t.Errorf("mesh %s: want one line, got %q", strings.Join(tt.args, " "), line)
		}
	}
	if code, stdout, stderr := meshCommand(t, "status", "--api", c.Ready.API+"/v1"); code != exitDone {
		t.Errorf("the address that programs are given: exit code %d: %s%s", code, stdout, stderr)
	}
}

// TestEmptyHome reads everything there is to read of a node that has nothing yet, and of
// a home without a node.
func TestEmptyHome(t *testing.T) {
	n := newNetwork(t, 0, "")
	c := n.start("light", "--light")
	defer c.stop()
	for _, tt := range []struct{ args, want, never string }{
		{"peer ls", "mesh peer connect", "LATENCY"},
		{"model ls", "mesh peer ls", "CONTEXT"},
		{"receipt ls", "mesh chat", "PRICE"},
		{"status", "reachable", "gpu"},
		{"status", "role", "served"},
	} {
		code, stdout, stderr := meshCommand(t, append(strings.Fields(tt.args), "--home", c.Ready.Home)...)
		if code != exitDone || !strings.Contains(stdout+stderr, tt.want) || strings.Contains(stdout, tt.never) {
			t.Errorf("mesh %s: exit code %d, want %q, not %q in\n%s%s", tt.args, code, tt.want, tt.never, stdout, stderr)
		}
		code, stdout, _ = meshCommand(t, append(strings.Fields(tt.args), "--json", "--home", c.Ready.Home)...)
		if code != exitDone || strings.HasSuffix(tt.args, "ls") && strings.TrimSpace(stdout) != "[]" {
			t.Errorf("mesh %s --json: exit code %d: %s", tt.args, code, stdout)
		}
	}
	// The ports are the test's own: a node may run at the usual one.
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	home := filepath.Join(n.dir, "nobody")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		api, want string
		code      int
	}{
		{"127.0.0.1:0", "127.0.0.1:0 is free", exitDone},
		{busy.Addr().String(), "another program has " + busy.Addr().String(), exitFailed},
	} {
		if err := os.WriteFile(node.ConfigPath(home), []byte("api: "+tt.api+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		code, stdout, stderr := meshCommand(t, "doctor", "--home", home, "--api", "")
		if code != tt.code || !strings.Contains(stdout, tt.want) || !strings.Contains(stdout, "none runs in "+home) || strings.Count(stdout, "mesh up` starts one") != 1 {
			t.Errorf("doctor with api %s: exit code %d, want %d and %q:\n%s%s", tt.api, code, tt.code, tt.want, stdout, stderr)
		}
	}
}
