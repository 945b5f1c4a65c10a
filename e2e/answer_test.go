package e2e

import (
	"bytes"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

const question = "What is Mesh?"

// ask is a chat with one question, answered by the likeliest tokens.
func ask(t *testing.T, question string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model:       model(t),
		Messages:    []openai.ChatCompletionMessageParamUnion{openai.UserMessage(question)},
		Temperature: openai.Float(0),
	}
}

// model returns the first model that the light node lists.
func model(t *testing.T) string {
	t.Helper()
	c := shared.client()
	list, err := c.Models.List(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Data) == 0 {
		t.Fatal("no model is listed")
	}
	return list.Data[0].ID
}

func complete(t *testing.T, p openai.ChatCompletionNewParams, opts ...option.RequestOption) *openai.ChatCompletion {
	t.Helper()
	c := shared.client()
	answer, err := c.Chat.Completions.New(testContext(t), p, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func TestChat(t *testing.T) {
	var res *http.Response
	p := ask(t, question)
	answer := complete(t, p, option.WithResponseInto(&res))
	if len(answer.Choices) != 1 || !strings.Contains(answer.Choices[0].Message.Content, "peer-to-peer") {
		t.Fatalf("answer: %s", answer.RawJSON())
	}
	if c := answer.Choices[0]; c.FinishReason != "stop" || c.Message.Role != "assistant" {
		t.Errorf("finish %q, role %q", c.FinishReason, c.Message.Role)
	}
	if answer.Model != p.Model || answer.SystemFingerprint == "" || answer.Created == 0 {
		t.Errorf("model %q, fingerprint %q, created %d", answer.Model, answer.SystemFingerprint, answer.Created)
	}
	u := answer.Usage
	if u.PromptTokens < 1 || u.CompletionTokens < 5 || u.TotalTokens != u.PromptTokens+u.CompletionTokens {
		t.Errorf("usage: %s", u.RawJSON())
	}
	receipt := res.Header.Get("Mesh-Receipt")
	if prefix, ok := strings.CutPrefix(answer.ID, "chatcmpl-"); !ok || len(receipt) != 64 || !strings.HasPrefix(receipt, prefix) {
		t.Errorf("ID %q, receipt %q", answer.ID, receipt)
	}
	host := res.Header.Get("Mesh-Host")
	for _, h := range shared.Hosts {
		if h.Peer == host {
			return
		}
	}
	t.Errorf("%q answered, which is none of the hosts", host)
}

// streamed adds up a stream and checks the order of its chunks.
func streamed(t *testing.T, p openai.ChatCompletionNewParams) (openai.ChatCompletionAccumulator, []openai.ChatCompletionChunk) {
	t.Helper()
	c := shared.client()
	stream := c.Chat.Completions.NewStreaming(testContext(t), p)
	defer stream.Close()
	var sum openai.ChatCompletionAccumulator
	var chunks []openai.ChatCompletionChunk
	for stream.Next() {
		chunk := stream.Current()
		if !sum.AddChunk(chunk) {
			t.Fatalf("chunk %d does not fit those before it: %s", len(chunks), chunk.RawJSON())
		}
		chunks = append(chunks, chunk)
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if len(chunks) < 2 || chunks[0].Choices[0].Delta.Role != "assistant" {
		t.Fatalf("%d chunks, the first must have the role", len(chunks))
	}
	return sum, chunks
}

func TestStream(t *testing.T) {
	p := ask(t, question)
	want := complete(t, p)
	sum, chunks := streamed(t, p)
	if got := sum.Choices[0]; got.Message.Content != want.Choices[0].Message.Content || got.FinishReason != "stop" {
		t.Errorf("streamed %q (%s), whole %q", got.Message.Content, got.FinishReason, want.Choices[0].Message.Content)
	}
	for _, c := range chunks {
		if len(c.Choices) != 1 || c.JSON.Usage.Valid() {
			t.Errorf("chunk without include_usage: %s", c.RawJSON())
		}
	}
}

func TestStreamLong(t *testing.T) {
	p := ask(t, question)
	p.MaxTokens = openai.Int(400)
	p.SetExtraFields(map[string]any{"ignore_eos": true})
	_, chunks := streamed(t, p)
	// On a busy machine several tokens share an event, so a short answer may come in one piece; a long one may not.
	if len(chunks) < 6 {
		t.Errorf("%d chunks for 400 tokens: it was not streamed", len(chunks))
	}
}

func TestStreamUsage(t *testing.T) {
	p := ask(t, question)
	want := complete(t, p)
	p.StreamOptions = openai.ChatCompletionStreamOptionsParam{IncludeUsage: openai.Bool(true)}
	_, chunks := streamed(t, p)
	last := chunks[len(chunks)-1]
	if len(last.Choices) != 0 || last.Usage.PromptTokens != want.Usage.PromptTokens ||
		last.Usage.CompletionTokens != want.Usage.CompletionTokens || last.Usage.TotalTokens != want.Usage.TotalTokens {
		t.Errorf("last chunk %s, usage of the whole answer %s", last.RawJSON(), want.Usage.RawJSON())
	}
	for _, c := range chunks[:len(chunks)-1] {
		if c.Usage.TotalTokens != 0 || !strings.Contains(c.RawJSON(), `"usage":null`) {
			t.Errorf("an earlier chunk: %s", c.RawJSON())
		}
	}
}

func TestStop(t *testing.T) {
	p := ask(t, question)
	full := complete(t, p).Choices[0].Message.Content
	words := strings.Fields(full)
	if len(words) < 6 {
		t.Fatalf("answer too short to stop in: %q", full)
	}
	// Across two words, so that no single token is the stop string.
	stop := words[3] + " " + words[4]
	want := full[:strings.Index(full, stop)]
	p.Stop = openai.ChatCompletionNewParamsStopUnion{OfStringArray: []string{"\x00never", stop}}
	got := complete(t, p).Choices[0]
	if got.Message.Content != want || got.FinishReason != "stop" {
		t.Errorf("stopped at %q: %q (%s), want %q", stop, got.Message.Content, got.FinishReason, want)
	}
	if sum, _ := streamed(t, p); sum.Choices[0].Message.Content != want {
		t.Errorf("streamed: %q, want %q", sum.Choices[0].Message.Content, want)
	}
}

func TestMaxTokens(t *testing.T) {
	p := ask(t, question)
	p.MaxCompletionTokens = openai.Int(5)
	answer := complete(t, p)
	if answer.Choices[0].FinishReason != "length" || answer.Usage.CompletionTokens != 5 {
		t.Errorf("finish %q after %d tokens, want length after 5", answer.Choices[0].FinishReason, answer.Usage.CompletionTokens)
	}
}

func TestChoices(t *testing.T) {
	p := ask(t, question)
	p.N = openai.Int(3)
	p.Seed = openai.Int(1)
	one := complete(t, ask(t, question))
	answer := complete(t, p)
	if len(answer.Choices) != 3 || answer.Usage.CompletionTokens != 3*one.Usage.CompletionTokens ||
		answer.Usage.PromptTokens != one.Usage.PromptTokens {
		t.Fatalf("%d choices, usage %s, usage of one %s", len(answer.Choices), answer.Usage.RawJSON(), one.Usage.RawJSON())
	}
	for i, c := range answer.Choices {
		if c.Index != int64(i) || c.Message.Content != one.Choices[0].Message.Content {
			t.Errorf("choice %d: index %d, %q; want %q", i, c.Index, c.Message.Content, one.Choices[0].Message.Content)
		}
	}
	p.Temperature = openai.Float(2)
	p.MaxCompletionTokens = openai.Int(40)
	sum, _ := streamed(t, p)
	distinct := map[string]bool{}
	for _, c := range sum.Choices {
		distinct[c.Message.Content] = true
	}
	if len(distinct) < 2 {
		t.Errorf("three choices at temperature 2 are all %q", sum.Choices[0].Message.Content)
	}
}

func TestSeed(t *testing.T) {
	p := ask(t, question)
	p.MaxCompletionTokens = openai.Int(40)
	for _, temperature := range []float64{1, 2} {
		p.Temperature = openai.Float(temperature)
		distinct := map[string]bool{}
		for seed := range int64(4) {
			p.Seed = openai.Int(seed)
			first := complete(t, p).Choices[0].Message.Content
			for range 3 {
				if again := complete(t, p).Choices[0].Message.Content; again != first {
					t.Errorf("temperature %g, seed %d: %q, then %q", temperature, seed, first, again)
				}
			}
			distinct[first] = true
		}
		if temperature == 2 && len(distinct) < 2 {
			t.Errorf("four seeds at temperature 2 all gave %v", distinct)
		}
	}
}

func TestLogProbs(t *testing.T) {
	p := ask(t, question)
	p.Logprobs = openai.Bool(true)
	p.TopLogprobs = openai.Int(3)
	whole := complete(t, p).Choices[0]
	sum, chunks := streamed(t, p)
	var parts []openai.ChatCompletionTokenLogprob
	for _, c := range chunks {
		parts = append(parts, c.Choices[0].Logprobs.Content...)
	}
	if len(parts) != len(whole.Logprobs.Content) {
		t.Errorf("%d tokens streamed, %d in the whole answer", len(parts), len(whole.Logprobs.Content))
	}
	for name, got := range map[string]struct {
		text   string
		tokens []openai.ChatCompletionTokenLogprob
	}{"whole": {whole.Message.Content, whole.Logprobs.Content}, "stream": {sum.Choices[0].Message.Content, parts}} {
		var text bytes.Buffer
		for i, tok := range got.tokens {
			for _, b := range tok.Bytes {
				text.WriteByte(byte(b))
			}
			if len(tok.TopLogprobs) != 3 || tok.Logprob > 0 || tok.TopLogprobs[0].Logprob < tok.TopLogprobs[1].Logprob {
				t.Errorf("%s: token %d: %s", name, i, tok.RawJSON())
			} else if top := tok.TopLogprobs[0]; top.Token != tok.Token || top.Logprob != tok.Logprob {
				t.Errorf("%s: token %d at temperature 0 is %q, the likeliest is %q", name, i, tok.Token, top.Token)
			}
		}
		if text.String() != got.text {
			t.Errorf("%s: tokens say %q, the answer is %q", name, text.String(), got.text)
		}
	}
}

func TestToolsArePassedOn(t *testing.T) {
	p := ask(t, question)
	p.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(openai.FunctionDefinitionParam{
		Name: "now", Parameters: openai.FunctionParameters{"type": "object", "properties": map[string]any{}},
	})}
	answer := complete(t, p)
	if c := answer.Choices[0]; c.Message.Content == "" && len(c.Message.ToolCalls) == 0 {
		t.Errorf("neither text nor a call: %s", answer.RawJSON())
	}
}

func TestCompletion(t *testing.T) {
	c := shared.client()
	p := openai.CompletionNewParams{
		Model:       openai.CompletionNewParamsModel(model(t)),
		Prompt:      openai.CompletionNewParamsPromptUnion{OfArrayOfStrings: []string{"Mesh is a", "A receipt is"}},
		MaxTokens:   openai.Int(8),
		Temperature: openai.Float(0),
		Logprobs:    openai.Int(2),
	}
	both, err := c.Completions.New(testContext(t), p)
	if err != nil {
		t.Fatal(err)
	}
	if len(both.Choices) != 2 {
		t.Fatalf("two prompts: %s", both.RawJSON())
	}
	for i, prompt := range p.Prompt.OfArrayOfStrings {
		p.Prompt = openai.CompletionNewParamsPromptUnion{OfString: openai.String(prompt)}
		stream := c.Completions.NewStreaming(testContext(t), p)
		var text string
		for stream.Next() {
			for _, choice := range stream.Current().Choices {
				text += choice.Text
			}
		}
		got := both.Choices[i]
		if err := stream.Err(); err != nil || text == "" || text != got.Text {
			t.Errorf("prompt %d alone, streamed: %q, %v; with the other: %q", i, text, err, got.Text)
		}
		if strings.Join(got.Logprobs.Tokens, "") != got.Text || len(got.Logprobs.TopLogprobs) != len(got.Logprobs.Tokens) {
			t.Errorf("prompt %d: %s", i, got.RawJSON())
		}
	}
}

func TestEmbeddings(t *testing.T) {
	c := shared.client()
	p := openai.EmbeddingNewParams{
		Model: model(t),
		Input: openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: []string{question, "A receipt is"}},
	}
	var res *http.Response
	both, err := c.Embeddings.New(testContext(t), p, option.WithResponseInto(&res))
	if err != nil {
		t.Fatal(err)
	}
	if len(both.Data) != 2 || both.Model != p.Model || both.Usage.PromptTokens < 2 || both.Usage.TotalTokens != both.Usage.PromptTokens {
		t.Fatalf("two inputs: %s", both.RawJSON())
	}
	if len(res.Header.Get("Mesh-Receipt")) != 64 || res.Header.Get("Mesh-Host") == "" {
		t.Errorf("headers %v", res.Header)
	}
	width := len(both.Data[0].Embedding)
	for i, text := range p.Input.OfArrayOfStrings {
		square := 0.0
		for _, x := range both.Data[i].Embedding {
			square += x * x
		}
		if square < 0.999 || square > 1.001 {
			t.Errorf("input %d: the square of the length is %g", i, square)
		}
		p.Input = openai.EmbeddingNewParamsInputUnion{OfString: openai.String(text)}
		p.Dimensions = openai.Int(int64(width))
		one, err := c.Embeddings.New(testContext(t), p)
		if err != nil {
			t.Fatal(err)
		}
		if both.Data[i].Index != int64(i) || !slices.Equal(one.Data[0].Embedding, both.Data[i].Embedding) {
			t.Errorf("input %d alone has another vector than with the other", i)
		}
	}
	p.Dimensions = openai.Int(int64(width) + 1)
	_, err = c.Embeddings.New(testContext(t), p)
	wantError(t, err, 400, "invalid_value", "dimensions")
}

func TestModelsAndIdentity(t *testing.T) {
	c := shared.client()
	name := model(t)
	one, err := c.Models.Get(testContext(t), name)
	if err != nil || one.ID != name || one.Object != "model" {
		t.Errorf("model %q: %+v, %v", name, one, err)
	}
	var id struct{ Peer, Network, Version string }
	if err := c.Get(testContext(t), "identity", nil, &id); err != nil || id.Peer != shared.Peer || id.Network == "" || id.Version == "" {
		t.Errorf("identity: %+v, %v; want peer %s", id, err, shared.Peer)
	}
}
