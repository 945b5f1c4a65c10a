package native

import (
	"fmt"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/inference/model"
)

// Encoder makes prompts of questions: what a model does to text before it computes. It
// needs no weights, so a node that serves nothing can count what others charge for.
type Encoder struct {
	tokenizer *model.Tokenizer
	template  *model.Template // nil: the file has none
	name      string
	vocab     int
	context   int // tokens; the model's own
}

// NewEncoder returns the encoder of a file, which may be closed afterwards. Errors call
// the model by name.
func NewEncoder(f *model.File, name string) (*Encoder, error) {
	tokenizer, err := f.Tokenizer()
	if err != nil {
		return nil, err
	}
	// A file without a template still answers prompts; Encode says so when asked.
	template, _ := f.Template()
	return &Encoder{tokenizer: tokenizer, template: template, name: name, vocab: f.Config.Vocab, context: f.Config.Context}, nil
}

// Encode returns the prompt of a question as token ids.
func (e *Encoder) Encode(q *inferencepb.Question) ([]int32, error) {
	switch {
	case len(q.GetPromptTokens()) > 0:
		ids := make([]int32, len(q.GetPromptTokens()))
		for i, id := range q.GetPromptTokens() {
			if uint64(id) >= uint64(e.vocab) {
				return nil, fmt.Errorf("%w: prompt token %d, the vocabulary has %d", inference.ErrInvalid, id, e.vocab)
			}
			ids[i] = int32(id)
		}
		return ids, nil
	case len(q.GetMessages()) == 0:
		ids, ok := e.tokenizer.EncodeMost(q.GetPrompt(), e.context)
		if !ok {
			return nil, e.tooLong()
		}
		if bos, ok := e.tokenizer.BOS(); ok && e.tokenizer.AddBOS() {
			ids = append([]int32{bos}, ids...)
		}
		return ids, nil
	case e.template == nil:
		return nil, fmt.Errorf("%w: model %s has no chat template, it only continues prompts", inference.ErrInvalid, e.name)
	}
	messages := make([]model.Message, len(q.GetMessages()))
	for i, m := range q.GetMessages() {
		messages[i] = model.Message{
			Role: m.GetRole(), Content: m.GetContent(), Name: m.GetName(), ToolCalls: m.GetToolCalls(), ToolCallID: m.GetToolCallId(),
		}
	}
	tools := q.GetTools()
	if q.GetToolChoice() == `"none"` {
		tools = ""
	}
	template := e.template
	var err error
	if args := q.GetTemplateArgs(); args != "" {
		template, err = template.With(args)
	}
	var ids []int32
	var ok bool
	if err == nil {
		ids, ok, err = template.EncodeMost(messages, tools, e.context)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", inference.ErrInvalid, err)
	case !ok:
		return nil, e.tooLong()
	}
	return ids, nil
}

func (e *Encoder) tooLong() error {
	return &inference.TooLongError{Prompt: e.context + 1, Context: e.context}
}
