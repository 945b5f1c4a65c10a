package node

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
)

func TestHomeIsLocked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "home")
	h, err := OpenHome(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenHome(dir); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Fatalf("opened twice: %v", err)
	}
	token, err := h.NewToken()
	if err != nil || len(token) < 32 || ReadToken(dir) != token {
		t.Fatalf("token %q, read %q: %v", token, ReadToken(dir), err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := OpenHome(dir)
	if err != nil {
		t.Fatalf("not given back: %v", err)
	}
	defer again.Close()
	if next, err := again.NewToken(); err != nil || next == token || ReadToken(dir) != next {
		t.Fatalf("after %q the next start has the token %q, read %q: %v", token, next, ReadToken(dir), err)
	}
	for _, name := range []string{"api.token", "lock", "version"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %v, %v; others must not read it", name, info.Mode(), err)
		}
	}
}

// TestRunningAPI finds a node by its home: while it holds the lock, and by an address
// that it left itself.
func TestRunningAPI(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "home")
	if got := RunningAPI(dir); got != "" {
		t.Errorf("no folder: %q", got)
	}
	h, err := OpenHome(dir)
	if err != nil {
		t.Fatal(err)
	}
	const base = "http://127.0.0.1:4321"
	for _, c := range []struct{ left, want string }{
		{"", ""}, {base, base}, {"http://[::1]:4321", "http://[::1]:4321"},
		{"https://127.0.0.1:4321", ""}, {"http://127.0.0.1", ""}, {base + "/x", ""}, {"http://a:b@127.0.0.1:4321", ""}, {"\x00", ""},
	} {
		if err := h.leaveAPI(c.left); err != nil {
			t.Fatal(err)
		}
		if got := RunningAPI(dir); got != c.want {
			t.Errorf("%q was left: got %q", c.left, got)
		}
	}
	if err := h.leaveAPI(base); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil { // as the kernel does for one that was killed
		t.Fatal(err)
	}
	if got := RunningAPI(dir); got != "" {
		t.Errorf("nobody runs, but there is %q", got)
	}
	if h, err = OpenHome(dir); err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if got := RunningAPI(dir); got != "" {
		t.Errorf("the one before left %q, and it counts for the next", got)
	}
}

