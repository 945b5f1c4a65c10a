package adapter

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/adapter/standin"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

func standIns(t *testing.T) map[string]*standin.Server {
	return map[string]*standin.Server{"vllm": standin.NewVLLM(t), "sglang": standin.NewSGLang(t), "llama-server": standin.NewLlama(t), "ollama": standin.NewOllama(t)}
}

func openOne(t *testing.T, cfg Config) inference.Engine {
	t.Helper()
	g := &target{cfg: cfg}
	e, _ := g.open(t)
	return e
}

// TestBusy asks again while a server is full, and gives up in the end.
func TestBusy(t *testing.T) {
	for name, s := range standIns(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := openOne(t, Config{URL: s.URL})
			gen := inference.Generation{Prompt: encode(t, e, user("Hello")), MaxTokens: 3, IgnoreEOS: true}
			s.Busy.Store(2)
			if got, _ := generate(t, e, gen); len(got) == 0 {
				t.Errorf("no tokens after two refusals")
			}
			s.Busy.Store(1 << 20)
			defer s.Busy.Store(0)
			_, err := e.Generate(t.Context(), gen, func(inference.Token) error { return nil })
			if !errors.Is(err, inference.ErrBusy) {
				t.Errorf("a full server: %v", err)
			}
		})
	}
}

// TestStall ends an answer of a server that says nothing more.
func TestStall(t *testing.T) {
	for name, s := range standIns(t) {
		t.Run(name, func(t *testing.T) {
			e := openOne(t, Config{URL: s.URL, Stall: 50 * time.Millisecond})
			prompt := encode(t, e, user("Hello"))
			s.Pause.Store(int64(time.Minute))
			_, err := e.Generate(t.Context(), inference.Generation{Prompt: prompt, MaxTokens: 3}, func(inference.Token) error { return nil })
			if !errors.Is(err, errStalled) {
				t.Errorf("a silent server: %v", err)
			}
		})
	}
}

// TestBroken gets streams that end before their end, and events that make no sense.
func TestBroken(t *testing.T) {
	replace := func(old, with string) func([]byte) []byte {
		return func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(old), []byte(with)) }
	}
	for name, s := range standIns(t) {
		t.Run(name, func(t *testing.T) {
			e := openOne(t, Config{URL: s.URL})
			gen := inference.Generation{Prompt: encode(t, e, user("Hello")), MaxTokens: 20, IgnoreEOS: true}
			want, _ := generate(t, e, gen)
			fails := func(what string) {
				t.Helper()
				var got []int32
				fin, err := e.Generate(t.Context(), gen, func(tok inference.Token) error { got = append(got, tok.ID); return nil })
				if err == nil {
					t.Errorf("%s: finish %q, no error", what, fin.Reason)
				}
				if len(got) > len(want) || !slices.Equal(got, idsOf(want[:len(got)])) {
					t.Errorf("%s: tokens %v, want the first of %v", what, got, idsOf(want))
				}
			}
			s.Broken.Store(true)
			fails("a stream that breaks off")
			s.Broken.Store(false)
			for what, f := range map[string]func([]byte) []byte{
				"no JSON":         func(b []byte) []byte { return b[:len(b)/2] },
				"an error":        func([]byte) []byte { return []byte(`{"error":{"message":"CUDA error","code":500}}`) },
				"another type":    replace(`":`, `":{},"x":`),
				"a wrong finish":  replace(`"length"`, `"abort"`),
				"wrong type of s": replace(`"stop_type":"limit"`, `"stop_type":5`),
			} {
				if what == "wrong type of s" && name != "llama-server" || what == "a wrong finish" && (name == "llama-server" || name == "ollama") || what == "another type" && name == "ollama" {
					continue
				}
				s.Mangle.Store(f)
				fails(what)
				s.Mangle.Store(func(b []byte) []byte { return b })
			}
			if got, _ := generate(t, e, gen); !slices.Equal(idsOf(got), idsOf(want)) {
				t.Errorf("afterwards: %v, want %v", idsOf(got), idsOf(want))
			}
		})
	}
}

// TestOutside refuses ids that no vocabulary has.
func TestOutside(t *testing.T) {
	s := standin.NewVLLM(t)
	e := openOne(t, Config{URL: s.URL})
	for _, id := range []string{"-1", "2147483648", "1e9"} {
		s.Mangle.Store(func(b []byte) []byte {
			i := bytes.Index(b, []byte(`"token_ids":[`))
			j := i + bytes.IndexByte(b[i:], ']')
			return slices.Concat(b[:i], []byte(`"token_ids":[`+id), b[j:])
		})
		_, err := e.Generate(t.Context(), inference.Generation{Prompt: []int32{97}, MaxTokens: 3}, func(tok inference.Token) error {
			t.Errorf("token %d", tok.ID)
			return nil
		})
		if err == nil {
			t.Errorf("id %s: no error", id)
		}
	}
}

