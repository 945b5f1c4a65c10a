package api

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// FuzzRef reads the body of a control call.
func FuzzRef(f *testing.F) {
	f.Add([]byte(`{"ref":"mesh-tiny"}`))
	f.Add([]byte(`{"ref":""}`))
	f.Add([]byte(`{"ref":"a","more":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := httptest.NewRecorder()
		ref, ok := readRef(w, httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(b)))
		if ok != (ref != "") || !ok && w.Code != http.StatusBadRequest {
			t.Errorf("ref %q, %v, status %d", ref, ok, w.Code)
		}
	})
}

// answers is a node that says what it is told to.
type answers struct {
	status int
	body   []byte
}

func (a answers) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: a.status, Status: "x", Body: io.NopCloser(bytes.NewReader(a.body))}, nil
}

// FuzzClient reads what a node, or whatever listens in its place, answers.
func FuzzClient(f *testing.F) {
	f.Add(200, []byte(`[{"name":"a"}]`))
	f.Add(200, []byte(`{"stage":"hash","bytes":1,"total":2}`+"\n"+`{"done":true,"model":{"name":"a"}}`+"\n"))
	f.Add(404, []byte(`{"error":{"code":"x","message":"no such model"}}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		c := &Client{Base: "http://127.0.0.1:1", HTTP: &http.Client{Transport: answers{status, body}}}
		if _, err := c.Models(t.Context()); err == nil && status/100 != 2 {
			t.Errorf("status %d is taken for an answer", status)
		}
		if _, err := c.long(t.Context(), "/", "a", func(Progress) {}); err == nil && status/100 != 2 {
			t.Errorf("status %d is taken for an answer", status)
		}
	})
}
