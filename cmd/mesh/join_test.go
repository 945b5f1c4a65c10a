package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh/inference/model"
	"github.com/gonka-mesh/mesh/node"
	"github.com/gonka-mesh/mesh/node/api"
)

// TestJoinThroughOne gives a newcomer one address and wants every host of the
// model. Then the node that it joined through goes away, and the newcomer, started
// again without any address, comes back by its address book.
func TestJoinThroughOne(t *testing.T) {
	n := newNetwork(t, 4, "")
	args := []string{"--network", n.genesis, "--listen", "127.0.0.1:0", "--api", "127.0.0.1:0", "--no-mdns", "--no-portmap", "--light"}
	home := filepath.Join(n.dir, "newcomer")
	start := time.Now()
	c, err := startChild(context.Background(), home, append(slices.Clone(args), "--bootstrap", n.hosts[0].Ready.Addrs[0])...)
	if err != nil {
		t.Fatal(err)
	}
	ready := time.Since(start)
	found := n.waitKnown(c, 4)
	t.Logf("ready after %v, all 4 hosts known %v later", ready, found)
	c.stop()
	n.kill(n.hosts[0])
	start = time.Now()
	if c, err = startChild(context.Background(), home, args...); err != nil {
		t.Fatal(err)
	}
	defer func() { c.stop() }()
	n.waitKnown(c, 3)
	t.Logf("rejoined by the address book %v after its start", time.Since(start))
	if _, err := timeAsk(t.Context(), n.client(c), "hello", 4, false); err != nil {
		t.Errorf("no answer after the restart: %v", err)
	}
}

// TestJoinWithoutAddress finds peers by mDNS alone.
func TestJoinWithoutAddress(t *testing.T) {
	if names, err := node.MulticastInterfaces(); err != nil || len(names) == 0 {
		t.Skip("this machine has no interface with multicast")
	}
	n := newNetwork(t, 0, "")
	args := []string{"--network", n.genesis, "--api", "127.0.0.1:0", "--listen", "0.0.0.0:0", "--no-portmap"}
	var nodes []*child
	defer func() { stopAll(nodes) }()
	start := time.Now()
	for i, extra := range [][]string{{"--threads", "1"}, {"--threads", "1"}, {"--light"}} {
		c, err := startChild(context.Background(), filepath.Join(n.dir, fmt.Sprint("node-", i)), append(slices.Clone(args), extra...)...)
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, c)
	}
	n.waitKnown(nodes[2], 2)
	t.Logf("both hosts known %v after the first start", time.Since(start))
}

