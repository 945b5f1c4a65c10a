package openai

import (
	"fmt"

	"github.com/gonka-mesh/mesh/inference"
)

// maxPrompts bounds the prompts of one completion request.
const maxPrompts = 128

// decodeCompletion reads the body of POST /v1/completions.
func decodeCompletion(body []byte) (*call, error) {
	f, err := root(body)
	if err != nil {
		return nil, err
	}
	c := &call{prompt: "prompt"}
	ask := common(f, c)
	// 16 is what OpenAI documents: a plain continuation has no natural end.
	ask.MaxTokens = int(f.integer("max_tokens", 1, inference.MaxTokens, 16))
	if f.has("logprobs") {
		ask.LogProbs = true
		ask.TopLogProbs = int(f.integer("logprobs", 0, inference.MaxTopLogProbs, 0))
	}
	if f.flag("echo") {
		f.fail("echo", "is not supported; the answer has new text only")
	}
	if f.text("suffix") != "" {
		f.fail("suffix", "is not supported")
	}
	if best := f.integer("best_of", 1, inference.MaxChoices, int64(c.choices)); best != int64(c.choices) {
		f.fail("best_of", "is not supported; use n")
	}
	texts, tokens := prompts(f, "prompt", maxPrompts)
	for _, text := range texts {
		if text == "" {
			f.fail("prompt", "is empty")
		}
		a := ask
		a.Prompt = text
		c.asks = append(c.asks, a)
	}
	for _, ids := range tokens {
		a := ask
		a.PromptTokens = ids
		c.asks = append(c.asks, a)
	}
	if *f.err != nil {
		return nil, *f.err
	}
	c.logprobs = ask.LogProbs
	return c, nil
}

// prompts reads a text, a list of texts, token IDs or a list of such lists. Exactly one
// of the results has entries.
func prompts(f fields, key string, most int) (texts []string, tokens [][]uint32) {
	if s, ok := f.values[key].(string); ok {
		return []string{s}, nil
	}
	list := f.list(key)
	if len(list) == 0 {
		f.fail(key, "is missing")
		return nil, nil
	}
	if _, ok := whole(list[0]); ok {
		return nil, [][]uint32{tokenIDs(f, key, list)}
	}
	if len(list) > most {
		f.fail(key, "has %d %ss, at most %d are allowed", len(list), key, most)
		return nil, nil
	}
	for i, v := range list {
		name := fmt.Sprintf("%s[%d]", key, i)
		switch v := v.(type) {
		case string:
			texts = append(texts, v)
		case []any:
			tokens = append(tokens, tokenIDs(f, name, v))
		default:
			f.fail(name, "want a string or an array of token IDs, got %s", kindOf(v))
		}
	}
	if len(texts) > 0 && len(tokens) > 0 {
		f.fail(key, "mixes texts and token IDs")
	}
	return texts, tokens
}

func tokenIDs(f fields, name string, list []any) []uint32 {
	out := make([]uint32, len(list))
	for i, v := range list {
		id, ok := whole(v)
		if !ok || id < 0 || id >= 1<<31 {
			f.fail(name, "entry %d is not a token ID", i)
			return nil
		}
		out[i] = uint32(id)
	}
	if len(out) == 0 {
		f.fail(name, "is empty")
	}
	return out
}
