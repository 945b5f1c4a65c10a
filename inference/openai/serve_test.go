package openai

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
)

// pipes is a listener whose connections are in memory, so that virtual time works.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// connect serves the backend and returns the client's end of one connection.
func connect(t *testing.T, b Backend) net.Conn {
	l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
	srv := &http.Server{Handler: New(Config{Backend: b})}
	ended := make(chan struct{})
	go func() { _ = srv.Serve(l); close(ended) }()
	client, server := net.Pipe()
	l.conns <- server
	t.Cleanup(func() { _ = srv.Close(); _ = client.Close(); <-ended })
	return client
}

func post(t *testing.T, w io.Writer, path, body string) {
	t.Helper()
	if _, err := fmt.Fprintf(w, "POST %s HTTP/1.1\r\nHost: mesh\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body); err != nil {
		t.Fatal(err)
	}
}

// readResponse returns the body of the next response.
func readResponse(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

const streamed = `{"model":"tiny","stream":true,` + user + `}`

func TestDisconnectCancels(t *testing.T) {
	for name, body := range map[string]string{"stream": streamed, "whole": `{` + user + `}`} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &fakeBackend{ended: make(chan error, 1), pause: 50 * time.Millisecond}
				conn := connect(t, b)
				go func() { _, _ = io.Copy(io.Discard, conn) }()
				post(t, conn, "/v1/chat/completions", body)
				time.Sleep(time.Second)
				left := time.Now()
				_ = conn.Close()
				if err := <-b.ended; err == nil {
					t.Error("the ask ended without an error")
				}
				if took := time.Since(left); took > time.Second {
					t.Errorf("the ask ended %v after the client left", took)
				}
			})
		})
	}
}

func TestClientThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBackend{ended: make(chan error, 1), pause: 50 * time.Millisecond}
		conn := connect(t, b)
		post(t, conn, "/v1/chat/completions", streamed)
		start := time.Now()
		if err := <-b.ended; err == nil {
			t.Error("the ask ended without an error")
		}
		if took := time.Since(start); took < writeTimeout || took > writeTimeout+time.Second {
			t.Errorf("the ask ended after %v, want %v", took, writeTimeout)
		}
	})
}

func TestWholeAnswerIsNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := connect(t, &fakeBackend{events: said(0, inference.FinishEOS, strings.Repeat("a", 1<<20))})
		post(t, conn, "/v1/chat/completions", `{`+user+`}`)
		time.Sleep(writeTimeout + time.Second)
		got, _ := io.ReadAll(conn)
		if len(got) > 1<<19 {
			t.Errorf("the server still had %d bytes for a client that did not read for %v", len(got), writeTimeout)
		}
	})
}

func TestClientThatDoesNotSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := connect(t, &fakeBackend{})
		start := time.Now()
		go func() {
			_, _ = fmt.Fprint(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: mesh\r\nContent-Length: 100\r\n\r\n{")
		}()
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if took := time.Since(start); res.StatusCode != 400 || took != bodyTimeout {
			t.Errorf("status %d after %v", res.StatusCode, took)
		}
	})
}

// A deadline of one answer must not hit the next one on the same connection, nor
// an answer with gaps.
func TestConnectionIsReused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBackend{events: said(0, inference.FinishEOS, "a", "b"), pause: 2 * writeTimeout}
		conn := connect(t, b)
		r := bufio.NewReader(conn)
		for range 3 {
			post(t, conn, "/v1/chat/completions", streamed)
			if body := readResponse(t, r); !strings.HasSuffix(body, "data: [DONE]\n\n") {
				t.Fatal(body)
			}
			time.Sleep(10 * writeTimeout)
			_, _ = fmt.Fprint(conn, "GET /v1/models HTTP/1.1\r\nHost: mesh\r\n\r\n")
			if body := readResponse(t, r); !strings.Contains(body, `"tiny"`) {
				t.Fatal(body)
			}
		}
	})
}

// Each event leaves at once, and none waits for the one after it.
func TestEventsLeaveAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBackend{events: said(0, inference.FinishEOS, "a", "b", "c"), pause: time.Second}
		conn := connect(t, b)
		start := time.Now()
		post(t, conn, "/v1/chat/completions", streamed)
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if at := time.Since(start); at != time.Second || res.Header.Get(HeaderReceipt) == "" {
			t.Errorf("headers after %v: %v", at, res.Header)
		}
		lines := bufio.NewScanner(res.Body)
		seen := 0
		for lines.Scan() {
			if strings.Contains(lines.Text(), `"delta":{"content":`) {
				seen++
				if at := time.Since(start); at != time.Duration(seen)*time.Second {
					t.Errorf("text %d came after %v", seen, at)
				}
			}
		}
		if seen != 3 {
			t.Errorf("%d texts, want 3", seen)
		}
	})
}

