package e2e

import (
	"context"
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

// wantError checks an error as the SDK reports it.
func wantError(t *testing.T, err error, status int, code, param string) {
	t.Helper()
	var e *openai.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an error of status %d", err, status)
	}
	if e.StatusCode != status || e.Code != code || e.Param != param || e.Message == "" || e.Type == "" {
		t.Errorf("status %d, %s; want %d, code %q, param %q", e.StatusCode, e.RawJSON(), status, code, param)
	}
}

func TestErrors(t *testing.T) {
	c := shared.client()
	for _, tc := range []struct {
		name        string
		change      func(*openai.ChatCompletionNewParams)
		opts        []option.RequestOption
		status      int
		code, param string
	}{
		{"unknown model", func(p *openai.ChatCompletionNewParams) { p.Model = "no-such-model" }, nil, 404, "model_not_found", "model"},
		{"bad JSON", nil, []option.RequestOption{option.WithRequestBody("application/json", []byte(`{"model":`))}, 400, "invalid_json", ""},
		{"wrong type", nil, []option.RequestOption{option.WithJSONSet("temperature", "hot")}, 400, "invalid_type", "temperature"},
		{"out of range", func(p *openai.ChatCompletionNewParams) { p.Temperature = openai.Float(9) }, nil, 400, "invalid_value", "temperature"},
		{"no messages", func(p *openai.ChatCompletionNewParams) { p.Messages = nil }, nil, 400, "invalid_value", "messages"},
		{"too long", func(p *openai.ChatCompletionNewParams) {
			p.Messages[0] = openai.UserMessage(strings.Repeat("What is Mesh? ", 5000))
		}, nil, 400, "context_length_exceeded", "messages"},
		{"too many tokens asked for", func(p *openai.ChatCompletionNewParams) { p.MaxCompletionTokens = openai.Int(100_000) }, nil, 400, "context_length_exceeded", "messages"},
		{"image", func(p *openai.ChatCompletionNewParams) {
			p.Messages[0] = openai.UserMessage([]openai.ChatCompletionContentPartUnionParam{
				openai.ImageContentPart(openai.ChatCompletionContentPartImageImageURLParam{URL: "data:image/png;base64,AA=="})})
		}, nil, 400, "invalid_value", "messages[0].content[0].type"},
		{"too large", func(p *openai.ChatCompletionNewParams) {
			p.Messages[0] = openai.UserMessage(strings.Repeat("a", 3<<20))
		}, nil, 413, "request_too_large", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := ask(t, question)
			if tc.change != nil {
				tc.change(&p)
			}
			_, err := c.Chat.Completions.New(testContext(t), p, tc.opts...)
			wantError(t, err, tc.status, tc.code, tc.param)
			// A stream that cannot begin is an error with a status too.
			if tc.opts == nil {
				stream := c.Chat.Completions.NewStreaming(testContext(t), p)
				if stream.Next() {
					t.Errorf("streamed: %s", stream.Current().RawJSON())
				}
				wantError(t, stream.Err(), tc.status, tc.code, tc.param)
			}
		})
	}
	t.Run("model", func(t *testing.T) {
		_, err := c.Models.Get(testContext(t), "no-such-model")
		wantError(t, err, 404, "model_not_found", "model")
	})
	t.Run("path", func(t *testing.T) {
		wantError(t, c.Get(testContext(t), "nothing", nil, nil), 404, "not_found", "")
	})
	t.Run("method", func(t *testing.T) {
		wantError(t, c.Get(testContext(t), "chat/completions", nil, nil), 405, "method_not_allowed", "")
	})
}

// With its only host killed, a light node says so.
func TestNoHost(t *testing.T) {
	n, err := start(1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.stop(); err != nil {
			t.Error(err)
		}
	}()
	c, p := n.client(), ask(t, question)
	if _, err := c.Chat.Completions.New(testContext(t), p); err != nil {
		t.Fatalf("while the host is there: %v", err)
	}
	if err := syscall.Kill(n.Hosts[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	asked := time.Now()
	_, err = c.Chat.Completions.New(testContext(t), p)
	wantError(t, err, 503, "no_host", "")
	var e *openai.Error
	if errors.As(err, &e) && e.Response.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	t.Logf("said so after %v", time.Since(asked).Round(time.Millisecond))
	// The model is unknown or without a host, and both are the truth.
	if _, err = c.Chat.Completions.New(testContext(t), p); err == nil {
		t.Error("an answer without a host")
	}
}

// long starts k streams of many long choices, calls began when each has spoken,
// and returns when all have ended.
func long(t *testing.T, ctx context.Context, k int, began func()) {
	t.Helper()
	c, p := shared.client(), ask(t, question)
	p.N = openai.Int(16)
	p.Temperature = openai.Float(1)
	var first, all sync.WaitGroup
	first.Add(k)
	for range k {
		all.Go(func() {
			stream := c.Chat.Completions.NewStreaming(ctx, p, option.WithJSONSet("ignore_eos", true))
			defer stream.Close()
			spoke := stream.Next()
			first.Done()
			if !spoke {
				t.Errorf("no first chunk: %v", stream.Err())
			}
			for stream.Next() {
			}
			if err := stream.Err(); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		})
	}
	first.Wait()
	began()
	all.Wait()
}

// A client that leaves frees the hosts' slots within a second. The same work is
// first done to its end, to know that it would have taken much longer.
func TestCancel(t *testing.T) {
	const enough = 4 * time.Second
	k := 1
	for ; ; k *= 2 {
		if k > 64 {
			t.Fatal("this machine is too fast for the test")
		}
		start := time.Now()
		long(t, testContext(t), k, func() {})
		if took := time.Since(start); took > enough {
			t.Logf("%d streams to their end: %v", k, took.Round(time.Millisecond))
			break
		}
	}
	// The second is the product's. That a busy machine takes longer once does not count.
	for range 3 {
		if took := leave(t, k); took <= time.Second {
			return
		}
	}
	t.Error("three times that was more than 1 s")
}

// leave starts k streams, cancels them and returns after which time all slots were free.
func leave(t *testing.T, k int) (took time.Duration) {
	t.Helper()
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	long(t, ctx, k, func() {
		before, err := shared.busy(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if before == 0 {
			t.Error("the hosts are idle while they stream")
		}
		left := time.Now()
		cancel()
		for {
			now, err := shared.busy(t.Context())
			took = time.Since(left)
			if err != nil {
				t.Fatal(err)
			}
			if now == 0 {
				t.Logf("%d busy slots were free after %v", before, took.Round(time.Millisecond))
				return
			}
			if took > 10*time.Second {
				t.Fatalf("%d slots are still busy %v after the clients left", now, took)
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	return took
}
