package grammar

import (
	"fmt"
	"strings"
	"testing"
)

// TestFan holds that many ways to go on at one place are refused, or are one way, before
// they cost anything: work on a place grows with their square.
func TestFan(t *testing.T) {
	names := make([]string, 600)
	for i := range names {
		names[i] = fmt.Sprintf(`"n%d"`, i)
	}
	for name, c := range map[string]struct {
		kind Kind
		text string
		ok   bool
	}{
		"equal refs":   {Schema, `{"type":"object","additionalProperties":{"anyOf":[` + strings.Repeat("true,", 11_000) + `true]},"required":[` + strings.Join(names, ",") + `]}`, true},
		"equal rules":  {GBNF, "root ::= (" + strings.Repeat("a|", 20_000) + "a)\na ::= \"x\"\n", true},
		"unequal refs": {GBNF, "root ::= " + strings.Join(names600("r"), "|") + "\n" + strings.Join(bodies(600), "\n"), false},
	} {
		_, err := Compile(c.kind, c.text)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func names600(prefix string) (out []string) {
	for i := range 600 {
		out = append(out, fmt.Sprintf("%s%d", prefix, i))
	}
	return out
}

func bodies(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("r%d ::= \"%d\" r%d | \"x\"", i, i, (i+1)%n))
	}
	return out
}
