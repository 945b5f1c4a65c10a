package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh/inference/model"
	"github.com/gonka-mesh/mesh/node"
	"github.com/gonka-mesh/mesh/node/api"
)

// mainEnv makes the test binary behave as mesh, so that tests start real processes
// without a build of their own.
const mainEnv = "MESH_TEST_MAIN"

func TestMain(m *testing.M) {
	// A worker of the fuzzer has the environment of a node, too.
	if os.Getenv(mainEnv) != "" && !slices.Contains(os.Args, "-test.fuzzworker") {
		os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	// What the person who runs the tests has set must not reach the nodes.
	for _, name := range []string{"MESH_HOME", "MESH_API", "MESH_API_KEY"} {
		os.Unsetenv(name)
	}
	os.Setenv(mainEnv, "1")
	os.Exit(m.Run())
}

// trials returns how often a test repeats: MESH_TRIALS, or few.
func trials(few int) int {
	if n, err := strconv.Atoi(os.Getenv("MESH_TRIALS")); err == nil && n > 0 {
		return n
	}
	return few
}

// network is a network of processes for one test.
type network struct {
	t       *testing.T
	dir     string
	genesis string
	model   string // file; empty: the built-in one
	hosts   []*child
	light   *child
}

// newNetwork starts hosts, and a light node that knows them all.
func newNetwork(t *testing.T, hosts int, file string) *network {
	t.Helper()
	dir := t.TempDir()
	n := &network{t: t, dir: dir, genesis: filepath.Join(dir, "genesis.json"), model: file}
	b, err := node.NewDevGenesis(time.Now(), node.DevNetwork{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.genesis, b, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stopAll(append(n.hosts, n.light))
		if t.Failed() {
			n.printLogs()
		}
	})
	for i := range hosts {
		n.hosts = append(n.hosts, n.startHost(i))
	}
	if hosts > 0 {
		n.light = n.start("light", "--light")
		n.waitKnown(n.light, hosts)
	}
	return n
}

// start runs a node that joins through the hosts that live.
func (n *network) start(name string, args ...string) *child {
	n.t.Helper()
	args = append([]string{"--network", n.genesis, "--listen", "127.0.0.1:0", "--api", "127.0.0.1:0", "--no-mdns", "--no-portmap"}, args...)
	for _, h := range n.hosts {
		if h != nil {
			for _, a := range h.Ready.Addrs {
				args = append(args, "--bootstrap", a)
			}
		}
	}
	c, err := startChild(context.Background(), filepath.Join(n.dir, name), args...)
	if err != nil {
		n.t.Fatalf("start %s: %v", name, err)
	}
	return c
}

func (n *network) startHost(i int, args ...string) *child {
	n.t.Helper()
	args = append(args, "--threads", "1")
	if n.model != "" {
		args = append(args, "--model", n.model)
	}
	return n.start("host-"+strconv.Itoa(i), args...)
}

func (n *network) client(c *child) *api.Client {
	token, _ := os.ReadFile(filepath.Join(c.Ready.Home, "api.token"))
	return &api.Client{Base: c.Ready.API, Token: strings.TrimSpace(string(token))}
}

// waitKnown waits until a node knows that many hosts of its default model.
func (n *network) waitKnown(c *child, hosts int) time.Duration {
	n.t.Helper()
	start := time.Now()
	want := n.defaultModel()
	found := 0
	for time.Since(start) < 20*time.Second {
		models, err := n.client(c).Models(n.t.Context())
		if err != nil {
			n.t.Fatal(err)
		}
		for _, m := range models {
			if m.Name == want {
				found = m.Hosts
			}
		}
		if found >= hosts {
			return time.Since(start)
		}
		time.Sleep(5 * time.Millisecond)
	}
	n.t.Fatalf("%s knows %d of %d hosts of %s", c.Ready.Home, found, hosts, want)
	return 0
}

func (n *network) defaultModel() string {
	if n.model == "" {
		return "mesh-tiny"
	}
	return strings.TrimSuffix(filepath.Base(n.model), ".gguf")
}

// kill ends a host as kill -9 does, and waits until it is gone.
func (n *network) kill(c *child) {
	n.t.Helper()
	if err := c.cmd.Process.Kill(); err != nil {
		n.t.Fatal(err)
	}
	<-c.ended
}

func (n *network) printLogs() {
	logs, _ := filepath.Glob(filepath.Join(n.dir, "*", "mesh.log"))
	for _, name := range logs {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		if len(b) > 3000 {
			b = b[len(b)-3000:]
		}
		n.t.Logf("%s:\n%s", name, b)
	}
}

// syntheticModel writes a model of random weights.
func syntheticModel(t *testing.T, shape string) string {
	t.Helper()
	s, err := model.ShapeOf(shape)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "synthetic-"+shape+".gguf")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := model.Synthesize(f, s, model.Q8_0, 7); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// meshCommand runs one command line in this process.
func meshCommand(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, notes bytes.Buffer
	code = run(args, strings.NewReader(""), &out, &notes)
	return code, out.String(), notes.String()
}

// TestOnce is the first command of the README: a correct answer that another
// process computed, with its receipt.
func TestOnce(t *testing.T) {
	code, stdout, stderr := meshCommand(t, "dev", "--hosts", "2", "--json", "--once", "What is Mesh?")
	if code != exitDone {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	var ready api.Ready
	var a chatAnswer
	first, rest, _ := strings.Cut(stdout, "\n")
	if err := errors.Join(json.Unmarshal([]byte(first), &ready), json.Unmarshal([]byte(rest), &a)); err != nil {
		t.Fatalf("%v in %s", err, stdout)
	}
	if ready.Event != "ready" || len(ready.Hosts) != 2 {
		t.Errorf("the first line is %s", first)
	}
	if !strings.HasPrefix(a.Text, "Mesh is a peer-to-peer network for AI compute.") {
		t.Errorf("answer %q", a.Text)
	}
	if len(a.Proof) != 1 || !a.Proof[0].Valid || !a.Proof[0].Joins || a.Proof[0].Request != a.Receipt || a.Proof[0].Host != a.Host || a.Proof[0].Finish != "eos" {
		t.Errorf("receipts %+v do not prove %+v", a.Proof, a)
	}
}

// TestPace lets the hosts of mesh dev speak slowly enough for a person.
func TestPace(t *testing.T) {
	const pace = 15 * time.Millisecond
	code, stdout, stderr := meshCommand(t, "dev", "--hosts", "1", "--pace", pace.String(), "--json", "--once", "What is a receipt?")
	var a chatAnswer
	_, rest, _ := strings.Cut(stdout, "\n")
	if err := json.Unmarshal([]byte(rest), &a); code != exitDone || err != nil || len(a.Proof) != 1 {
		t.Fatalf("exit code %d, %v: %s%s", code, err, stdout, stderr)
	}
	r := a.Proof[0]
	if took, least := r.Ended.Sub(r.FirstToken), time.Duration(a.Output-1)*pace; a.Output < 10 || took < least-time.Millisecond {
		t.Errorf("%d tokens in %s, want %s at least", a.Output, took, least)
	}
	for _, wrong := range []string{"2s", "-1ms", "quick"} {
		if code, _, stderr := meshCommand(t, "dev", "--pace", wrong); code != exitUsage || !strings.Contains(stderr, "pace") {
			t.Errorf("--pace %s: exit code %d: %s", wrong, code, stderr)
		}
	}
}

// TestUnknownModel: a model that nobody has is not found, by name and by ID; one whose
// hosts are gone or busy is there, and cannot answer now.
func TestUnknownModel(t *testing.T) {
	n := newNetwork(t, 1, syntheticModel(t, "tiny-llama"))
	models, err := n.client(n.light).Models(t.Context())
	if err != nil || len(models) != 1 {
		t.Fatalf("%d models, %v", len(models), err)
	}
	for _, c := range []struct {
		model, want string
		gone        bool
	}{
		{strings.Repeat("ab", 32), "no host within reach serves the model", false},
		{"nobody-has-this", "no host within reach serves the model", false},
		{models[0].Model.String(), "", false},
		{models[0].Model.String(), "no host can answer now", true},
	} {
		if c.gone {
			n.kill(n.hosts[0])
		}
		code, _, stderr := meshCommand(t, "chat", "hello", "--max-tokens", "3", "--model", c.model, "--api", n.light.Ready.API)
		if (code == exitDone) != (c.want == "") || !strings.Contains(stderr, c.want) {
			t.Errorf("model %s (gone: %v): exit code %d, want %q in %s", c.model, c.gone, code, c.want, stderr)
		}
	}
}

// TestDevLeavesNothing checks that the hosts of mesh dev end with it.
func TestDevLeavesNothing(t *testing.T) {
	home := filepath.Join(t.TempDir(), "net")
	if code, _, stderr := meshCommand(t, "dev", "--hosts", "2", "--home", home, "--once", "hello"); code != exitDone {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	for i := range 2 {
		h, err := node.OpenHome(filepath.Join(home, fmt.Sprintf("host-%d", i)))
		if err != nil {
			t.Errorf("host %d still runs: %v", i, err)
			continue
		}
		h.Close()
	}
}

// TestCommands asks a running node with every command that reads.
func TestCommands(t *testing.T) {
	n := newNetwork(t, 1, "")
	base := n.light.Ready.API
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"status"}, "light"},
		{[]string{"status", "--json"}, `"role": "light"`},
		{[]string{"peer", "ls"}, n.hosts[0].Ready.Peer.String()},
		{[]string{"peer", "ls", "--json"}, `"direction"`},
		{[]string{"peer", "show", n.hosts[0].Ready.Peer.String()}, "mesh-tiny"},
		{[]string{"peer", "connect", n.hosts[0].Ready.Addrs[0], "--home", n.light.Ready.Home}, n.hosts[0].Ready.Peer.String()},
		{[]string{"model", "ls"}, "mesh-tiny"},
		{[]string{"model", "show", "mesh-tiny", "--json"}, `"hosts": 1`},
		{[]string{"chat", "What is a receipt?", "--max-tokens", "200"}, "signed statement"},
		{[]string{"chat", "hello", "--json"}, `"host": "` + n.hosts[0].Ready.Peer.String()},
		{[]string{"receipt", "ls"}, "eos"},
		{[]string{"receipt", "ls", "--json"}, `"chain_after"`},
		{[]string{"doctor"}, "peers"},
		{[]string{"version"}, "protocol 1"},
	} {
		code, stdout, stderr := meshCommand(t, append(c.args, "--api", base)...)
		if code != exitDone || !strings.Contains(stdout, c.want) {
			t.Errorf("mesh %s: exit code %d, want %q in\n%s%s", strings.Join(c.args, " "), code, c.want, stdout, stderr)
		}
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"chat", "hello", "--model", "nobody-has-this"}, exitFailed, "nobody-has-this"},
		{[]string{"peer", "show", "12D3"}, exitFailed, "mesh peer ls"},
		{[]string{"receipt", "show", "abc"}, exitUsage, "64 hex digits"},
		{[]string{"receipt", "show", strings.Repeat("0", 63) + "1"}, exitFailed, "not found"},
		{[]string{"model", "show"}, exitUsage, "MODEL"},
		{[]string{"status", "--bogus"}, exitUsage, "--bogus"},
		{[]string{"model", "add", "mesh-tiny", "--home", n.light.Ready.Home}, exitFailed, "light"},
	} {
		code, _, stderr := meshCommand(t, append(c.args, "--api", base)...)
		if code != c.code || !strings.Contains(stderr, c.want) || strings.Count(strings.TrimSpace(stderr), "\n") > 0 {
			t.Errorf("mesh %s: exit code %d, want %d and one line with %q, got\n%s", strings.Join(c.args, " "), code, c.code, c.want, stderr)
		}
	}
}
