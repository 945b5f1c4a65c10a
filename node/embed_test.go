package node

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/host"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/inference/model/builtin"
	"github.com/gonka-mesh/mesh/inference/native"
	"github.com/gonka-mesh/mesh/inference/openai"
	"github.com/gonka-mesh/mesh/inference/router"
	"github.com/gonka-mesh/mesh/p2p"
)

// kept is the receipts of a test, by request.
type kept struct {
	network mesh.NetworkID
	mu      sync.Mutex
	all     map[mesh.Hash]*inference.Receipt // guarded by mu
}

func (k *kept) Put(request mesh.Hash, s *inferencepb.Signed) error {
	r, err := inference.ParseReceipt(k.network, s)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.all[request] = r
	return nil
}

// coreOn starts a node on a loopback port.
func coreOn(t *testing.T, i byte, role string, k *kept, bootstrap []string) *Core {
	t.Helper()
	genesis := mesh.HashOf([]byte("embed"))
	k.network = mesh.NewNetworkID("test", genesis)
	c, err := NewCore(CoreConfig{Receipts: k, Fallback: builtin.ID(), Name: builtin.Name, Text: builtinText, Count: builtinCount, Router: router.Config{TaskWait: 200 * time.Millisecond}, P2P: p2p.Config{
		Network: k.network, Genesis: genesis, Key: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{i}, 32)), Role: role,
		Listen: []string{"127.0.0.1:0"}, Bootstrap: bootstrap,
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// serveBuiltin makes a host of a node, and returns its engine.
func serveBuiltin(t *testing.T, c *Core, threads int) *native.Engine {
	t.Helper()
	f, err := builtin.Open()
	if err != nil {
		t.Fatal(err)
	}
	e, err := native.Open(native.Config{File: f, ID: builtin.ID(), Name: builtin.Name, Threads: threads})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := c.Serve(e, host.Prices{Prompt: 2, Output: 3}, mesh.Hash{}); err != nil {
		t.Fatal(err)
	}
	return e
}

type embeddings struct {
	Data []struct {
		Index     int
		Embedding []float32
	}
	Model string
	Usage struct{ Prompt_tokens, Total_tokens int }
	Error struct{ Message, Param, Code string }
}

// postEmbeddings posts a body to a node's API.
func postEmbeddings(t *testing.T, c *Core, body string) (doc embeddings, res *httptest.ResponseRecorder) {
	t.Helper()
	w := httptest.NewRecorder()
	openai.New(openai.Config{Backend: c.Router}).ServeHTTP(w, httptest.NewRequest("POST", "/v1/embeddings", strings.NewReader(body)))
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil {
		t.Fatalf("%v: %s", err, w.Body)
	}
	return doc, w
}

// TestEmbeddings asks a light node for vectors of the built-in model, which two hosts
// serve, over real sockets: whoever answers, the bits are those of the engine.
func TestEmbeddings(t *testing.T) {
	k := &kept{all: make(map[mesh.Hash]*inference.Receipt)}
	first := coreOn(t, 1, p2p.RoleHost, k, nil)
	e := serveBuiltin(t, first, 1)
	second := coreOn(t, 2, p2p.RoleHost, k, first.Net.Addrs())
	serveBuiltin(t, second, 2)
	light := coreOn(t, 3, p2p.RoleLight, k, first.Net.Addrs())
	hosts := map[string]*Core{first.Net.Address().String(): first, second.Net.Address().String(): second}
	waitForHosts(t, light, len(hosts))

	texts := []string{"What is Mesh?", "Qu'est-ce que c'est? é世🌍", strings.Repeat("many words ", 20)}
	input, err := json.Marshal(texts)
	if err != nil {
		t.Fatal(err)
	}
	body := fmt.Sprintf(`{"model":%q,"input":%s,"dimensions":%d}`, builtin.Name, input, e.Info().Embed)
	for range len(hosts) {
		doc, res := postEmbeddings(t, light, body)
		if res.Code != 200 || doc.Model != builtin.Name || len(doc.Data) != len(texts) {
			t.Fatalf("%d: %+v", res.Code, doc)
		}
		tokens := 0
		for i, d := range doc.Data {
			want := direct(t, e, texts[i])
			if d.Index != i || !bytes.Equal(inference.EncodeVector(d.Embedding), inference.EncodeVector(want.Vector)) {
				t.Errorf("vector %d differs from that of the engine", i)
			}
			tokens += want.Positions
		}
		if doc.Usage.Prompt_tokens != tokens || doc.Usage.Total_tokens != tokens {
			t.Errorf("usage %+v, want %d", doc.Usage, tokens)
		}
		checkReceipt(t, k, res, direct(t, e, texts[0]))
		answered := hosts[res.Header().Get(openai.HeaderHost)]
		if answered == nil {
			t.Fatalf("%q answered", res.Header().Get(openai.HeaderHost))
		}
		// The other one has to answer next.
		delete(hosts, res.Header().Get(openai.HeaderHost))
		if err := answered.Remove(e.Info().ID); err != nil {
			t.Fatal(err)
		}
		if len(hosts) == 0 {
			break
		}
	}
	if doc, res := postEmbeddings(t, light, body); res.Code != 503 || doc.Error.Code != "no_host" {
		t.Errorf("without hosts: %d, %+v", res.Code, doc.Error)
	}
}

// TestEmbeddingErrors asks a host that answers itself what it has to refuse.
func TestEmbeddingErrors(t *testing.T) {
	c := coreOn(t, 1, p2p.RoleHost, &kept{all: make(map[mesh.Hash]*inference.Receipt)}, nil)
	e := serveBuiltin(t, c, 1)
	long := strings.Repeat("12,", e.Info().ModelContext)
	for _, tt := range []struct {
		body, param, code string
		status            int
	}{
		{`{"input":[` + long + `12]}`, "input", "context_length_exceeded", 400},
		{`{"input":[` + long[:len(long)-1] + `]}`, "", "", 200},
		{`{"input":[999999]}`, "", "invalid_request", 400},
		{`{"input":"a","dimensions":7}`, "dimensions", "invalid_value", 400},
		{`{"input":"a","model":"gpt-9"}`, "model", "model_not_found", 404},
	} {
		doc, res := postEmbeddings(t, c, tt.body)
		if res.Code != tt.status || doc.Error.Code != tt.code || doc.Error.Param != tt.param {
			t.Errorf("%.40s: %d, %+v", tt.body, res.Code, doc.Error)
		}
	}
	models, err := c.Router.Models(t.Context())
	if err != nil || len(models) != 1 || models[0].Embed != e.Info().Embed {
		t.Errorf("models %+v, %v", models, err)
	}
}

// direct computes a vector without any network.
func direct(t *testing.T, e *native.Engine, text string) inference.Embedding {
	t.Helper()
	tokens, err := e.Encode(&inferencepb.Question{Prompt: text, Embed: true})
	if err != nil {
		t.Fatal(err)
	}
	v, err := e.Embed(t.Context(), tokens, nil)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// checkReceipt holds that the receipt that an answer names binds its vector.
func checkReceipt(t *testing.T, k *kept, res *httptest.ResponseRecorder, want inference.Embedding) {
	t.Helper()
	id, err := mesh.ParseHash(res.Header().Get(openai.HeaderReceipt))
	if err != nil {
		t.Fatal(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.all[id]
	if r == nil {
		t.Fatal("the receipt is not kept")
	}
	chain := inference.NewChain(k.network, id, 0)
	chain.Bind(inference.EncodeVector(want.Vector))
	if r.After != chain || !bytes.Equal(r.Pb.GetHiddenRoot(), want.Hidden[:]) || int(r.Pb.GetPositions()) != want.Positions ||
		r.Pb.GetPrice() != 2*uint64(want.Positions) || r.Host.String() != res.Header().Get(openai.HeaderHost) {
		t.Errorf("receipt %v", r.Pb)
	}
}

// waitForHosts returns when a node knows n hosts of the built-in model.
func waitForHosts(t *testing.T, c *Core, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		list, err := c.dir.Hosts(ctx, c.dir.fallback)
		if err == nil && len(list) >= n {
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%d hosts are known, want %d: %v", len(list), n, err)
		}
	}
}
