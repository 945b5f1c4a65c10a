package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
)

// heard is an answer as a client saw it.
type heard struct {
	receipt mesh.Hash
	host    mesh.Address
	tokens  []string
	text    string
	finish  string
	gap     time.Duration // the longest between two chunks, the wait for the first included
}

// listen streams an answer and calls at after each token.
func listen(ctx context.Context, n *network, prompt string, tokens, seed int, at func(h *heard)) (*heard, error) {
	last := time.Now()
	resp, err := n.client(n.light).Do(ctx, http.MethodPost, "/v1/chat/completions", map[string]any{
		"model": n.defaultModel(), "stream": true, "max_tokens": tokens, "ignore_eos": true, "temperature": 1, "seed": seed, "logprobs": true,
		"messages": []chatMessage{{"user", prompt}},
	})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	h := new(heard)
	if err := h.receipt.UnmarshalText([]byte(resp.Header.Get("Mesh-Receipt"))); err != nil {
		return nil, err
	}
	if err := h.host.UnmarshalText([]byte(resp.Header.Get("Mesh-Host"))); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		if !ok || string(data) == "[DONE]" {
			continue
		}
		h.gap = max(h.gap, time.Since(last))
		last = time.Now()
		var chunk struct {
			Choices []struct {
				Delta    chatMessage `json:"delta"`
				Finish   string      `json:"finish_reason"`
				Logprobs *struct {
					Content []struct {
						Token string `json:"token"`
						Bytes []int  `json:"bytes"`
					} `json:"content"`
				} `json:"logprobs"`
			} `json:"choices"`
			Error *struct{ Message string } `json:"error"`
		}
		if err := json.Unmarshal(data, &chunk); err != nil {
			return nil, err
		}
		if chunk.Error != nil {
			return h, fmt.Errorf("in the stream: %s", chunk.Error.Message)
		}
		for _, c := range chunk.Choices {
			h.text += c.Delta.Content
			if c.Logprobs != nil {
				for _, l := range c.Logprobs.Content {
					h.tokens = append(h.tokens, l.Token+fmt.Sprint(l.Bytes))
				}
			}
			if c.Finish != "" {
				h.finish = c.Finish
			}
		}
		at(h)
	}
	return h, lines.Err()
}

// TestKillSpeakingHost kills the host that speaks, as kill -9 does, at several
// places of an answer. The client must get the very answer of an undisturbed run,
// with a gap and nothing else, and receipts that join.
func TestKillSpeakingHost(t *testing.T) {
	const tokens = 220
	n := newNetwork(t, 4, syntheticModel(t, "mid"))
	prompt := strings.Repeat("tell me a long story about a network of machines ", 4)
	quiet := func(*heard) {}
	for _, place := range []int{0, 1, 10, 50} {
		t.Run(fmt.Sprintf("token %d", place), func(t *testing.T) {
			var gaps []time.Duration
			segments := make(map[int]int) // answers by their number of receipts
			for i := range trials(1) {
				want, err := listen(t.Context(), n, prompt, tokens, i, quiet)
				if err != nil {
					t.Fatal(err)
				}
				if len(want.tokens) != tokens || want.finish != "length" {
					t.Fatalf("undisturbed: %d tokens, finish %q", len(want.tokens), want.finish)
				}
				receipts := 0
				var got *heard
				for try := 1; receipts == 0; try++ {
					if try > 3 {
						t.Fatal("three times the host had said everything before it was killed")
					}
					got = n.killAt(t, prompt, tokens, i, place)
					if !slices.Equal(got.tokens, want.tokens) || got.text != want.text || got.finish != want.finish {
						t.Fatalf("trial %d: the answer differs from the undisturbed one:\n%q\n%q", i, got.text, want.text)
					}
					receipts = n.checkReceipts(t, got, place)
				}
				segments[receipts]++
				gaps = append(gaps, got.gap)
			}
			slices.Sort(gaps)
			t.Logf("%d trials, all equal, answers by number of receipts %v; longest gap in the stream: p50 %v, max %v", len(gaps), segments, gaps[len(gaps)/2], gaps[len(gaps)-1])
			if os.Getenv("MESH_TRIALS") != "" && (gaps[len(gaps)/2] > 300*time.Millisecond || gaps[len(gaps)-1] > time.Second) {
				t.Errorf("gap p50 %v, max %v: want 300 ms and 1 s", gaps[len(gaps)/2], gaps[len(gaps)-1])
			}
		})
	}
}

