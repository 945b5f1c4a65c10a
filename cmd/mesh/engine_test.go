package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/adapter"
	"github.com/gonka-mesh/mesh/inference/adapter/standin"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// TestEngine puts a llama-server behind a host, as `mesh up --engine URL` does, and asks
// it through the mesh: the answer is the server's, its receipt says of which class it
// is, and the model has a name that a person can type.
func TestEngine(t *testing.T) {
	server := standin.NewLlama(t)
	n := newNetwork(t, 0, "")
	n.hosts = append(n.hosts, n.start("host-0", "--engine", server.URL))
	n.light = n.start("light", "--light")
	n.model = "/models/toy.gguf" // as the server says, so it is called toy
	n.waitKnown(n.light, 1)
	code, stdout, stderr := meshCommand(t, "model", "show", "toy", "--api", n.light.Ready.API)
	if code != exitDone || !strings.Contains(stdout, "tolerance") {
		t.Errorf("model show: exit code %d: %s%s", code, stdout, stderr)
	}
	const prompt, tokens = "Hello mesh", 12
	want := direct(t, server.URL, prompt, tokens)
	zero := 0.0
	for _, model := range []string{"toy", ""} {
		a, err := ask(t.Context(), n.client(n.light), chatRequest{Model: model, Messages: []chatMessage{{"user", prompt}}, MaxTokens: tokens, Temperature: &zero}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if a.Text != want || a.Model != "toy" || a.Host != n.hosts[0].Ready.Peer {
			t.Errorf("model %q: answer %q of %s by %s, want %q of toy by %s", model, a.Text, a.Model, a.Host, want, n.hosts[0].Ready.Peer)
		}
		receipts, err := n.client(n.light).Receipt(t.Context(), a.Receipt)
		if err != nil {
			t.Fatal(err)
		}
		if len(receipts) != 1 || !receipts[0].Valid || !receipts[0].Joins || receipts[0].Class != string(inference.ClassTolerance) ||
			receipts[0].Engine != "llama-server" || receipts[0].Contract != "" || receipts[0].OutputTokens != a.Output {
			t.Errorf("receipts %+v of %+v", receipts, a)
		}
	}
	if code, _, stderr := meshCommand(t, "up", "--home", filepath.Join(n.dir, "nobody"), "--network", n.genesis, "--api", "127.0.0.1:0",
		"--engine", "http://127.0.0.1:1"); code != exitFailed || strings.Count(stderr, "\n") != 1 || strings.Contains(stderr, "dial tcp") {
		t.Errorf("no server: exit code %d: %s", code, stderr)
	}
	if _, err := os.Stat(filepath.Join(n.dir, "nobody", "api.addr")); !os.IsNotExist(err) {
		t.Errorf("a node that did not start left its address: %v", err)
	}
}

// direct asks a server without a mesh.
func direct(t *testing.T, url, prompt string, tokens int) string {
	t.Helper()
	engines, _, err := adapter.Open(t.Context(), adapter.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	e := engines[0]
	defer e.Close()
	ids, err := e.Encode(&inferencepb.Question{Messages: []*inferencepb.Message{{Role: "user", Content: prompt}}})
	if err != nil {
		t.Fatal(err)
	}
	decoder, text := e.Text(), ""
	if _, err := e.Generate(t.Context(), inference.Generation{Prompt: ids, MaxTokens: tokens}, func(tok inference.Token) error {
		text += decoder.Add(tok.ID)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return text + decoder.Flush()
}
