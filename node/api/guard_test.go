package api

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestGuard(t *testing.T) {
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	local := Guard{Token: "secret-token", Loopback: true}
	keyed := Guard{Token: "secret-token", Key: "k1"}
	for name, c := range map[string]struct {
		guard   Guard
		host    string
		headers map[string]string
		want    int
	}{
		"program":               {local, "127.0.0.1:9797", nil, 204},
		"localhost":             {local, "localhost:9797", nil, 204},
		"ipv6":                  {local, "[::1]:9797", nil, 204},
		"rebound name":          {local, "evil.example:9797", nil, 403},
		"rebound, looks local":  {local, "127.0.0.1.evil.example", nil, 403},
		"rebound, localhost.":   {local, "localhost.evil.example", nil, 403},
		"no host":               {local, "", nil, 403},
		"page of other origin":  {local, "127.0.0.1:9797", map[string]string{"Origin": "https://evil.example"}, 403},
		"page of other port":    {local, "127.0.0.1:9797", map[string]string{"Origin": "http://127.0.0.1:8080"}, 403},
		"opaque origin":         {local, "127.0.0.1:9797", map[string]string{"Origin": "null"}, 403},
		"own page":              {local, "127.0.0.1:9797", map[string]string{"Origin": "http://127.0.0.1:9797", "Sec-Fetch-Site": "same-origin"}, 204},
		"cross-site without it": {local, "127.0.0.1:9797", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		"no key":                {keyed, "host.example:9797", nil, 401},
		"wrong key":             {keyed, "host.example:9797", map[string]string{"Authorization": "Bearer k2"}, 401},
		"key":                   {keyed, "host.example:9797", map[string]string{"Authorization": "bearer k1"}, 204},
		"key of Anthropic SDKs": {keyed, "host.example:9797", map[string]string{"X-Api-Key": "k1"}, 204},
		"token":                 {keyed, "host.example:9797", map[string]string{"Mesh-Token": "secret-token"}, 204},
		"key as basic":          {keyed, "host.example:9797", map[string]string{"Authorization": "Basic k1"}, 401},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/mesh/v1/status", nil)
			r.Host = c.host
			for k, v := range c.headers {
				r.Header.Set(k, v)
			}
			w := httptest.NewRecorder()
			c.guard.Wrap(ok).ServeHTTP(w, r)
			if w.Code != c.want {
				t.Fatalf("status %d, want %d: %s", w.Code, c.want, w.Body)
			}
		})
	}
}

func TestControlNeedsToken(t *testing.T) {
	h := Guard{Token: "secret-token", Key: "k1"}.Control(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	for token, want := range map[string]int{"": 401, "wrong": 401, "secret-token": 204} {
		r := httptest.NewRequest("POST", "/mesh/v1/peers", nil)
		r.Header.Set("Mesh-Token", token)
		r.Header.Set("Authorization", "Bearer k1")
		w := httptest.NewRecorder()
		h(w, r)
		if w.Code != want {
			t.Errorf("token %q: status %d, want %d", token, w.Code, want)
		}
	}
	w := httptest.NewRecorder()
	Guard{}.Control(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })(w, httptest.NewRequest("POST", "/", nil))
	if w.Code != 401 {
		t.Errorf("a node without token lets control calls through: %d", w.Code)
	}
}

// mute takes connections, and says nothing.
type mute struct{}

func (mute) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// TestMuteNode: what never answers is given up.
func TestMuteNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		_, err := (&Client{Base: "http://127.0.0.1:1", HTTP: &http.Client{Transport: mute{}}}).Status(t.Context())
		if err == nil || !strings.Contains(err.Error(), "no answer in time") || time.Since(start) != statusPatience {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

// TestStarting: a node that is not up yet says so, and clients can tell.
func TestStarting(t *testing.T) {
	var up atomic.Bool
	server := httptest.NewServer(Starting(&up, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w, Status{Role: "host"}, nil) })))
	defer server.Close()
	c := &Client{Base: server.URL}
	var refused *Error
	if _, err := c.Status(t.Context()); !errors.As(err, &refused) || refused.Code != CodeStarting || refused.Status != http.StatusServiceUnavailable {
		t.Errorf("before: %v", err)
	}
	up.Store(true)
	if s, err := c.Status(t.Context()); err != nil || s.Role != "host" {
		t.Errorf("after: %+v, %v", s, err)
	}
}
