package openai

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
)

func TestInputs(t *testing.T) {
	for _, tc := range []struct {
		body, want string
	}{
		{`{"input":"a"}`, `a[] 0 false`}, {`{"input":["a","b"],"dimensions":null}`, `a[] b[] 0 false`},
		{`{"input":[1,2.0],"dimensions":8,"mesh_price_cap":5}`, `[1 2] 8 false`}, {`{"input":[[1],[2,3]],"encoding_format":"base64","dimensions":8.0}`, `[1] [2 3] 8 true`},
	} {
		c, err := decodeEmbedding([]byte(tc.body))
		if err != nil {
			t.Fatalf("%s: %v", tc.body, err)
		}
		got := ""
		for _, a := range c.asks {
			got += fmt.Sprintf("%s%v ", a.Prompt, a.PromptTokens)
			if !a.Embed || a.MaxTokens != 0 || a.Sampling != nil || a.Width != c.asks[0].Width {
				t.Errorf("%s: %+v", tc.body, a)
			}
		}
		if capped := strings.Contains(tc.body, "mesh_price_cap"); capped != (c.asks[0].TokenCap == 5) {
			t.Errorf("%s: a token may cost %d", tc.body, c.asks[0].TokenCap)
		}
		if got += fmt.Sprint(c.asks[0].Width, " ", c.base64); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.body, got, tc.want)
		}
	}
}

// slow answers late inputs first, counts how many it has at once, and refuses the text "bad".
type slow struct {
	fakeBackend
	wide int // numbers of a vector

	mu             sync.Mutex
	now, most, all int // guarded by mu
}

func (s *slow) Ask(ctx context.Context, ask inference.Ask, emit func(inference.Event) error) error {
	s.mu.Lock()
	s.now++
	s.all++
	s.most = max(s.most, s.now)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.now--
		s.mu.Unlock()
	}()
	var i int
	if _, err := fmt.Sscan(ask.Prompt, &i); err != nil {
		return fmt.Errorf("%w: %s", inference.ErrInvalid, ask.Prompt)
	}
	select {
	case <-time.After(time.Duration(1000-i) * time.Millisecond):
	case <-ctx.Done():
		return ctx.Err()
	}
	v := make([]float32, max(1, s.wide))
	v[0] = float32(i)
	return emit(inference.Event{Request: mesh.HashOf([]byte(ask.Prompt)), Host: mesh.Address{byte(i)}, Vector: v,
		Finish: inference.FinishEOS, Usage: inference.Usage{PromptTokens: 2}})
}

func TestEmbeddingsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var texts []string
		for i := range 100 {
			texts = append(texts, fmt.Sprintf("%q", fmt.Sprint(i)))
		}
		b := new(slow)
		w := httptest.NewRecorder()
		New(Config{Backend: b}).ServeHTTP(w, httptest.NewRequest("POST", "/v1/embeddings",
			strings.NewReader(`{"model":"m","encoding_format":"base64","input":[`+strings.Join(texts, ",")+`]}`)))
		var doc struct {
			Data []struct {
				Index     int
				Embedding string
			}
			Model string
			Usage struct{ Prompt_tokens, Total_tokens int }
		}
		if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || w.Code != 200 {
			t.Fatalf("%d %s, %v", w.Code, w.Body, err)
		}
		for i, d := range doc.Data {
			raw, err := base64.StdEncoding.DecodeString(d.Embedding)
			if err != nil {
				t.Fatal(err)
			}
			if v, err := inference.DecodeVector(raw); err != nil || d.Index != i || v[0] != float32(i) {
				t.Errorf("entry %d: index %d, %v, %v", i, d.Index, v, err)
			}
		}
		if len(doc.Data) != 100 || doc.Model != "m" || doc.Usage.Prompt_tokens != 200 || doc.Usage.Total_tokens != 200 {
			t.Errorf("%d entries of %s, usage %+v", len(doc.Data), doc.Model, doc.Usage)
		}
		if b.most != promptsAtOnce {
			t.Errorf("%d at once, want %d", b.most, promptsAtOnce)
		}
		if got, want := w.Header().Get(HeaderReceipt), mesh.HashOf([]byte("0")).String(); got != want {
			t.Errorf("receipt %s, want that of the first input", got)
		}
	})
}

// TestEmbeddingsFail holds that one bad input ends the request, and what was not asked
// yet is not.
func TestEmbeddingsFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := new(slow)
		w := httptest.NewRecorder()
		body := `{"input":["1","bad"` + strings.Repeat(`,"2"`, 1000) + `]}`
		New(Config{Backend: b}).ServeHTTP(w, httptest.NewRequest("POST", "/v1/embeddings", strings.NewReader(body)))
		if w.Code != 400 || !strings.Contains(w.Body.String(), "bad") || b.all > 2*promptsAtOnce {
			t.Errorf("%d %s after %d asks", w.Code, w.Body, b.all)
		}
	})
}

func TestEmbeddingsTooManyNumbers(t *testing.T) {
	h := &handler{Config{Backend: &slow{wide: inference.MaxWidth}}}
	synctest.Test(t, func(t *testing.T) {
		var e *apiError
		var got embedded
		if err := h.embedOne(t.Context(), inference.Ask{Prompt: "1", Embed: true}, 257, &got); !errors.As(err, &e) || !strings.Contains(e.Message, "at most 256") {
			t.Errorf("257 of the widest: %v", err)
		}
		if err := h.embedOne(t.Context(), inference.Ask{Prompt: "1", Embed: true}, 256, &got); err != nil {
			t.Error(err)
		}
	})
}
