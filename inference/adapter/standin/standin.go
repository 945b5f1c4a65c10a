// Package standin answers as inference servers do, for tests: vLLM, SGLang,
// llama-server and Ollama, in this process and with a toy model. Only tests import it.
package standin

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"
)

// The stand-ins answer as the documentation and the sources of the servers say. They
// share a toy model: byte tokens, some words, pieces of characters, control tokens,
// and logits that are a hash of all ids before.

const (
	toyStart = 256 // <|im_start|>
	toyEnd   = 257 // <|im_end|>, ends an answer
	toyBOS   = 258 // <|bos|>
	toyWords = 259
	Context  = 512
)

var toyPieces = func() []string {
	var p []string
	for i := range 256 {
		p = append(p, string([]byte{byte(i)}))
	}
	p = append(p, "<|im_start|>", "<|im_end|>", "<|bos|>")
	return append(p, "Hello", " mesh", " the", " a", "user", "assistant", "\n", ".", "é", "\xf0\x9f", "\x98\x80", " 世", "界", "\xe4\xb8", "\x96 x")
}()

// toyTokenize encodes text greedily; control tokens are found if special is set.
func toyTokenize(s string, special bool) []int32 {
	out := []int32{}
	for s != "" {
		best := int32(s[0])
		for id := toyStart; id < len(toyPieces); id++ {
			if id < toyWords && !special {
				continue
			}
			if p := toyPieces[id]; strings.HasPrefix(s, p) && utf8.ValidString(p) && len(p) > len(toyPieces[best]) {
				best = int32(id)
			}
		}
		out = append(out, best)
		s = s[len(toyPieces[best]):]
	}
	return out
}

func toyBytes(ids []int32) string {
	var b strings.Builder
	for _, id := range ids {
		b.WriteString(toyPieces[id])
	}
	return b.String()
}

// toyDecode is what tokenizers do with bytes that are no text.
func toyDecode(ids []int32) string {
	var b strings.Builder
	for s := toyBytes(ids); s != ""; {
		r, n := utf8.DecodeRuneInString(s)
		b.WriteRune(r) // U+FFFD for a wrong byte
		s = s[n:]
	}
	return b.String()
}

// message is one of a chat.
type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

func toyRender(messages []message) string {
	var b strings.Builder
	for _, m := range messages {
		b.WriteString("<|im_start|>" + m.Role + "\n" + m.Content + "<|im_end|>\n")
	}
	return b.String() + "<|im_start|>assistant\n"
}

// toyChoice is how a stand-in is asked to draw.
type toyChoice struct {
	temperature float64
	seed        uint64
	bias        map[int32]float64
	ignoreEOS   bool
}

func toyHash(ids []int32) uint64 {
	h := fnv.New64a()
	for _, id := range ids {
		h.Write([]byte{byte(id), byte(id >> 8)})
	}
	return mix(h.Sum64())
}

func mix(x uint64) uint64 {
	x ^= x >> 31
	x *= 0x9e3779b97f4a7c15
	x ^= x >> 29
	x *= 0xbf58476d1ce4e5b9
	return x ^ x>>32
}

func toyLogits(ids []int32) []float64 {
	l := make([]float64, len(toyPieces))
	context := toyHash(ids)
	for i := range l {
		l[i] = float64(mix(context+uint64(i)*0x100000001b3)%10000) / 1000
		if i == toyStart || i == toyBOS {
			l[i] = -50
		}
	}
	l[toyEnd] -= 2
	return l
}

func toyLogProbs(l []float64) []float64 {
	m, sum := slices.Max(l), 0.0
	for _, v := range l {
		sum += math.Exp(v - m)
	}
	out := make([]float64, len(l))
	for i, v := range l {
		out[i] = v - m - math.Log(sum)
	}
	return out
}

