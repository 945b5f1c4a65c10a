package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/node"
	"github.com/gonka-mesh/mesh/node/api"
)

// TestPriceCapFlag: the flag wins over config.yaml, which stands where there is none.
func TestPriceCapFlag(t *testing.T) {
	g := &globals{home: t.TempDir()}
	if err := os.WriteFile(node.ConfigPath(g.home), []byte("price-cap: 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := upCommand(g).Flags()
	for _, want := range []uint64{7, 9} {
		if cfg, err := mergeConfig(flags, g, node.Config{PriceCap: 9}); err != nil || cfg.PriceCap != want {
			t.Errorf("a cap of %d, want %d: %v", cfg.PriceCap, want, err)
		}
		if err := flags.Set("price-cap", "9"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWrongUse makes the mistakes that can be told from the words alone: exit code 2, and
// one line with what was wanted.
func TestWrongUse(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	up := func(args ...string) []string {
		return append([]string{"up", "--home", filepath.Join(t.TempDir(), "h")}, args...)
	}
	address := mesh.Address{1}.String()
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"wallet", "show", "a", "b"}, "mesh: wallet show takes one argument at most: ADDRESS"},
		{[]string{"wallet", "send", address}, "mesh: wallet send wants 2 arguments: ADDRESS AMOUNT"},
		{[]string{"wallet", "send", address[40:], "1"}, "address"},
		{[]string{"wallet", "send", address, "1", "--fee", "x"}, "--fee"},
		{[]string{"gov", "vote", "1", "yes", "--fee", "-1"}, "--fee"},
		{[]string{"wallet", "escrow"}, "mesh: wallet escrow wants 1 argument: AMOUNT"},
		{[]string{"wallet", "escrow", "1", "--lane", "x"}, "want HOST=AMOUNT"},
		{[]string{"wallet", "escrow", "top", "a"}, "mesh: wallet escrow top wants 2 arguments: ESCROW AMOUNT"},
		{[]string{"wallet", "escrow", "top", "a", "1"}, "the first 6 or more"},
		{[]string{"wallet", "escrow", "lane", "a"}, "ESCROW HOST=AMOUNT"},
		{[]string{"wallet", "escrow", "close", "abcde"}, "the first 6 or more"},
		{[]string{"wallet", "key"}, "mesh: wallet key: say what to do: export, import, new"},
		{[]string{"host", "show", "a", "b"}, "one argument at most: PEER"},
		{[]string{"host", "show", "abc"}, "the last 6 or more"},
		{[]string{"host", "stake", "1", "--host", "abc"}, "the last 6 or more"},
		{[]string{"host", "delegate", "all"}, "MODEL PEER"},
		{[]string{"host", "delegate", "abc", "none"}, "the first 6 or more"},
		{[]string{"gov", "vote", "1"}, "ID yes|no|abstain|veto"},
		{[]string{"gov", "vote", "1", "perhaps"}, "yes, no, abstain or veto"},
		{[]string{"peer", "ls", "x"}, "mesh: peer ls takes no argument"},
		{[]string{"peer", "list"}, `mesh: there is no command "mesh peer list"`},
		{[]string{"poc", "show"}, "poc"},
		{[]string{"chat", "--json"}, "chat --json wants a PROMPT"},
		{[]string{"chat", "hi", "--price-cap", "-1"}, "--price-cap"},
		{up("--price-cap", "-1"), "--price-cap"},
		{up("--pace", "5s"), "--pace"},
		{up("--listen", "foo"), "--listen"},
		{up("--kv", "f8"), "--kv"},
		{up("--owner", "me"), "--owner"},
		{up("--light", "--model", "x"), "--model"},
		{up("--trust", "x"), "--trust"},
		{up("--bootstrap", "x"), "--bootstrap"},
		{up("--api", "0.0.0.0:1"), "--api-key"},
		{up("--threads", "-1"), "--threads"},
		{up("--threads", "abc"), `--threads "abc": want a whole number; see ` + "`mesh up --help`"},
		{up("--pace", "soon"), `--pace "soon": want a time, like 100ms`},
		{up("--price-cap", "1x"), `--price-cap "1x": want a whole number from 0`},
		{[]string{"wallet", "escrow", "top", "a"}, "see `mesh wallet escrow top --help`"},
	} {
		code, stdout, stderr := meshCommand(t, c.args...)
		if code != exitUsage || stdout != "" || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != 1 || strings.Count(stderr, "mesh: ") != 1 {
			t.Errorf("mesh %s: exit code %d, want one line with %q, got %s%s", strings.Join(c.args, " "), code, c.want, stdout, stderr)
		}
	}
}

// TestFindHost lets the end of an address stand for a host on the ledger.
func TestFindHost(t *testing.T) {
	var hosts []api.LedgerHost
	for i := range 3 {
		hosts = append(hosts, api.LedgerHost{Host: mesh.Address{byte(i)}})
	}
	id := hosts[1].Host.String()
	for _, text := range []string{id, id[len(id)-8:]} {
		if h, err := findHost(hosts, text); err != nil || h.Host != hosts[1].Host {
			t.Errorf("%s: %s, %v", text, h.Host, err)
		}
	}
	// All of these begin alike, as addresses do, and end alike.
	if _, err := findHost([]api.LedgerHost{hosts[1], hosts[1]}, id[len(id)-8:]); err == nil || !strings.Contains(err.Error(), "type more of it") {
		t.Errorf("of two: %v", err)
	}
	if _, err := findHost(hosts, "zzzzzz"); err == nil || !strings.Contains(err.Error(), "mesh host show") {
		t.Errorf("of none: %v", err)
	}
}

// TestWholeHash lets the beginning of an ID stand for it, if it is of one alone.
func TestWholeHash(t *testing.T) {
	a, b := mesh.Hash{0xab, 0xcd, 0xef, 1}, mesh.Hash{0xab, 0xcd, 0xef, 2}
	ids := func() ([]mesh.Hash, error) { return []mesh.Hash{a, b}, nil }
	for _, c := range []struct {
		text string
		want mesh.Hash
		err  string
	}{
		{a.String(), a, ""}, {mesh.Hash{7}.String(), mesh.Hash{7}, ""}, {"abcdef01", a, ""}, {"abcdef", mesh.Hash{}, "type more digits"},
		{"123456", mesh.Hash{}, "is known here"}, {"abc", mesh.Hash{}, "the first 6 or more"}, {"nothex", mesh.Hash{}, "the first 6 or more"},
	} {
		got, err := wholeHash(c.text, "escrow", ids)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %s, %v", c.text, got.Short(), err)
		}
	}
}

// TestPrintable: what strangers write cannot command a terminal.
func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain, ünïcödé 答え 👩‍💻\n\tx": "plain, ünïcödé 答え 👩‍💻\n\tx",
		"\x1b]0;title\x07":           "]0;title", "a\rb\x00c\x7f": "abc", "\u009b31m": "31m", "a\u202eb\u2066c": "abc",
	} {
		if got := printable(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	var out bytes.Buffer
	if n, err := (tamed{&out}).Write([]byte("\x1b[2Jhello")); n != 9 || err != nil || out.String() != "[2Jhello" {
		t.Errorf("%d, %v, %q", n, err, out.String())
	}
	if tame(&out) != &out {
		t.Error("what is no terminal does not get the answer as it is")
	}
	out.Reset()
	if err := table(&out, []string{"A", "B"}, [][]string{{"x\x1b[1m\ty", "z"}}); err != nil || strings.Contains(out.String(), "\x1b") || strings.Contains(out.String(), "\t") {
		t.Errorf("%v: %q", err, out.String())
	}
}

// TestStrangersErrors: the words of a node's refusal are a host's, and may be anything.
func TestStrangersErrors(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(`{"error": {"message": "no\u001b]52;c;bad\u0007 host", "code": "x"}}`))
	}))
	defer server.Close()
	t.Setenv("HOME", t.TempDir())
	if code, _, stderr := meshCommand(t, "chat", "hello", "--api", server.URL); code != exitFailed || stderr != "mesh: no]52;c;bad host\n" {
		t.Errorf("exit code %d: %q", code, stderr)
	}
}

