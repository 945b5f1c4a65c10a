package p2p

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
)

var testGenesis = mesh.HashOf([]byte("p2p test"))

func testKey(n int) ed25519.PrivateKey {
	seed := mesh.HashOf(fmt.Appendf(nil, "p2p test key %d", n))
	return ed25519.NewKeyFromSeed(seed[:])
}

// testConfig is a host on loopback that finds nobody by itself.
func testConfig(t *testing.T, n int) Config {
	cfg := Config{
		Network: mesh.NewNetworkID("test", testGenesis),
		Genesis: testGenesis,
		Key:     testKey(n),
		Listen:  []string{"127.0.0.1:0"},
	}
	if os.Getenv("MESH_TEST_LOG") != "" {
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", n)
	}
	return cfg
}

func startHost(t *testing.T, cfg Config) *Host {
	t.Helper()
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// startPair starts two connected hosts.
func startPair(t *testing.T) (a, b *Host) {
	t.Helper()
	a, b = startHost(t, testConfig(t, 1)), startHost(t, testConfig(t, 2))
	connect(t, a, b)
	return a, b
}

func connect(t *testing.T, from, to *Host) {
	t.Helper()
	if _, err := from.Connect(t.Context(), to.Addrs()[0]); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for something that other goroutines bring about.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func TestTwoHosts(t *testing.T) {
	a, b := startPair(t)
	for _, h := range []*Host{a, b} {
		addrs := h.Addrs()
		if len(addrs) != 2 || !strings.Contains(addrs[0], "/tcp/") || !strings.Contains(addrs[1], "/quic-v1") {
			t.Fatalf("addrs %q: want TCP, then QUIC", addrs)
		}
		tcp, udp := strings.Split(addrs[0], "/")[4], strings.Split(addrs[1], "/")[4]
		if tcp != udp {
			t.Errorf("TCP port %s, QUIC port %s: want one number", tcp, udp)
		}
	}
	eventually(t, "both see each other", func() bool { return len(a.Peers()) == 1 && len(b.Peers()) == 1 })
	pa, pb := a.Peers()[0], b.Peers()[0]
	if pa.Address != b.Address() || pa.Role != RoleHost || !pa.Outbound || pa.Transport != "tcp" || pa.Agent == "" {
		t.Errorf("peer seen by the dialler: %+v", pa)
	}
	if pb.Address != a.Address() || pb.Outbound || pb.Transport != "tcp" {
		t.Errorf("peer seen by the listener: %+v", pb)
	}
	eventually(t, "latency measured", func() bool { return a.Peers()[0].Latency > 0 && b.Peers()[0].Latency > 0 })

	b.Handle("echo", Limits{}, func(_ context.Context, peer mesh.Address, c net.Conn) {
		if got, ok := RemotePeer(c); !ok || got != peer || peer != a.Address() {
			t.Errorf("remote peer %s, %s: want %s", got, peer, a.Address())
		}
		io.Copy(c, c)
	})
	c, err := a.Dial(t.Context(), b.Address(), "echo")
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("mesh"), 100_000)
	go func() {
		c.Write(want)
		CloseWrite(c)
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("echo of %d bytes: %d bytes, %v", len(want), len(got), err)
	}
	if who, ok := RemotePeer(c); !ok || who != b.Address() {
		t.Errorf("remote peer of the dialler: %s", who)
	}
	c.Close()
	if _, ok := RemotePeer(&net.TCPConn{}); ok {
		t.Error("a plain TCP connection has a remote peer")
	}
	b.Close()
	eventually(t, "the end of a peer is noticed", func() bool { return !a.Connected(b.Address()) })
}

func TestHTTPOverStreams(t *testing.T) {
	a, b := startPair(t)
	ln, err := b.Listen("infer", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Listen("infer", Limits{}); err == nil {
		t.Error("one protocol is served twice")
	}
	served := make(chan error, 1)
	gone := make(chan struct{})
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			close(gone)
			return
		}
		fmt.Fprintf(w, "%s", r.RemoteAddr)
	}), ReadHeaderTimeout: 5 * time.Second}
	go func() { served <- srv.Serve(ln) }()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return a.Dial(ctx, b.Address(), "infer")
	}}}
	for range 3 {
		resp, err := client.Get("http://peer/")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(body) != a.Address().String() {
			t.Errorf("the server sees caller %q, want %s", body, a.Address())
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://peer/hang", nil)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	resp.Body.Close()
	select {
	case <-gone:
	case <-time.After(5 * time.Second):
		t.Error("the server did not notice that the caller went away")
	}
	srv.Close()
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("serve: %v", err)
	}
}