func serve(b Backend, path, body string) (*httptest.ResponseRecorder, *bytes.Buffer) {
	var log bytes.Buffer
	h := New(Config{Backend: b, Log: slog.New(slog.NewTextHandler(&log, nil))})
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("POST", path, strings.NewReader(body)))
	return w, &log
}

func TestBodyTooLarge(t *testing.T) {
	w, _ := serve(&fakeBackend{}, "/v1/chat/completions", `{"model":"`+strings.Repeat("a", maxBody)+`"}`)
	if w.Code != http.StatusRequestEntityTooLarge || !strings.Contains(w.Body.String(), "request_too_large") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestPromptsOfOneRequest(t *testing.T) {
	b := &fakeBackend{events: append(said(0, inference.FinishEOS, "x"), said(1, inference.FinishEOS, "y")...)}
	w, _ := serve(b, "/v1/completions", `{"prompt":["a","b","c"],"n":2}`)
	var res struct {
		Choices []struct {
			Text  string
			Index int
		}
		Usage struct {
			Prompt     int `json:"prompt_tokens"`
			Completion int `json:"completion_tokens"`
		}
	}
	if err := json.Unmarshal(w.Body.Bytes(), &res); err != nil || w.Code != 200 {
		t.Fatalf("%d %v: %s", w.Code, err, w.Body)
	}
	if got, want := fmt.Sprint(res), "{[{x 0} {y 1} {x 2} {y 3} {x 4} {y 5}] {21 12}}"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if len(b.asks) != 3 {
		t.Errorf("%d asks, want 3", len(b.asks))
	}
}

// Of a stop string that was removed no token is listed, and of one that was held
// back while it could have become a stop string each is.
func TestLogProbsFollowTheText(t *testing.T) {
	tok := func(texts ...string) (out []inference.TokenText) {
		for i, s := range texts {
			out = append(out, token(i, s))
		}
		return out
	}
	for _, tc := range []struct {
		name   string
		events []inference.Event
		want   string
	}{
		{"removed", []inference.Event{{Text: "a", Tokens: tok("a")}, {Tokens: tok("E")}, {Tokens: tok("ND"), Finish: inference.FinishStop}}, "a"},
		{"half of a token", []inference.Event{{Text: "a", Tokens: tok("a")}, {Text: "b", Tokens: tok("bE")}, {Tokens: tok("ND"), Finish: inference.FinishStop}}, "a bE"},
		{"held back", []inference.Event{{Text: "a", Tokens: tok("a")}, {Tokens: tok("E")}, {Text: "Ex", Tokens: tok("x"), Finish: inference.FinishLength}}, "a E x"},
		{"end mark", []inference.Event{{Text: "a", Tokens: tok("a")}, {Tokens: tok(""), Finish: inference.FinishEOS}}, "a"},
		{"parts of a character", []inference.Event{{Tokens: tok("\xc3")}, {Text: "é", Tokens: tok("\xa9")}, {Finish: inference.FinishEOS}}, "\xc3 \xa9"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, got := new(choice), []string{}
			for _, ev := range tc.events {
				p, err := c.add(mesh.Hash{}, ev)
				if err != nil {
					t.Fatal(err)
				}
				for _, tok := range p.tokens {
					got = append(got, string(tok.Bytes))
				}
			}
			if strings.Join(got, " ") != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// A backend that breaks its contract is an error of the node, and logged as one.
func TestBackendFaults(t *testing.T) {
	after := append(said(0, inference.FinishEOS, "a"), inference.Event{Text: "more"})
	for name, events := range map[string][]inference.Event{"after the end": after, "choice": {{Choice: 1, Text: "a"}}} {
		w, log := serve(&fakeBackend{events: events}, "/v1/chat/completions", `{`+user+`}`)
		if w.Code != 500 || !strings.Contains(log.String(), "request failed") {
			t.Errorf("%s: %d %s, log %q", name, w.Code, w.Body, log)
		}
	}
}

func TestCancelledByTheNode(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := httptest.NewRecorder()
	r := httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(`{`+user+`}`)).WithContext(ctx)
	New(Config{Backend: &fakeBackend{ended: make(chan error, 1)}}).ServeHTTP(w, r)
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("status %d, want 503", w.Code)
	}
}

func BenchmarkStream(b *testing.B) {
	events := said(0, inference.FinishEOS, strings.Split(strings.Repeat("word ", 200), " ")...)
	h := New(Config{Backend: &fakeBackend{events: events}})
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(streamed)))
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(events)), "ns/event")
}
