package node

import (
	"crypto/ed25519"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/p2p"
)

// FuzzTask is what gossip does with bytes on the topic of tasks. Bytes that nobody
// signed are never passed on.
func FuzzTask(f *testing.F) {
	const network = "fuzz12345678"
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	author := mesh.AddressOf(key.Public().(ed25519.PublicKey))
	c, err := NewCore(CoreConfig{P2P: p2p.Config{Network: network, Key: key, Listen: []string{"127.0.0.1:0"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { c.Close() })
	signed := make(map[string]bool)
	for _, deadline := range []int64{0, 1, 1 << 62} {
		_, s, err := inference.SignTask(network, key, &inferencepb.Task{ModelName: "x", DeadlineMs: deadline})
		if err != nil {
			f.Fatal(err)
		}
		b, err := proto.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		signed[string(s.Body)] = true
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		verdict := c.judgeTask(author, data)
		s := new(inferencepb.Signed)
		proto.Unmarshal(data, s)
		if verdict != p2p.Reject && !signed[string(s.Body)] {
			t.Errorf("verdict %d on a task that nobody signed", verdict)
		}
		if c.judgeTask(mesh.Address{}, data) != p2p.Reject {
			t.Error("a task that another peer publishes is not rejected")
		}
	})
}

// FuzzConfig reads config.yaml.
func FuzzConfig(f *testing.F) {
	f.Add([]byte("listen: 127.0.0.1:0\nmodel: [a, b]\nthreads: 2\nlight: true\n"))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte(""))
	path := filepath.Join(f.TempDir(), "config.yaml")
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		c := Config{Home: "x"}
		if ReadConfig(path, &c) != nil || c.complete() != nil {
			return
		}
		if c.Threads < 1 || c.Slots < 1 || c.KV == "" || c.API == "" || c.Home != "x" {
			t.Errorf("a configuration that passes: %+v", c)
		}
	})
}

// FuzzCatalogue reads models.json.
func FuzzCatalogue(f *testing.F) {
	f.Add([]byte(`{"version":1,"models":[{"name":"a","path":"/a","model":"","root":"","bytes":1,"arch":"llama","context":1,"serve":true,"pulled":false}]}`))
	f.Add([]byte(`{"version":2}`))
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	home := &Home{Dir: f.TempDir()}
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(home.Path("models.json"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := openCatalogue(home, 1<<30, log)
		if err != nil {
			return
		}
		if entries, _ := c.list(); len(entries) > 0 {
			if _, ok := c.find(entries[0].Name); !ok {
				t.Error("an entry is not found by its name")
			}
			if err := c.put(entries[0]); err != nil {
				t.Fatal(err)
			}
			if _, err := openCatalogue(home, 1<<30, log); err != nil {
				t.Errorf("what was written is not read back: %v", err)
			}
		}
	})
}