func TestForeignPeersPart(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"network", func(c *Config) { c.Network = "other00000000" }, "another network"},
		{"genesis", func(c *Config) { c.Genesis = mesh.HashOf([]byte("else")) }, "genesis"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig(t, 2)
			tt.change(&cfg)
			a, b := startHost(t, testConfig(t, 1)), startHost(t, cfg)
			_, err := a.Connect(t.Context(), b.Addrs()[0])
			if err == nil || !errors.Is(err, errForeign) || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("connect: %v, want one that says %q", err, tt.want)
			}
			eventually(t, "both closed the connection", func() bool {
				return len(a.host.Network().Conns())+len(b.host.Network().Conns()) == 0
			})
			if a.Connected(b.Address()) || b.Connected(a.Address()) {
				t.Error("a foreign peer counts as connected")
			}
			begin := time.Now()
			if _, err = a.Dial(t.Context(), b.Address(), "echo"); err == nil || !strings.Contains(err.Error(), "refused until") {
				t.Errorf("second dial: %v, want it refused from memory", err)
			}
			if took := time.Since(begin); took > time.Second {
				t.Errorf("the refusal took %s", took)
			}
			if len(a.book.best(9)) != 0 {
				t.Error("a foreign peer is in the address book")
			}
		})
	}
}

func TestDialErrors(t *testing.T) {
	a := startHost(t, testConfig(t, 1))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := a.Dial(ctx, a.Address(), "echo"); err == nil || !strings.Contains(err.Error(), "this node") {
		t.Errorf("dial oneself: %v", err)
	}
	unknown := mesh.AddressOf(testKey(77).Public().(ed25519.PublicKey))
	if _, err := a.Dial(ctx, unknown, "echo"); !errors.Is(err, ErrNoAddress) {
		t.Errorf("dial an unknown peer: %v, want ErrNoAddress", err)
	}
	for _, s := range []string{"", "127.0.0.1:80", "/ip4/127.0.0.1/tcp/80", strings.Repeat("/ip4", 10_000)} {
		if _, err := a.Connect(ctx, s); err == nil || len(err.Error()) > 400 {
			t.Errorf("connect to %.40q: %v", s, err)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no key", func(c *Config) { c.Key = nil }, "key"},
		{"network", func(c *Config) { c.Network = "x" }, "network"},
		{"role", func(c *Config) { c.Role = "king" }, "role"},
		{"listen", func(c *Config) { c.Listen = []string{"4700"} }, "IP:PORT"},
		{"bootstrap", func(c *Config) { c.Bootstrap = []string{"example.org"} }, "/p2p/ID"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig(t, 1)
			tt.change(&cfg)
			if h, err := New(cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				if h != nil {
					h.Close()
				}
				t.Errorf("error %v, want one about %q", err, tt.want)
			}
		})
	}
}

func TestPortInUse(t *testing.T) {
	// A port that is taken for UDP only is no error when the number is drawn, and
	// one when it was asked for.
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	cfg := testConfig(t, 1)
	cfg.Listen = []string{udp.LocalAddr().String()}
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "QUIC") {
		t.Errorf("start on a port that UDP has taken: %v", err)
	}
}

func TestNewOpensNothing(t *testing.T) {
	h, err := New(testConfig(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, a := range h.host.Network().ListenAddresses() {
		if !isRelayed(a) { // the relay client's own entry is no socket
			t.Errorf("listens on %s before Start", a)
		}
	}
	if got := h.Address(); got != mesh.AddressOf(testKey(1).Public().(ed25519.PublicKey)) {
		t.Errorf("address %s", got)
	}
}

func TestQUICOnly(t *testing.T) {
	a, b := startHost(t, testConfig(t, 1)), startHost(t, testConfig(t, 2))
	i := slices.IndexFunc(b.Addrs(), func(s string) bool { return strings.Contains(s, "quic") })
	if _, err := a.Connect(t.Context(), b.Addrs()[i]); err != nil {
		t.Fatal(err)
	}
	if p := a.Peers(); len(p) != 1 || p[0].Transport != "quic" {
		t.Errorf("peers %+v: want one over QUIC", p)
	}
}

func TestLightPeerWithoutPort(t *testing.T) {
	b := startHost(t, testConfig(t, 2))
	b.Handle("echo", Limits{}, func(_ context.Context, _ mesh.Address, c net.Conn) { io.Copy(c, c) })
	cfg := testConfig(t, 1)
	cfg.Role, cfg.NoListen, cfg.Bootstrap = RoleLight, true, b.Addrs()
	a := startHost(t, cfg)
	eventually(t, "joined", func() bool { return a.Connected(b.Address()) })
	if len(a.Addrs()) != 0 {
		t.Errorf("addrs %q of a node that does not listen", a.Addrs())
	}
	if r := a.Reachability(); r.State != ReachPrivate || !strings.Contains(r.Reason, "only dials") || r.PortMap != "off" {
		t.Errorf("reachability %+v", r)
	}
	eventually(t, "seen", func() bool { return len(b.Peers()) == 1 })
	if p := b.Peers()[0]; p.Role != RoleLight {
		t.Errorf("role %q", p.Role)
	}
	// The host can call back over the connection that the light peer opened.
	a.Handle("echo", Limits{}, func(_ context.Context, _ mesh.Address, c net.Conn) { io.Copy(c, c) })
	c, err := b.Dial(t.Context(), a.Address(), "echo")
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "back")
	CloseWrite(c)
	if got, err := io.ReadAll(c); string(got) != "back" {
		t.Errorf("call back: %q, %v", got, err)
	}
}