// killAt streams an answer, kills who speaks after some tokens, and restarts it.
func (n *network) killAt(t *testing.T, prompt string, tokens, seed, place int) *heard {
	t.Helper()
	killed := -1
	kill := func(i int) {
		killed = i
		n.kill(n.hosts[i])
	}
	if place == 0 {
		// Nobody has spoken yet: the victim is the one that computes the prompt.
		var got *heard
		var err error
		found, done := make(chan int, 1), make(chan struct{})
		go func() { found <- n.busyHost(t, done) }()
		go func() {
			defer close(done)
			got, err = listen(t.Context(), n, prompt, tokens, seed, func(*heard) {})
		}()
		if i := <-found; i >= 0 {
			kill(i)
		}
		<-done
		if err != nil {
			t.Fatal(err)
		}
		if killed < 0 {
			t.Fatal("nobody was killed: no host was seen at work")
		}
		n.restart(killed)
		return got
	}
	got, err := listen(t.Context(), n, prompt, tokens, seed, func(h *heard) {
		if killed >= 0 || len(h.tokens) < place {
			return
		}
		i := slices.IndexFunc(n.hosts, func(c *child) bool { return c.Ready.Peer == h.host })
		if i < 0 {
			t.Errorf("speaker %s is none of the hosts", h.host)
			killed = len(n.hosts)
			return
		}
		kill(i)
	})
	if err != nil {
		t.Fatal(err)
	}
	if killed < 0 {
		t.Fatal("nobody was killed")
	}
	n.restart(killed)
	return got
}

// busyHost waits for the host that has a request, until the request is done.
func (n *network) busyHost(t *testing.T, done <-chan struct{}) int {
	for {
		for i, h := range n.hosts {
			s, err := n.client(h).Status(t.Context())
			if err == nil && len(s.Engines) == 1 && s.Engines[0].Active > 0 {
				return i
			}
		}
		select {
		case <-done:
			return -1
		default:
		}
	}
}

// listenOf returns where a node listens, as --listen wants it.
func listenOf(t *testing.T, c *child) string {
	t.Helper()
	for _, a := range c.Ready.Addrs {
		// /ip4/IP/tcp/PORT/p2p/ID
		if parts := strings.Split(a, "/"); len(parts) > 4 && parts[3] == "tcp" {
			return parts[2] + ":" + parts[4]
		}
	}
	t.Fatalf("no TCP address in %v", c.Ready.Addrs)
	return ""
}

func (n *network) restart(i int) {
	n.t.Helper()
	if i < 0 || i >= len(n.hosts) {
		return
	}
	// On its old port, as hosts restart: its peers know it there.
	at := listenOf(n.t, n.hosts[i])
	n.hosts[i] = nil
	n.hosts[i] = n.startHost(i, "--listen", at)
	n.waitKnown(n.light, len(n.hosts))
}

// checkReceipts wants a receipt of every segment, each joined to the next, and
// returns how many there are: one where a host was lost before its first token, and 0
// where the lost one had said everything, which happens when this process has to wait
// for a processor.
func (n *network) checkReceipts(t *testing.T, h *heard, place int) int {
	t.Helper()
	receipts, err := n.client(n.light).Receipt(t.Context(), h.receipt)
	if err != nil {
		t.Fatal(err)
	}
	late := place > 0 && len(receipts) == 1 && receipts[0].Host == h.host
	if place > 0 && len(receipts) != 2 && !late {
		t.Fatalf("%d receipts, want 2", len(receipts))
	}
	at := 0
	for i, r := range receipts {
		if !r.Valid || !r.Joins || r.First != at {
			t.Fatalf("receipt %d begins at %d, want %d (valid: %v, joins: %v)", i, r.First, at, r.Valid, r.Joins)
		}
		if i > 0 && (r.ChainBefore != receipts[i-1].ChainAfter || r.PrefixHost != receipts[i-1].Host) {
			t.Fatalf("receipt %d does not join the one before", i)
		}
		at = r.End
	}
	if at != len(h.tokens) || receipts[len(receipts)-1].Finish != "length" {
		t.Fatalf("receipts cover %d of %d tokens, the last with finish %q", at, len(h.tokens), receipts[len(receipts)-1].Finish)
	}
	if late {
		return 0
	}
	return len(receipts)
}
