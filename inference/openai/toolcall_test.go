package openai

import (
	"fmt"
	"strings"
	"testing"
)

// splitAt feeds a text in pieces that end at the offsets.
func splitAt(text string, cuts ...int) (string, []functionCall) {
	s := new(splitter)
	var plain strings.Builder
	var calls []functionCall
	from := 0
	for _, to := range append(cuts, len(text)) {
		p, c := s.add(text[from:to])
		plain.WriteString(p)
		calls = append(calls, c...)
		from = to
	}
	p, c := s.end()
	plain.WriteString(p)
	return plain.String(), append(calls, c...)
}

func TestSplitter(t *testing.T) {
	for _, tc := range []struct{ text, plain, calls string }{
		{"no call at all ", "no call at all ", "[]"},
		{`<tool_call>{"name":"f","arguments":{"a":1}}</tool_call>`, "", `[{f {"a":1}}]`},
		{"Wait. \n<tool_call>\n{\"name\": \"f\"}\n</tool_call>\n", "Wait.", `[{f {}}]`},
		{`<tool_call>{"name":"f"}</tool_call> <tool_call>{"name":"g","arguments":"{\"b\": 2}"}</tool_call>`, "", `[{f {}} {g {"b": 2}}]`},
		{`<tool_call>{"name":"f"}</tool_call> done`, " done", `[{f {}}]`},
		{`<tool_call>{"name":"f"}`, "", `[{f {}}]`},
		{`<tool_call>{"name":"f"`, `<tool_call>{"name":"f"`, "[]"},
		{" <tool_call>nonsense</tool_call> more", " <tool_call>nonsense</tool_call> more", "[]"},
		{`<tool_call>{"name":""}</tool_call>`, `<tool_call>{"name":""}</tool_call>`, "[]"},
		{`<tool_call>{"name":"f","arguments":[1]}</tool_call>`, `<tool_call>{"name":"f","arguments":[1]}</tool_call>`, "[]"},
		{`<tool_call>{"name":"f","arguments":"{"}</tool_call>`, `<tool_call>{"name":"f","arguments":"{"}</tool_call>`, "[]"},
		{"a < b <tool_cal", "a < b <tool_cal", "[]"},
		{"<<tool_call>{\"name\":\"f\"}</tool_call>", "<", `[{f {}}]`},
	} {
		t.Run(tc.text, func(t *testing.T) {
			for cut := range len(tc.text) + 1 {
				plain, calls := splitAt(tc.text, cut)
				if plain != tc.plain || fmt.Sprint(calls) != tc.calls {
					t.Errorf("cut at %d: %q %v, want %q %s", cut, plain, calls, tc.plain, tc.calls)
				}
			}
			all := make([]int, len(tc.text))
			for i := range all {
				all[i] = i
			}
			if plain, calls := splitAt(tc.text, all...); plain != tc.plain || fmt.Sprint(calls) != tc.calls {
				t.Errorf("byte by byte: %q %v", plain, calls)
			}
		})
	}
}

// A text that cannot lead to a call must not wait for the next one.
func TestSplitterHoldsNoMoreThanNeeded(t *testing.T) {
	s := new(splitter)
	for _, tc := range []struct{ add, want string }{{"Hello,", "Hello,"}, {" you", " you"}, {" <", ""}, {"b>", " <b>"}, {"<tool_", ""}, {"box", "<tool_box"}} {
		if got, _ := s.add(tc.add); got != tc.want {
			t.Errorf("after %q: %q, want %q", tc.add, got, tc.want)
		}
	}
}

func FuzzSplitter(f *testing.F) {
	f.Add("a\n<tool_call>{\"name\":\"f\"}</tool_call>b", 3, 17)
	f.Add("<tool_call><tool_call></tool_call></tool_call> ", 12, 20)
	f.Add(" \n <tool_call>{", 1, 2)
	f.Fuzz(func(t *testing.T, text string, i, j int) {
		i = min(max(i, 0), len(text))
		j = min(max(j, i), len(text))
		plain, calls := splitAt(text)
		cutPlain, cutCalls := splitAt(text, i, j)
		if plain != cutPlain || fmt.Sprint(calls) != fmt.Sprint(cutCalls) {
			t.Errorf("cut at %d and %d: %q %v, whole: %q %v", i, j, cutPlain, cutCalls, plain, calls)
		}
		if len(calls) == 0 && plain != text {
			t.Errorf("no call in %q, but the text became %q", text, plain)
		}
	})
}