// TestHalfWrittenFiles are swept when a home is opened, and nothing else is.
func TestHalfWrittenFiles(t *testing.T) {
	dir := t.TempDir()
	first, err := OpenHome(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	gone := []string{".models.json.123456789", ".api.token.1", "packed/.abc.pack.77", "blobs/.version.5"}
	stay := []string{".models.json", ".models.json.bak", ".123", "models.json.123", "models/x/.model.1", "packed/abc.pack"}
	for _, name := range append(gone, stay...) {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	h, err := OpenHome(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, name := range gone {
		if _, err := os.Stat(filepath.Join(dir, name)); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
	for _, name := range stay {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestStrangeFolder: what is no home of a node is left as it is, and a new one may have what
// people and `mesh dev` put there.
func TestStrangeFolder(t *testing.T) {
	for _, c := range []struct {
		name  string
		files []string
		home  bool
	}{
		{"empty", nil, true},
		{"config first", []string{"config.yaml"}, true},
		{"keys first", []string{"node.key", "consensus.key", "consensus.state", "mesh.log"}, true},
		{"ended at the first start", []string{"lock", ".version.123", ".node.key.9"}, true},
		{"a disk of its own", []string{"lost+found/x"}, true},
		{"a home without its lock", []string{"version", "node.key", "receipts.db"}, true},
		{"documents", []string{"letter.txt", ".notes.2024"}, false},
		{"hidden files alone", []string{".notes.2024"}, false},
		{"a program with a version", []string{"version", ".notes.2024"}, false},
		{"the folder of a network", []string{"genesis.json", "light/node.key"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, name := range c.files {
				path := filepath.Join(dir, name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("1\n"), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			before, _ := os.ReadDir(dir)
			if state := checkHome(dir).State; (state != "fail") != c.home {
				t.Errorf("doctor says %s", state)
			}
			h, err := OpenHome(dir)
			if c.home {
				if err != nil {
					t.Fatal(err)
				}
				h.Close()
				return
			}
			if err == nil || !strings.Contains(err.Error(), "is no home") || !strings.Contains(err.Error(), "--home") {
				t.Errorf("opened: %v", err)
			}
			if after, _ := os.ReadDir(dir); len(after) != len(before) {
				t.Errorf("the folder had %v, and has %v", before, after)
			}
		})
	}
}

func TestNewerHomeIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "version"), []byte("2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenHome(dir); err == nil || !strings.Contains(err.Error(), "version") {
		t.Fatalf("a newer home opens: %v", err)
	}
}

// TestKeyIsMissing: a home that was in use gets no new key of its own accord.
func TestKeyIsMissing(t *testing.T) {
	for _, name := range ownFiles {
		t.Run(name, func(t *testing.T) {
			h, err := OpenHome(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			first, err := h.key("")
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.WriteFile(h.Path(name), nil, 0o600), os.Rename(h.Path("node.key"), h.Path("copy"))); err != nil {
				t.Fatal(err)
			}
			if _, err := h.key(""); err == nil || !strings.Contains(err.Error(), "restore the key") || !strings.Contains(err.Error(), name) {
				t.Fatalf("%v", err)
			}
			if _, err := os.Stat(h.Path("node.key")); err == nil {
				t.Fatal("a key was made")
			}
			if err := os.Rename(h.Path("copy"), h.Path("node.key")); err != nil {
				t.Fatal(err)
			}
			if again, err := h.key(""); err != nil || !again.Equal(first) {
				t.Errorf("the key was restored: %v", err)
			}
		})
	}
}

// TestReceiptsAreMissing: an old home without its receipts is warned of, a new one is not.
func TestReceiptsAreMissing(t *testing.T) {
	h, err := OpenHome(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	warned := func() bool {
		var out strings.Builder
		h.missReceipts(slog.New(slog.NewTextHandler(&out, nil)))
		return strings.Contains(out.String(), "level=WARN") && strings.Contains(out.String(), h.Path(receiptsFile))
	}
	if warned() {
		t.Error("a new home has no receipts, and that is a warning")
	}
	if _, err := h.NewToken(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		text string
		want bool
	}{{"", true}, {"receipts", false}} {
		if !warned() && c.text == "" {
			t.Error("the receipts are missing, and that is no warning")
		}
		if err := os.WriteFile(h.Path(receiptsFile), []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := warned(); got != c.want {
			t.Errorf("%d bytes of receipts: warned %v", len(c.text), got)
		}
	}
}

// TestDamagedVersion: a version that is gone or no number is told as damage, with what to
// write, and that mends it.
func TestDamagedVersion(t *testing.T) {
	for _, version := range []string{"", "\xff\x00garbled", "0", "gone"} {
		t.Run(version, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "version")
			for name, text := range map[string]string{"lock": "", "node.key": "k", tokenFile: "t", "receipts.db": "r", "version": version} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if version == "gone" {
				os.Remove(path)
			}
			if _, err := OpenHome(dir); err == nil || !strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), "echo "+homeVersion+" > "+path) {
				t.Fatalf("%v", err)
			}
			if err := os.WriteFile(path, []byte(homeVersion+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			h, err := OpenHome(dir)
			if err != nil {
				t.Fatal(err)
			}
			h.Close()
		})
	}
}

// TestTrustInBlocks rounds up: no block more is trusted than counted.
func TestTrustInBlocks(t *testing.T) {
	for _, c := range []struct{ seconds, ms, want int64 }{{60, 5000, 12}, {60, 7000, 9}, {61, 60_000, 2}, {1 << 31, 100, 10 << 31}} {
		g := &Genesis{TrustSeconds: c.seconds, BlockMS: c.ms}
		if got := g.trustBlocks(); got != uint64(c.want) {
			t.Errorf("%d s in blocks of %d ms: %d, want %d", c.seconds, c.ms, got, c.want)
		}
	}
}

// TestGenesisOfAHome: a home that was of a network does not start with another genesis of
// that network's ID, and does with one of another.
func TestGenesisOfAHome(t *testing.T) {
	dir := t.TempDir()
	start := func(g *Genesis) error {
		h, err := OpenHome(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		return h.keepGenesis(g)
	}
	first := &Genesis{Name: "a", hash: mesh.Hash{1, 2, 3, 4, 5}}
	other := &Genesis{Name: "b", hash: mesh.Hash{1, 2, 3, 4, 6}}
	twin := &Genesis{Name: "a", hash: mesh.Hash{1, 2, 3, 4, 6}}
	if first.Network() != twin.Network() {
		t.Fatal("these are no twins")
	}
	for _, g := range []*Genesis{first, first, other, first, other} {
		if err := start(g); err != nil {
			t.Fatalf("%s: %v", g.Network(), err)
		}
	}
	if err := start(twin); err == nil || !strings.Contains(err.Error(), "has the same ID") {
		t.Fatalf("another genesis of the same ID: %v", err)
	}
	if err := start(first); err != nil {
		t.Fatalf("after the twin was refused: %v", err)
	}
	path := filepath.Join(dir, genesisFile)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", info, err)
	}
	line, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	garbled := slices.Clone(line)
	garbled[len(first.Network())+9] = 0x1b
	for _, b := range [][]byte{[]byte("rubbish\n"), line[:len(first.Network())+17], garbled} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		err := start(first)
		if err == nil || !strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), "move the file away") || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("a damaged record: %v", err)
		}
	}
}

func TestGenesis(t *testing.T) {
	for _, name := range []string{"main", "dev"} {
		g, err := LoadGenesis(name)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(g.Network()), name) {
			t.Errorf("network of %s is %s", name, g.Network())
		}
		if e := g.Epoch(g.Created.Add(time.Duration(g.EpochSeconds)*time.Second*3 + time.Second)); e != 3 {
			t.Errorf("%s: epoch %d, want 3", name, e)
		}
		if e := g.Epoch(g.Created.Add(-time.Hour)); e != 0 {
			t.Errorf("%s: epoch %d before the beginning", name, e)
		}
	}
	a, err := NewDevGenesis(time.Now(), DevNetwork{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewDevGenesis(time.Now(), DevNetwork{})
	if err != nil {
		t.Fatal(err)
	}
	ga, err := ParseGenesis(a)
	if err != nil {
		t.Fatal(err)
	}
	gb, err := ParseGenesis(b)
	if err != nil {
		t.Fatal(err)
	}
	if ga.Network() == gb.Network() {
		t.Error("two networks of mesh dev have one ID and would merge")
	}
	for name, doc := range map[string]string{
		"nothing": "", "no epoch": `{"name":"x","created":"2026-01-01T00:00:00Z"}`, "no time": `{"name":"x","epoch_seconds":60}`,
		"bad name": `{"name":"../x","created":"2026-01-01T00:00:00Z","epoch_seconds":60}`, "unknown field": `{"name":"x","created":"2026-01-01T00:00:00Z","epoch_seconds":60,"supply":1}`,
	} {
		if _, err := ParseGenesis([]byte(doc)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := LoadGenesis("../etc"); err == nil {
		t.Error("a network that is no file is accepted")
	}
}

func TestConfigFile(t *testing.T) {
	dir := t.TempDir()
	path := ConfigPath(dir)
	var c Config
	if err := ReadConfig(path, &c); err != nil {
		t.Fatalf("no file: %v", err)
	}
	if err := os.WriteFile(path, []byte("network: dev\nmodel: [a.gguf, b.gguf]\nprice-output: 7\nprice-cap: 9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ReadConfig(path, &c); err != nil || c.Network != "dev" || len(c.Models) != 2 || c.PriceOutput != 7 || c.PriceCap != 9 {
		t.Fatalf("%+v, %v", c, err)
	}
	if err := os.WriteFile(path, []byte("bootstraps: dev\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ReadConfig(path, &c); err == nil || !strings.Contains(err.Error(), "bootstraps") {
		t.Fatalf("an unknown key passes: %v", err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for name, c := range map[string]Config{
		"open API without key": {Home: "h", API: "0.0.0.0:9797"},
		"API is no address":    {Home: "h", API: "9797"},
		"listen is no address": {Home: "h", Listen: "localhost"},
		"owner":                {Home: "h", Owner: "me"},
		"light with model":     {Home: "h", Light: true, Models: []string{"x"}},
		"kv":                   {Home: "h", KV: "f8"},
		"pace":                 {Home: "h", Pace: 5 * time.Second},
		"bootstrap":            {Home: "h", Bootstrap: []string{"127.0.0.1:9798"}},
		"trust":                {Home: "h", Trust: "12"},
		"trust of no hash":     {Home: "h", Trust: "12:abc"},
		"negative":             {Home: "h", Threads: -1},
		"no home":              {},
	} {
		t.Run(name, func(t *testing.T) {
			var wrong *ConfigError
			if err := c.complete(); !errors.As(err, &wrong) {
				t.Fatalf("no error of the settings: %v", err)
			}
		})
	}
	good := Config{Home: "h", API: "0.0.0.0:9797", APIKey: "k"}
	if err := good.complete(); err != nil {
		t.Fatal(err)
	}
}

func FuzzGenesis(f *testing.F) {
	for _, name := range []string{"main", "dev"} {
		b, err := presets.ReadFile("genesis/" + name + ".json")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if g, err := ParseGenesis(b); err == nil {
			if err := g.Network().Validate(); err != nil {
				t.Errorf("accepted, but its network ID is bad: %v", err)
			}
		}
	})
}

func FuzzCapability(f *testing.F) {
	f.Add([]byte{0x0a, 0x20}, make([]byte, 32))
	f.Fuzz(func(t *testing.T, payload, key []byte) {
		var id [32]byte
		copy(id[:], key)
		if c, ok := decodeCapability(payload, id); ok && (c.GetName() == "" || c.GetContext() == 0) {
			t.Errorf("accepted %v", c)
		}
	})
}
