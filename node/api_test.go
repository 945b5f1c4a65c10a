package node

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/node/api"
	"github.com/gonka-mesh/mesh/p2p"
)

// pipes is a listener whose only connection is in memory.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, io.EOF
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// TestIdleConnection: the API lets go of a connection on which nothing more is asked.
func TestIdleConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Node{log: slog.New(slog.DiscardHandler)}
		server := n.server(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		listener := make(pipes, 1)
		go server.Serve(listener)
		ours, theirs := net.Pipe()
		listener <- theirs
		if _, err := io.WriteString(ours, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(ours)
		resp, err := http.ReadResponse(in, nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp, err)
		}
		resp.Body.Close()
		start := time.Now()
		if err := ours.SetReadDeadline(start.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if b, err := in.ReadByte(); !errors.Is(err, io.EOF) || time.Since(start) > idleAPI+time.Second {
			t.Errorf("read %d, %v after %s; want the end within %s", b, err, time.Since(start), idleAPI)
		}
		close(listener)
		server.Close()
	})
}

// TestAPIPaths asks for what is there and what is not, before the node is up and after.
func TestAPIPaths(t *testing.T) {
	n, err := New(Config{Home: t.TempDir(), Network: "dev", API: "127.0.0.1:0", Light: true, Listen: "127.0.0.1:0", NoMDNS: true, NoPortMap: true}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	var up atomic.Bool
	h := n.handler(&up)
	for _, started := range []bool{false, true} {
		up.Store(started)
		for _, c := range []struct {
			method, path string
			status       int
			says         string
		}{
			{"GET", "/v1/identity", 200, `"network"`},
			{"GET", "/metrics", 200, "go_goroutines"},
			{"POST", "/v1/responses", 404, "there is no POST /v1/responses"},
			{"POST", "/v1/messages", 404, "there is no POST /v1/messages"},
			{"GET", "/v1/batches/1", 404, "there is no GET /v1/batches/1"},
			{"GET", "/", 404, "there is no GET /"},
			{"GET", "/favicon.ico", 404, "there is no GET /favicon.ico"},
			{"GET", "/mesh/v1/train", 404, "there is no GET /mesh/v1/train"},
			{"POST", "/metrics", 404, "there is no POST /metrics"},
		} {
			if !started {
				c.status, c.says = 503, `"code":"starting"`
			}
			r := httptest.NewRequest(c.method, c.path, nil)
			r.Host = "127.0.0.1"
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			body := w.Body.String()
			if w.Code != c.status || !strings.Contains(body, c.says) {
				t.Errorf("%s %s: %d, %s", c.method, c.path, w.Code, body)
			}
			if w.Code == 404 && (!strings.Contains(body, `"type":"invalid_request_error"`) || !strings.Contains(body, `"not_found"`) ||
				w.Header().Get("Content-Type") != "application/json") {
				t.Errorf("%s %s: no error as OpenAI has them: %s", c.method, c.path, body)
			}
		}
	}
}

// TestDoctorOfTheAPI has what doctor says of a node that does not answer.
func TestDoctorOfTheAPI(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, c := range []struct {
		name, base string
		err        error
		want       string // state of "api port" and of "node"
	}{
		{"taken", "http://" + taken.Addr().String(), &api.NotRunningError{}, "fail warn"},
		{"free", "http://127.0.0.1:0", &api.NotRunningError{}, "ok warn"},
		{"another machine", "http://192.0.2.1:9797", &api.NotRunningError{}, " warn"},
		{"no machine", "http://nowhere.invalid:9797", &api.NotRunningError{}, " warn"},
		{"behind TLS", "https://node.example", &api.NotRunningError{}, " warn"},
		{"starting", "http://127.0.0.1:1", &api.Error{Code: api.CodeStarting, Message: "starting"}, " warn"},
		{"no node", "http://127.0.0.1:1", errors.New("no node"), " fail"},
	} {
		states := make(map[string]string)
		for _, check := range checkAbsent(&api.Client{Base: c.base}, c.err) {
			states[check.Name] = check.State
			if check.State != "ok" && check.Remedy == "" {
				t.Errorf("%s: no remedy for %+v", c.name, check)
			}
		}
		if got := states["api port"] + " " + states["node"]; got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestDoctorOfEarning: a host that has a price and is on no ledger earns nothing.
func TestDoctorOfEarning(t *testing.T) {
	own, others := []api.LedgerHost{{Own: true}}, []api.LedgerHost{{}}
	for _, c := range []struct {
		price mesh.Amount
		hosts []api.LedgerHost
		state string
	}{{7, own, "ok"}, {0, own, "ok"}, {0, others, "ok"}, {7, others, "warn"}, {7, nil, "warn"}} {
		got := checkRegistered(api.Status{Role: p2p.RoleHost, PriceOutput: c.price}, c.hosts)
		if got.State != c.state || (got.Remedy != "") != (c.state == "warn") {
			t.Errorf("price %d, %d hosts: %+v", c.price, len(c.hosts), got)
		}
	}
}

// TestAnswersWhileItStarts: a node whose models are not loaded yet is found by its home,
// and says that it starts.
func TestAnswersWhileItStarts(t *testing.T) {
	asked, end := make(chan struct{}, 1), make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		select {
		case asked <- struct{}{}:
		default:
		}
		<-end
	}))
	defer slow.Close()
	home := t.TempDir()
	n, err := New(Config{Home: home, Network: "dev", API: "127.0.0.1:0", Engines: []string{slow.URL}, Listen: "127.0.0.1:0", NoMDNS: true, NoPortMap: true}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx, func(api.Ready) {}) }()
	<-asked
	var refused *api.Error
	c := &api.Client{Base: RunningAPI(home), Home: home}
	if _, err := c.Status(t.Context()); !errors.As(err, &refused) || refused.Code != api.CodeStarting {
		t.Errorf("at %q: %v", c.Base, err)
	}
	cancel()
	close(end)
	if err := <-ended; err == nil {
		t.Error("a node whose server never answered has started")
	}
	if base := RunningAPI(home); base != "" {
		t.Errorf("it has ended, and is at %s", base)
	}
}