// TestUnknownModelIsFound asks for a model that one host has got since, by the
// hash of its manifest: nobody has heard of it, so the question goes out as a task
// or is found in the DHT.
func TestUnknownModelIsFound(t *testing.T) {
	n := newNetwork(t, 2, "")
	file := syntheticModel(t, "tiny-qwen2")
	m, err := n.client(n.hosts[1]).AddModel(t.Context(), file, nil)
	if err != nil {
		t.Fatal(err)
	}
	code, _, stderr := meshCommand(t, "chat", "hello", "--model", m.Model.String(), "--max-tokens", "4", "--api", n.light.Ready.API)
	if code != exitDone {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
}

// TestPullModel moves a file from two hosts to a third, which then serves it.
func TestPullModel(t *testing.T) {
	n := newNetwork(t, 2, "")
	file := syntheticModel(t, "mid")
	var m api.Model
	var err error
	for _, h := range n.hosts {
		if m, err = n.client(h).AddModel(t.Context(), file, nil); err != nil {
			t.Fatal(err)
		}
	}
	third := n.start("host-2", "--threads", "1")
	defer third.stop()
	code, stdout, stderr := meshCommand(t, "model", "pull", m.Root.String(), "--api", third.Ready.API, "--home", third.Ready.Home)
	if code != exitDone || !strings.Contains(stdout, m.Model.String()) || !strings.Contains(stderr, "fetch 100 %") {
		t.Fatalf("exit code %d: %s%s", code, stdout, stderr)
	}
	got, err := n.client(third).Models(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(got, func(x api.Model) bool { return x.Model == m.Model })
	if i < 0 || got[i].Path == "" || got[i].Served {
		t.Fatalf("not there: %+v", got)
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if have, err := os.ReadFile(got[i].Path); err != nil || !bytes.Equal(have, want) {
		t.Fatalf("the file differs: %v", err)
	}
	if added, err := n.client(third).AddModel(t.Context(), m.Model.String(), nil); err != nil || !added.Served {
		t.Fatalf("%+v, %v", added, err)
	}
	if _, err := n.client(third).RemoveModel(t.Context(), m.Model.String()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(got[i].Path); !os.IsNotExist(err) {
		t.Errorf("the pulled file is still there after rm: %v", err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("the added file is gone: %v", err)
	}
}

// TestKilledNodeComesBack kills a host at random moments; its home must open again,
// with its identity and its models.
func TestKilledNodeComesBack(t *testing.T) {
	n := newNetwork(t, 1, "")
	file := syntheticModel(t, "tiny-llama")
	if _, err := n.client(n.hosts[0]).AddModel(t.Context(), file, nil); err != nil {
		t.Fatal(err)
	}
	for range trials(2) {
		peer := n.hosts[0].Ready.Peer
		ctx, cancel := context.WithCancel(t.Context())
		go func() { // something to be killed at
			for ctx.Err() == nil {
				_, _ = timeAsk(ctx, n.client(n.light), "hello", 8, false)
			}
		}()
		var b [1]byte
		_, _ = rand.Read(b[:])
		time.Sleep(time.Duration(b[0]) * time.Millisecond)
		n.kill(n.hosts[0])
		cancel()
		n.hosts[0] = nil
		n.hosts[0] = n.startHost(0)
		if n.hosts[0].Ready.Peer != peer {
			t.Fatal("it came back as somebody else")
		}
		s, err := n.client(n.hosts[0]).Status(t.Context())
		if err != nil || len(s.Engines) != 2 {
			t.Fatalf("%d models after the restart, %v", len(s.Engines), err)
		}
		n.waitKnown(n.light, 1)
	}
}

// TestSecondNodeInOneHome is refused with what to do.
func TestSecondNodeInOneHome(t *testing.T) {
	n := newNetwork(t, 1, "")
	code, _, stderr := meshCommand(t, "up", "--home", n.hosts[0].Ready.Home, "--network", n.genesis, "--api", "127.0.0.1:0")
	if code != exitFailed || !strings.Contains(stderr, "--home") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// TestIdleFootprint measures what a node takes when it does nothing. The bounds of
// bar and test are the same. On a busy machine it takes a node longer to come to rest.
func TestIdleFootprint(t *testing.T) {
	n := newNetwork(t, 1, "")
	time.Sleep(3 * time.Second)
	begin := time.Now()
	for name, c := range map[string]struct {
		child *child
		limit int64
	}{"light": {n.light, 60 << 20}, "host": {n.hosts[0], 90 << 20}} {
		for ; ; time.Sleep(time.Second) {
			s, err := n.client(c.child).Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			extra := int64(0)
			for _, e := range s.Engines {
				extra += e.Bytes
			}
			t.Logf("%s: %s resident, %s of them its models", name, size(s.MemoryBytes), size(extra))
			if s.MemoryBytes-extra <= c.limit {
				break
			}
			if time.Since(begin) > 20*time.Second {
				t.Errorf("%s: %s beside its models, want at most %s", name, size(s.MemoryBytes-extra), size(c.limit))
				break
			}
		}
	}
}

// TestPullSurvivesKill pulls a large file from three hosts and kills one of them while
// the file comes in.
func TestPullSurvivesKill(t *testing.T) {
	s, err := model.ShapeOf("mid")
	if err != nil {
		t.Fatal(err)
	}
	s.Vocab = 32 << 10 // 60 MB
	if os.Getenv("MESH_LONG") != "" {
		s.Vocab, s.Layers = 128<<10, 40 // 256 MB
	}
	file := filepath.Join(t.TempDir(), "large.gguf")
	var b bytes.Buffer
	if err := model.Synthesize(&b, s, model.Q8_0, 7); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	n := newNetwork(t, 3, file)
	models, err := n.client(n.light).Models(t.Context())
	if err != nil || len(models) != 1 || models[0].Hosts != 3 {
		t.Fatalf("%+v, %v", models, err)
	}
	victim, sources := n.hosts[0], 0
	pull := func() api.Model {
		m, err := n.client(n.light).PullModel(t.Context(), models[0].Model.String(), func(p api.Progress) {
			sources = max(sources, p.Sources)
			if victim != nil && p.Stage == "fetch" && p.Bytes > p.Total/4 && p.Bytes < p.Total {
				n.kill(victim)
				victim, n.hosts[0] = nil, nil
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := pull()
	for try := 1; victim != nil; try++ { // this process was not there while the file came in
		if try == 3 {
			t.Fatal("the file was there before a host could be killed")
		}
		if _, err := n.client(n.light).RemoveModel(t.Context(), m.Model.String()); err != nil {
			t.Fatal(err)
		}
		m = pull()
	}
	if have, err := os.ReadFile(m.Path); err != nil || !bytes.Equal(have, b.Bytes()) {
		t.Fatalf("the file differs: %v", err)
	}
	t.Logf("%s from up to %d hosts", size(m.Bytes), sources)
}
