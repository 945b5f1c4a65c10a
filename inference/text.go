package inference

import "strings"

// Text releases an answer's text token by token. A stop string, and what may become
// one, is held back. What Add returns is a pure function of the tokens so far, so a
// host that is given a prefix continues the text where another left off.
type Text struct {
	d       Detokenizer
	stops   []string
	pending string // text that may begin a stop string
	stopped bool
}

// NewText returns the text of an answer before its first token.
func NewText(d Detokenizer, stops []string) *Text {
	return &Text{d: d, stops: stops}
}

// Add returns the text that the next token releases, and whether a stop string is
// complete. The answer then ends with this token.
func (t *Text) Add(token int32) (text string, stopped bool) {
	return t.release(t.d.Add(token), false)
}

// End returns what was held back, for an answer that ends without a stop string.
func (t *Text) End() string {
	text, _ := t.release(t.d.Flush(), true)
	return text
}

func (t *Text) release(more string, all bool) (string, bool) {
	if t.stopped {
		return "", true
	}
	t.pending += more
	cut := -1
	for _, s := range t.stops {
		if i := strings.Index(t.pending, s); i >= 0 && (cut < 0 || i < cut) {
			cut = i
		}
	}
	if t.stopped = cut >= 0; !t.stopped {
		cut = len(t.pending)
		if !all {
			cut -= t.held()
		}
	}
	text := t.pending[:cut]
	t.pending = t.pending[cut:]
	return text, t.stopped
}

// held returns the length of the longest end of pending that begins a stop string.
func (t *Text) held() int {
	longest := 0
	for _, s := range t.stops {
		for n := min(len(s)-1, len(t.pending)); n > longest; n-- {
			if strings.HasSuffix(t.pending, s[:n]) {
				longest = n
				break
			}
		}
	}
	return longest
}
