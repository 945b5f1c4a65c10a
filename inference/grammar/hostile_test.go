package grammar

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// hostile are constraints that were made to cost much.
func hostile() map[string][2]string {
	out := map[string][2]string{}
	ways := "root ::= ("
	for i := range 60 {
		if i > 0 {
			ways += " | "
		}
		ways += fmt.Sprintf("(([a-z ]{%d} | .{%d} | [^e]{%d})*)", 3+2*i, 5+3*i, 7+i)
	}
	out["ways"] = [2]string{string(GBNF), ways + ") \"!\""}
	out["counts"] = [2]string{string(GBNF), "root ::= (.? .{0,500} [a-z]{0,500}){0,500} \"!\""}
	out["nullable"] = [2]string{string(GBNF), "root ::= " + strings.Repeat("\"a\"? ", 8000) + "\"b\""}
	out["pairs"] = [2]string{string(GBNF), "root ::= (" + strings.Repeat(".", 20) + "| [^x] root [^y] | . root | root2 . )*\nroot2 ::= . root3 | . . root3 .\nroot3 ::= [^e] | [^e] root2 [^e]"}
	out["chain"] = [2]string{string(GBNF), func() string {
		var s strings.Builder
		s.WriteString("root ::= r0\n")
		for i := range 2500 {
			fmt.Fprintf(&s, "r%d ::= r%d \"x\"?\n", i, i+1)
		}
		return s.String() + "r2500 ::= \"a\""
	}()}
	out["pattern"] = [2]string{string(Schema), `{"type":"string","pattern":"^(a|b|c|d|e|.)*a(a|b|c|.){40}(.|x){0,900}$"}`}
	out["keys"] = [2]string{string(Schema), `{"type":"object","properties":{` + strings.TrimSuffix(strings.Repeat(`"K":{},`, 1), ",") + func() string {
		var s strings.Builder
		for i := range 3000 {
			fmt.Fprintf(&s, `,"k%d":{}`, i)
		}
		return s.String()
	}() + `},"additionalProperties":{}}`}
	out["long name"] = [2]string{string(Schema), `{"type":"object","properties":{"` + strings.Repeat("n", 60000) + `":{}},"additionalProperties":{}}`}
	out["enum"] = [2]string{string(Schema), `{"enum":["` + strings.Repeat("n", 60000) + `"]}`}
	out["refs"] = [2]string{string(Schema), `{"$defs":{` + func() string {
		var s strings.Builder
		for i := range 1000 {
			fmt.Fprintf(&s, `"%d":{"anyOf":[{"$ref":"#/$defs/%d"},{"type":"null"}]},`, i, i+1)
		}
		return s.String()
	}() + `"1000":{}},"$ref":"#/$defs/0"}`}
	out["oneOf, disjoint"] = [2]string{string(Schema), func() string {
		var s strings.Builder
		for i := range 120 {
			fmt.Fprintf(&s, `,{"type":"object","properties":{"a":{"$ref":"#/$defs/e"},"b":{"$ref":"#/$defs/e"},"z":{"const":%d}},"required":["a","b","z"]}`, i)
		}
		return `{"oneOf":[` + s.String()[1:] + `],"$defs":{"e":{"enum":[0` + strings.Repeat(",1", 20000) + `]}}}`
	}()}
	out["required"] = [2]string{string(Schema), `{"type":"object","additionalProperties":{},"required":[` + func() string {
		var s strings.Builder
		for i := range 6000 {
			fmt.Fprintf(&s, `"%d",`, i)
		}
		return s.String()
	}() + `"x"]}`}
	out["oneOf"] = [2]string{string(Schema), `{"oneOf":[` + strings.TrimSuffix(strings.Repeat(`{"const":[1]},`, 4000), ",") + `]}`}
	return out
}

// TestHostile bounds what such constraints cost. The figures leave room for a machine
// that is busy; docs/bench.md has better ones.
func TestHostile(t *testing.T) {
	v := testVocabulary(t, 20000)
	for name, c := range hostile() {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			g, err := Compile(Kind(c[0]), c[1])
			compile := time.Since(start)
			if compile > 5*time.Second {
				t.Errorf("compiling took %s", compile)
			}
			if err != nil {
				t.Logf("compiled in %s: %.100v", compile, err)
				return
			}
			var most time.Duration
			r := newRand(t)
			m := NewMatcher(g, v)
			steps := 0
			for ; steps < 10 && !m.Done(); steps++ {
				start := time.Now()
				var mask []uint64
				if mask, err = m.Mask(); err != nil {
					break
				}
				most = max(most, time.Since(start))
				if err := m.Accept(pick(r, mask)); err != nil {
					t.Fatal(err)
				}
			}
			if most > 5*time.Second {
				t.Errorf("a mask took %s", most)
			}
			t.Logf("compiled in %s, %d states, %d steps of up to %s: %v", compile, len(g.net.edges), steps, most, err)
		})
	}
}