// toyNext returns the next token and the log-probabilities of all.
func toyNext(ids []int32, step int, c toyChoice) (int32, []float64) {
	l := toyLogits(ids)
	probs := toyLogProbs(l)
	best, most := 0, math.Inf(-1)
	for i, v := range l {
		v += c.bias[int32(i)]
		if c.ignoreEOS && i == toyEnd {
			continue
		}
		if c.temperature > 0 {
			u := (float64(mix(mix(c.seed)+uint64(step)*0x10001+uint64(i)*0x100000001b3)%(1<<52)) + 0.5) / (1 << 52)
			v = v/c.temperature - math.Log(-math.Log(u))
		}
		if v > most {
			best, most = i, v
		}
	}
	return int32(best), probs
}

func toyTop(probs []float64, n int) []int32 {
	ids := make([]int32, len(probs))
	for i := range ids {
		ids[i] = int32(i)
	}
	slices.SortStableFunc(ids, func(a, b int32) int {
		if probs[a] > probs[b] {
			return -1
		}
		if probs[a] < probs[b] {
			return 1
		}
		return 0
	})
	return ids[:min(n, len(ids))]
}

// Server is an in-process server, with switches for what goes wrong.
type Server struct {
	URL       string
	Active    atomic.Int32 // requests being decoded
	Most      atomic.Int32
	Calls     atomic.Int32 // requests for tokens
	Seen      sync.Map     // path to the last body
	Busy      atomic.Int32 // requests for tokens to refuse with 503
	Pause     atomic.Int64 // before each token
	Mangle    atomic.Value // func(event []byte) []byte
	Broken    atomic.Bool  // streams break off after three tokens
	Metrics   atomic.Bool  // whether /metrics is there
	Info      atomic.Bool  // whether development endpoints are there
	Invariant atomic.Bool  // deterministic mode
	Tape      atomic.Bool  // vLLM has the logits processor
	Whole     atomic.Bool  // SGLang repeats all tokens
}

func (s *Server) begin() func() {
	s.Calls.Add(1)
	n := s.Active.Add(1)
	for {
		m := s.Most.Load()
		if n <= m || s.Most.CompareAndSwap(m, n) {
			break
		}
	}
	return func() { s.Active.Add(-1) }
}

func (s *Server) refuse(w http.ResponseWriter) bool {
	if s.Busy.Add(-1) >= 0 {
		reply(w, 503, map[string]any{"error": map[string]any{"message": "the queue is full", "code": 503}})
		return true
	}
	s.Busy.Store(0)
	return false
}

func (s *Server) event(w http.ResponseWriter, prefix string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	if f, ok := s.Mangle.Load().(func([]byte) []byte); ok && f != nil {
		b = f(b)
	}
	fmt.Fprintf(w, "%s%s\n", prefix, b)
	if prefix != "" {
		fmt.Fprint(w, "\n")
	}
	w.(http.Flusher).Flush()
}

func (s *Server) wait(r *http.Request) bool {
	if p := time.Duration(s.Pause.Load()); p > 0 {
		select {
		case <-r.Context().Done():
			return false
		case <-time.After(p):
		}
	}
	return r.Context().Err() == nil
}

func reply(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(v)
}

// body decodes a request and keeps it for tests to look at.
func body[T any](s *Server, w http.ResponseWriter, r *http.Request) (T, bool) {
	var v T
	var raw json.RawMessage
	if err := json.NewDecoder(r.Body).Decode(&raw); err != nil {
		reply(w, 400, map[string]any{"error": map[string]any{"message": err.Error()}})
		return v, false
	}
	s.Seen.Store(r.URL.Path, string(raw))
	if err := json.Unmarshal(raw, &v); err != nil {
		reply(w, 422, map[string]any{"detail": []any{map[string]any{"msg": err.Error()}}})
		return v, false
	}
	return v, true
}

func serve(t *testing.T, s *Server, mux *http.ServeMux) *Server {
	srv := httptest.NewServer(mux)
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	s.URL = srv.URL
	s.Metrics.Store(true)
	return s
}

func biasOf(m map[string]float64) map[int32]float64 {
	out := make(map[int32]float64)
	for k, v := range m {
		id, _ := strconv.Atoi(k)
		out[int32(id)] = v
	}
	return out
}

func valid(ids []int32) bool {
	for _, id := range ids {
		if id < 0 || int(id) >= len(toyPieces) {
			return false
		}
	}
	return len(ids) > 0
}
