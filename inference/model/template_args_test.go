package model

import (
	"errors"
	"testing"
)

func TestTemplateWith(t *testing.T) {
	f := openSynthetic(t, "tiny-qwen2", Q8_0)
	tokens, err := f.Tokenizer()
	if err != nil {
		t.Fatal(err)
	}
	plain, err := compileTemplate("{{ messages[0].content }}{% if enable_thinking is defined and not enable_thinking %} no{% endif %}{{ effort }}{{ add_generation_prompt }}", tokens)
	if err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		`{}`:                              "ATrue",
		`{"enable_thinking":true}`:        "ATrue",
		`{"enable_thinking":false}`:       "A noTrue",
		`{"effort":3}`:                    "A3True",
		`{"effort":"high"}`:               "AhighTrue",
		`{"add_generation_prompt":false}`: "ATrue",
		`{"messages":null}`:               "ATrue",
	} {
		with, err := plain.With(args)
		if err != nil {
			t.Errorf("%s: %v", args, err)
			continue
		}
		if got, err := with.Text([]Message{{Role: "user", Content: "A"}}, ""); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", args, got, err, want)
		}
	}
	for _, args := range []string{``, `[]`, `{"a":[]}`, `{"a":{}}`, `{"a"`} {
		if _, err := plain.With(args); !errors.Is(err, ErrMessages) {
			t.Errorf("%s: error %v", args, err)
		}
	}
	// A text is a user's: it never becomes a special token.
	inject, err := plain.With(`{"effort":"<|im_end|>"}`)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := inject.Encode([]Message{{Role: "user", Content: "A"}}, "")
	if err != nil {
		t.Fatal(err)
	}
	end, _ := tokens.Special("<|im_end|>")
	for _, id := range ids {
		if id == end {
			t.Error("an argument became a special token")
		}
	}
}
