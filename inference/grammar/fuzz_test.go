package grammar

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"testing"
)

func FuzzSchema(f *testing.F) {
	w := writer{rand.New(rand.NewPCG(3, 4))}
	for range 30 {
		b, _ := json.Marshal(with(w.schema(2), "$defs", map[string]any{"node": node}))
		f.Add(string(b), `{"a":1}`)
	}
	f.Add(`{"type":"string","pattern":"^(a|b)*[^\\d]{3}$"}`, `"abc"`)
	f.Add(`{"oneOf":[{"const":1},{"type":"object","required":["a"],"additionalProperties":true}]}`, `1`)
	f.Fuzz(func(t *testing.T, text, answer string) {
		g, err := Compile(Schema, text)
		if err != nil {
			return
		}
		if _, whole, err := g.Match([]byte(answer)); err == nil && whole && !json.Valid([]byte(answer)) {
			t.Fatalf("%s allows %s, which is no JSON", text, answer)
		}
		tryMask(t, g)
	})
}

func FuzzGBNF(f *testing.F) {
	for _, s := range []string{
		"root ::= \"a\" | [^b-c]+ . x{2,5}\nx ::= (\"y\" root)? # end", "root ::= ws \"x\"\nws ::= ([ \\t\\n] ws)?",
		"root ::= \"\\x41\\u00e9\\U0001F600\" {3,}", "root ::= a b\na ::= \"\" b?\nb ::= [0-9]* \"-\"",
	} {
		f.Add(s, "a")
	}
	f.Fuzz(func(t *testing.T, text, answer string) {
		g, err := Compile(GBNF, text)
		if err != nil {
			return
		}
		start, whole, err := g.Match([]byte(answer))
		if err == nil && whole && !start {
			t.Fatal("whole, but no start")
		}
		tryMask(t, g)
	})
}

// tryMask follows the first allowed tokens for a while: there has to be one each time.
func tryMask(t *testing.T, g *Grammar) {
	m := NewMatcher(g, testVocabulary(t, 400))
	for i := 0; i < 5 && !m.Done(); i++ {
		mask, err := m.Mask()
		if errors.Is(err, ErrTooComplex) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Accept(pick(rand.New(rand.NewPCG(1, 1)), mask)); err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkMask(b *testing.B) {
	const size = 151936
	v := testVocabulary(b, size)
	for _, c := range []struct {
		name, text, after string
	}{
		{"string", `{"type":"string"}`, `"a b`},
		{"maxLength", `{"type":"string","maxLength":200}`, `"a b`},
		{"maxLength end", `{"type":"string","maxLength":8}`, `"a b`},
		{"pattern", `{"type":"string","pattern":"^[a-z]+$"}`, `"ab`},
		{"number", `{"type":"number"}`, `1`},
		{"any", `{}`, ``},
		{"nested", `{}`, `{"a":[[{"b":"x`},
	} {
		g, err := Compile(Schema, c.text)
		if err != nil {
			b.Fatal(err)
		}
		matcher := func() *Matcher {
			m := NewMatcher(g, v)
			for _, x := range []byte(c.after) {
				if err := m.Accept(5 + int32(x)); err != nil {
					b.Fatal(err)
				}
			}
			return m
		}
		b.Run(c.name+"/first", func(b *testing.B) {
			for b.Loop() {
				g.masks = maxMaskBytes + 1
				if _, err := matcher().Mask(); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(c.name+"/again", func(b *testing.B) {
			m := matcher()
			for b.Loop() {
				if _, err := m.Mask(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