// TestWhatIsNotKnown is not shown as nothing: what light nodes cannot have proven, and what
// an epoch that runs will come to.
func TestWhatIsNotKnown(t *testing.T) {
	var proven bool
	host, model := mesh.Address{7}, mesh.ModelID{9}
	delegates := []api.Delegate{{To: host}, {Model: model, To: host}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var doc any
		switch r.URL.Path {
		case "/mesh/v1/hosts":
			doc = []api.LedgerHost{{Host: host, Proven: proven, Delegates: delegates}}
		case "/mesh/v1/proposals/1":
			doc = api.Proposal{ID: 1, Proven: proven}
		case "/mesh/v1/epochs/1":
			doc = api.Epoch{Epoch: 1, First: 60, Closed: !proven}
		case "/mesh/v1/epochs":
			doc = []api.Epoch{{Epoch: 1, First: 60}}
		}
		_ = json.NewEncoder(w).Encode(doc)
	}))
	defer server.Close()
	t.Setenv("HOME", t.TempDir())
	for _, c := range []struct {
		args        []string
		full, light string
	}{
		{[]string{"host", "show", host.Short()}, "0 blocks of the window", "not known to a light node"},
		{[]string{"host", "show", host.Short()}, "all: " + host.Short() + ", " + model.Short() + ": " + host.Short(), "not known to a light node"},
		{[]string{"gov", "show", "1"}, "", "not known to a light node"},
		{[]string{"epoch", "show", "1"}, "0 GNK", "not closed yet"},
	} {
		for _, proven = range []bool{false, true} {
			want, never := c.full, c.light
			if proven {
				want, never = c.light, c.full
			}
			code, stdout, stderr := meshCommand(t, append(c.args, "--api", server.URL)...)
			if code != exitDone || !strings.Contains(stdout, want) || never != "" && strings.Contains(stdout, never) {
				t.Errorf("mesh %s: exit code %d, want %q, not %q in\n%s%s", strings.Join(c.args, " "), code, want, never, stdout, stderr)
			}
		}
	}
	if code, stdout, stderr := meshCommand(t, "epoch", "ls", "--api", server.URL); code != exitDone || strings.Contains(stdout, "GNK") {
		t.Errorf("mesh epoch ls: exit code %d:\n%s%s", code, stdout, stderr)
	}
}

// TestOldGenesis: a network keeps the pace that it began with, and who asks for another
// one is told.
func TestOldGenesis(t *testing.T) {
	set := make(map[string]bool)
	d := &devNet{home: filepath.Join(t.TempDir(), "net"), block: time.Second, epoch: 60, set: func(flag string) bool { return set[flag] }}
	if err := d.genesis(1); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(d.genesisPath())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		block time.Duration
		epoch int64
		set   string
		want  string
	}{
		{time.Second, 60, "block epoch", ""}, {time.Minute, 99, "", ""}, // defaults that moved
		{2 * time.Second, 60, "block", "has 1s from a block to the next"}, {time.Second, 30, "epoch", "epochs of 60 blocks"},
	} {
		clear(set)
		for _, flag := range strings.Fields(c.set) {
			set[flag] = true
		}
		d.block, d.epoch = c.block, c.epoch
		err := d.genesis(1)
		var wrong usageError
		if usage := errors.As(err, &wrong); usage != (c.want != "") || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%s, %d: %v", c.block, c.epoch, err)
		}
	}
	if after, err := os.ReadFile(d.genesisPath()); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the genesis has changed: %v", err)
	}
}
