package openai

import (
	"encoding/json"
	"math"
	"slices"
	"strconv"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// maxBody bounds a request's JSON. It is more than a request may have, because
// quotes and line ends take two bytes each in JSON.
const maxBody = 2 * inference.MaxRequestBytes

// call is a decoded request of either kind.
type call struct {
	chat     bool
	model    string
	asks     []inference.Ask // one per prompt; chat has one
	choices  int             // per ask
	stream   bool
	usage    bool   // a last chunk of a stream has the usage
	tools    bool   // tool calls are looked for in the answer
	logprobs bool   // of each token
	prompt   string // the field that has the prompt
}

// common reads the fields that both requests share.
func common(f fields, c *call) inference.Ask {
	c.model = f.text("model")
	c.choices = int(f.integer("n", 1, inference.MaxChoices, 1))
	c.stream = f.flag("stream")
	if f.has("stream_options") {
		if !c.stream {
			f.fail("stream_options", "only a request with stream set may have it")
		}
		c.usage = f.child("stream_options").flag("include_usage")
	}
	return inference.Ask{
		Model:      c.model,
		Constraint: constraint(f),
		Sampling:   sampling(f, c.choices),
		Seed:       seed(f),
		Choices:    c.choices,
		Stop:       stops(f),
		IgnoreEOS:  f.flag("ignore_eos"),
		TokenCap:   tokenCap(f),
	}
}

// tokenCap reads what a token may cost, in ngonka.
func tokenCap(f fields) mesh.Amount {
	return mesh.Amount(f.integer("mesh_price_cap", 1, math.MaxInt64, 0))
}

// sampling reads how tokens are drawn. Values that mean "off" become 0, so that
// requests that mean the same are the same question.
func sampling(f fields, choices int) *inferencepb.Sampling {
	temperature := 0.0
	if choices > 1 {
		temperature = 1
	}
	s := &inferencepb.Sampling{
		Temperature:       f.number("temperature", 0, 2, temperature),
		TopP:              f.number("top_p", 0, 1, 1),
		MinP:              f.number("min_p", 0, 1, 0),
		FrequencyPenalty:  f.number("frequency_penalty", -2, 2, 0),
		PresencePenalty:   f.number("presence_penalty", -2, 2, 0),
		RepetitionPenalty: f.number("repetition_penalty", 0, 10, 1),
		TopK:              uint32(max(0, f.integer("top_k", -1, math.MaxInt32, 0))),
		LogitBias:         logitBias(f),
	}
	switch s.TopP {
	case 1:
		s.TopP = 0
	case 0: // the smallest nucleus, which has one token
		s.TopP = math.SmallestNonzeroFloat32
	}
	switch s.RepetitionPenalty {
	case 1:
		s.RepetitionPenalty = 0
	case 0:
		f.fail("repetition_penalty", "is 0, it must be over 0; 1 is off")
	}
	return s
}

func logitBias(f fields) []*inferencepb.LogitBias {
	entries := f.child("logit_bias")
	var out []*inferencepb.LogitBias
	for _, key := range entries.keys {
		token, err := strconv.ParseUint(key, 10, 31)
		if err != nil {
			entries.fail(key, "want a token ID as the field name")
			return nil
		}
		if bias := entries.number(key, -100, 100, 0); bias != 0 {
			out = append(out, &inferencepb.LogitBias{Token: uint32(token), Bias: bias})
		}
	}
	if len(out) > inference.MaxLogitBias {
		f.fail("logit_bias", "has %d entries, at most %d are allowed", len(out), inference.MaxLogitBias)
		return nil
	}
	inference.SortLogitBias(out)
	if len(slices.CompactFunc(slices.Clone(out), func(a, b *inferencepb.LogitBias) bool { return a.Token == b.Token })) != len(out) {
		f.fail("logit_bias", "names a token twice")
	}
	return out
}

// seed reads a seed of 64 bits, signed or not.
func seed(f fields) *uint64 {
	if !f.has("seed") {
		return nil
	}
	if i, ok := whole(f.values["seed"]); ok {
		u := uint64(i)
		return &u
	}
	if n, ok := f.values["seed"].(json.Number); ok {
		if u, err := strconv.ParseUint(string(n), 10, 64); err == nil {
			return &u
		}
	}
	f.wrongKind("seed", "a whole number of 64 bits")
	return nil
}

// stops reads a stop string or a list of them.
func stops(f fields) []string {
	if !f.has("stop") {
		return nil
	}
	list, ok := f.values["stop"].([]any)
	if s, one := f.values["stop"].(string); one {
		list, ok = []any{s}, true
	}
	if !ok {
		f.wrongKind("stop", "a string or an array of strings")
		return nil
	}
	if len(list) > inference.MaxStops {
		f.fail("stop", "has %d strings, at most %d are allowed", len(list), inference.MaxStops)
		return nil
	}
	var out []string
	for _, v := range list {
		s, ok := v.(string)
		if !ok {
			f.fail("stop", "want strings in the array, got %s", kindOf(v))
			return nil
		}
		if s == "" || len(s) > inference.MaxStopBytes {
			f.fail("stop", "a string of it has %d bytes, from 1 to %d are allowed", len(s), inference.MaxStopBytes)
			return nil
		}
		out = append(out, s)
	}
	return out
}

// root reads the body as one object.
func root(body []byte) (fields, error) {
	v, err := parseJSON(body)
	if err != nil {
		return fields{}, invalid("", "invalid_json", "the body is not usable JSON: %v", err)
	}
	o, ok := v.(*object)
	if !ok {
		return fields{}, invalid("", "invalid_json", "the body has to be a JSON object, it is %s", kindOf(v))
	}
	return newFields(o), nil
}