// TestHealth notices that a server is gone, and that it is back.
func TestHealth(t *testing.T) {
	s := standin.NewLlama(t)
	var down atomic.Bool
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down.Load() && (r.URL.Path == "/metrics" || r.URL.Path == "/slots" || r.URL.Path == "/health") {
			w.WriteHeader(500)
			return
		}
		req, _ := http.NewRequestWithContext(r.Context(), r.Method, s.URL+r.URL.Path, r.Body)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			w.WriteHeader(502)
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
		var b bytes.Buffer
		b.ReadFrom(resp.Body)
		w.Write(b.Bytes())
	}))
	defer front.Close()
	s.Metrics.Store(false) // /slots then
	engines, _, err := Open(t.Context(), Config{URL: front.URL + "/v1/", Poll: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	e := engines[0].(*engine)
	defer e.Close()
	wait := func(want bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); (e.Healthy() == nil) != want; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("healthy %v", e.Healthy())
			}
		}
	}
	wait(true)
	down.Store(true)
	wait(false)
	down.Store(false)
	wait(true)
}

// TestDetectNothing names what is wrong with an address.
func TestDetectNothing(t *testing.T) {
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("<html>hello")) }))
	defer page.Close()
	locked := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(401) }))
	defer locked.Close()
	openai := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/models" {
			http.NotFound(w, r)
			return
		}
		w.Write([]byte(`{"data":[{"id":"x","owned_by":"someone"}]}`))
	}))
	defer openai.Close()
	for _, c := range []struct{ url, want string }{
		{page.URL, "none of vLLM"}, {locked.URL, "API key"}, {openai.URL, "none of vLLM"}, {"http://127.0.0.1:1", "nobody listens there"},
		{"ftp://x", "want http"}, {"http://", "want http"}, {"http://user:pw@x", "without user"}, {"", "want http"},
	} {
		_, _, err := Open(t.Context(), Config{URL: c.url})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.url, err, c.want)
		}
	}
	s := standin.NewVLLM(t)
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{URL: s.URL, Models: []Model{{Server: "other"}}}, `no model "other", but toy/toy-1`}, {Config{URL: s.URL, Slots: -1}, "negative"},
	} {
		if _, _, err := Open(t.Context(), c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

// TestNames gives a model of a server the operator's name and ID.
func TestNames(t *testing.T) {
	s := standin.NewOllama(t)
	e := openOne(t, Config{URL: s.URL, Slots: 4, Models: []Model{{Name: "mine"}}})
	if i := e.Info(); i.Name != "mine" || i.ID != DeclaredID("mine", Unicode) || i.Slots != 4 || i.Context != 3*256 || i.Vocab != 0x110000 {
		t.Errorf("info %+v", i)
	}
	id := mesh.Hash{7}
	e = openOne(t, Config{URL: standin.NewLlama(t).URL, Context: 100, Slots: 9, Models: []Model{{Server: "toy.gguf", ID: id}}})
	if i := e.Info(); i.Name != "toy.gguf" || i.ID != id || i.Context != 100 || i.Slots != 3 {
		t.Errorf("info %+v", i)
	}
	if DeclaredID("a", Tokens) == DeclaredID("a", Unicode) {
		t.Error("one ID for two vocabularies")
	}
	// The encoding is fixed: hosts that declare one name have to meet.
	if got := DeclaredID("Qwen/Qwen3-235B-A22B", Tokens).String(); got != "7770324d4e41a40e144ed525dc2977590bbfa6dab1725f1581744072cdb09bed" {
		t.Errorf("declared ID %s", got)
	}
}

// TestClaimed marks what only the operator says.
func TestClaimed(t *testing.T) {
	s := standin.NewVLLM(t)
	e, d := (&target{cfg: Config{URL: s.URL, Deterministic: true, GPU: "NVIDIA H200", KV: "bf16"}}).open(t)
	f := e.Info().Fingerprint
	if inference.ClassOf(f) != inference.ClassPinned || !strings.HasSuffix(f.EngineVersion, "batch-invariant claimed") || !d.Capable.Claimed || d.Capable.Deterministic {
		t.Errorf("fingerprint %v, %+v", f, d.Capable)
	}
	e, _ = (&target{cfg: Config{URL: s.URL, GPU: "NVIDIA H200", KV: "bf16"}}).open(t)
	if c := inference.ClassOf(e.Info().Fingerprint); c != inference.ClassTolerance {
		t.Errorf("without the mode: %s", c)
	}
}

// TestTape hands the sampling to the logits processor where there is one.
func TestTape(t *testing.T) {
	s := standin.NewVLLM(t)
	s.Tape.Store(true)
	e, d := (&target{cfg: Config{URL: s.URL}}).open(t)
	if !d.Tape {
		t.Fatal("the logits processor was not noticed")
	}
	group := mesh.Address{9}
	generate(t, e, inference.Generation{
		Prompt: []int32{97, 98}, Prefix: []int32{99}, MaxTokens: 4, Tape: mesh.Hash{1, 2}, Group: group,
		Sampling: &inferencepb.Sampling{Temperature: 0.7, TopP: 0.9, TopK: 40, MinP: 0.1, FrequencyPenalty: 0.5, LogitBias: []*inferencepb.LogitBias{{Token: 5, Bias: -1.5}}},
	})
	raw, _ := s.Seen.Load("/v1/completions")
	var b map[string]any
	if err := json.Unmarshal([]byte(raw.(string)), &b); err != nil {
		t.Fatal(err)
	}
	x, _ := b["vllm_xargs"].(map[string]any)
	tape := mesh.Hash{1, 2}
	for name, want := range map[string]any{
		"mesh_tape": hex.EncodeToString(tape[:]), "mesh_prefix": 1.0, "mesh_temperature": 0.7, "mesh_top_p": 0.9, "mesh_top_k": 40.0, "mesh_min_p": 0.1,
		"mesh_frequency": 0.5, "mesh_presence": 0.0, "mesh_repetition": 0.0,
	} {
		if x[name] != want {
			t.Errorf("%s is %v, want %v", name, x[name], want)
		}
	}
	if b["temperature"] != 0.0 || b["seed"] != nil || b["logit_bias"] != nil || b["frequency_penalty"] != 0.0 {
		t.Errorf("vLLM draws as well: %v", raw)
	}
	if b["cache_salt"] != base64.RawURLEncoding.EncodeToString(group[:]) {
		t.Errorf("cache salt %v", b["cache_salt"])
	}
}

// TestSlots keeps a sequence in the slot that has its beginning, and groups apart.
func TestSlots(t *testing.T) {
	s := newLlamaSlots(3)
	a, b := mesh.Address{1}, mesh.Address{2}
	one := s.take([]int32{1, 2, 3}, a)
	two := s.take([]int32{1, 2, 3}, a)
	if one.id == two.id {
		t.Fatal("one slot for two requests")
	}
	s.give(one, []int32{1, 2, 3, 4}, a)
	s.give(two, []int32{7, 8}, a)
	if got := s.take([]int32{7, 8, 9}, a); got != two {
		t.Errorf("slot %d, want %d", got.id, two.id)
	} else {
		s.give(got, []int32{7, 8, 9}, a)
	}
	if got := s.take([]int32{7, 8, 9}, b); got == two {
		t.Error("another group's cache")
	}
}

func TestMetrics(t *testing.T) {
	m := metrics([]byte("# HELP a b\na{x=\"}\",y=\"1\"} 2\na 3.5\nab 9\na{} NaN\na +Inf\na\nb 1e3 1700000000\n"), "a", "b")
	if m["a"] != 5.5 || m["b"] != 1000 {
		t.Errorf("metrics %v", m)
	}
}

func FuzzEvents(f *testing.F) {
	f.Add([]byte("data: {\"choices\":[{\"token_ids\":[1],\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n"), uint8(0))
	f.Add([]byte("data: {\"choices\":[{\"logprobs\":{\"tokens\":[\"token_id:5\"],\"token_logprobs\":[-1],\"top_logprobs\":[{\"token_id:7\":-2}]}}]}\n\n"), uint8(0))
	f.Add([]byte("data: {\"output_ids\":[4,5],\"meta_info\":{\"completion_tokens\":2,\"output_token_logprobs\":[[-1,4,null],[-2,5,\"x\"]],\"finish_reason\":{\"type\":\"length\"}}}\r\n\r\n"), uint8(1))
	f.Add([]byte("data: {\"output_ids\":[4],\"meta_info\":{\"completion_tokens\":9}}\n"), uint8(1))
	f.Add([]byte("data: {\"tokens\":[1,2],\"stop\":true,\"stop_type\":\"eos\",\"completion_probabilities\":[{\"id\":2,\"logprob\":-1,\"top_logprobs\":[]}]}\n"), uint8(2))
	f.Add([]byte("{\"response\":\"h\\u00e9\",\"done\":false,\"logprobs\":[{\"logprob\":-1}]}\n{\"done\":true,\"done_reason\":\"stop\"}\n"), uint8(3))
	f.Add([]byte("error: {\"message\":\"x\"}\n: comment\nid: 5\nnonsense"), uint8(2))
	f.Fuzz(func(t *testing.T, b []byte, kind uint8) {
		w := &words{ctx: context.Background(), pieces: map[int32]string{}, runs: map[string]string{}, eos: map[int32]bool{}, prefix: "a",
			decode: func(context.Context, []int32) (string, error) { return "ax", nil }}
		n := 0
		e := &engine{words: w, desk: &desk{info: inference.ModelInfo{Vocab: 1000}}}
		j := &job{Generation: inference.Generation{LogProbs: true, Top: 2}, limit: 50, engine: e, text: &detokenizer{words: w}, alive: func() {},
			emit: func(tok inference.Token) error {
				if n++; tok.ID < 0 || tok.ID >= 1000 || len(tok.Top) > 2 {
					t.Errorf("token %+v", tok)
				}
				return nil
			}}
		o := &ollamaJob{g: j.Generation, rest: 50, alive: func() {}, emit: func(tok inference.Token) error {
			if n++; tok.ID < 0 || tok.ID >= unicodeVocab {
				t.Errorf("token %+v", tok)
			}
			return nil
		}}
		ctx := context.Background()
		each := func(field string, data []byte) error {
			if err := streamError(field, data); err != nil {
				return err
			}
			switch kind % 4 {
			case 0:
				var r vllmReply
				if err := json.Unmarshal(data, &r); err != nil || len(r.Choices) == 0 {
					return err
				}
				_, err := new(vllm).event(ctx, j, &r.Choices[0])
				return err
			case 1:
				var r sglangReply
				if err := json.Unmarshal(data, &r); err != nil {
					return err
				}
				_, err := new(sglang).event(ctx, j, &r, j.next)
				return err
			case 2:
				var r llamaReply
				if err := json.Unmarshal(data, &r); err != nil {
					return err
				}
				_, err := new(llama).hand(ctx, j, nil, &r)
				return err
			}
			var r ollamaReply
			if err := json.Unmarshal(data, &r); err != nil {
				return err
			}
			reason, err := o.line(ctx, &r)
			if err == nil && reason != inference.FinishOpen {
				err = errEnough
			}
			return err
		}
		if kind%4 == 3 {
			_ = readLines(bytes.NewReader(b), func(line []byte) error { return each("data", line) })
		} else {
			_ = readEvents(bytes.NewReader(b), each)
		}
		if n > 50 {
			t.Errorf("%d tokens of at most 50", n)
		}
	})
}

// FuzzDescribe reads whatever a server may say of itself.
func FuzzDescribe(f *testing.F) {
	f.Add([]byte(`{"data":[{"id":"x","owned_by":"vllm","max_model_len":5}]}`), []byte(`{"version":"1"}`))
	f.Add([]byte(`{"models":[{"name":"x","size":1,"details":{}}]}`), []byte(`{"total_slots":3,"build_info":"b1","default_generation_settings":{"n_ctx":9}}`))
	f.Add([]byte(`{"data":null}`), []byte(`{"max_total_num_tokens":5,"internal_states":[],"context_length":-4,"version":"\ud800"}`))
	f.Add([]byte(`{"vllm_env":{"VLLM_BATCH_INVARIANT":1},"system_env":{"nvidia_gpu_models":"GPU 0: x"}}`), []byte("vllm:num_requests_running{a=\"}\"} 5\n"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v1/models" || r.URL.Path == "/api/tags" || r.URL.Path == "/server_info" {
				w.Write(a)
				return
			}
			w.Write(b)
		})
		cfg := Config{URL: "http://fuzz", HTTP: &http.Client{Transport: roundTripper(h)}}
		engines, d, err := Open(t.Context(), cfg)
		for _, e := range engines {
			if i := e.Info(); i.Context <= 0 || i.Slots <= 0 || i.Vocab <= 0 {
				t.Errorf("info %+v", i)
			}
			e.Close()
		}
		if err == nil && (d == nil || len(engines) == 0) {
			t.Error("no engine and no error")
		}
		_ = errorText(a)
		_ = metrics(b, "vllm:num_requests_running")
	})
}

// roundTripper answers requests in this process.
type roundTripper http.HandlerFunc

func (h roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	h(w, r)
	return w.Result(), nil
}
