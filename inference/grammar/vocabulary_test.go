package grammar

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
)

var vocabularies sync.Map // by size

// testVocabulary has all bytes, many pieces of JSON and text, special tokens 0 to 2 and
// the end tokens 3 and 4.
func testVocabulary(t testing.TB, size int) *Vocabulary {
	t.Helper()
	if v, ok := vocabularies.Load(size); ok {
		return v.(*Vocabulary)
	}
	v, err := NewVocabulary(size, pieces(size), []int32{0, 1, 2}, []int32{3, 4})
	if err != nil {
		t.Fatal(err)
	}
	vocabularies.Store(size, v)
	return v
}

var piecesOf sync.Map // size -> func

// pieces makes tokens like those of a trained vocabulary: bytes, words with and without
// a space, numbers, runs of spaces, punctuation with quotes, parts of characters.
func pieces(size int) func(int32) []byte {
	if f, ok := piecesOf.Load(size); ok {
		return f.(func(int32) []byte)
	}
	r := rand.New(rand.NewPCG(1, 2))
	list, seen := make([]string, 5, size), map[string]bool{}
	add := func(s string) {
		if !seen[s] && s != "" && len(list) < size {
			seen[s] = true
			list = append(list, s)
		}
	}
	for b := range 256 {
		add(string([]byte{byte(b)}))
	}
	for i := range 64 {
		add(strings.Repeat(" ", i+1))
		add("\n" + strings.Repeat(" ", i))
	}
	for _, a := range []string{`"`, `":`, `",`, `"}`, `"]`, `{"`, `["`, `\"`, `\\`, `}`, `]`, `},`, "\n\n", `\u00`, `": "`, `", "`, `":"`, `true`, `false`, `null`, `"name`, ` "`, `.","`} {
		add(a)
		add(a + " ")
		add(" " + a)
		add(a + "\n")
	}
	letters := []rune("etaoinshrdlucmfwypvbgkjqxzETAOINéßж中文字あ😀'-_.,!0123456789")
	for len(list) < size {
		var s strings.Builder
		if r.IntN(2) == 0 {
			s.WriteByte(' ')
		}
		for range 1 + r.IntN(10) {
			s.WriteRune(letters[min(r.IntN(len(letters)), r.IntN(len(letters)))])
		}
		switch r.IntN(40) {
		case 0:
			s.WriteString(`"`)
		case 1:
			s.WriteString("\n")
		case 2:
			s.WriteString("\xe4\xb8") // begins a character
		case 3:
			add("\xad" + s.String()) // ends one
		}
		add(s.String())
	}
	f := func(id int32) []byte { return []byte(list[id]) }
	piecesOf.Store(size, f)
	return f
}

// plainMask is the definition of a mask: every token tried by itself.
func plainMask(t testing.TB, m *Matcher, output []byte) []uint64 {
	t.Helper()
	out := make([]uint64, m.v.words)
	for id, s := range m.v.pieces {
		allowed := s != ""
		if allowed {
			var err error
			if allowed, _, err = m.g.Match(append(output[:len(output):len(output)], s...)); err != nil {
				t.Fatal(err)
			}
		} else if m.v.isEnd[int32(id)] {
			_, allowed, _ = m.g.Match(output)
		}
		if allowed {
			out[id/64] |= 1 << (id % 64)
		}
	}
	return out
}

func TestMask(t *testing.T) {
	v := testVocabulary(t, 3000)
	for i, text := range []string{
		`{}`,
		`{"type":"string","minLength":3,"maxLength":9}`,
		`{"type":"string","pattern":"^(ab|[^x\"]{2,4}é?)+$"}`,
		`{"type":"object","properties":{"name":{"type":"string"},"e":{"type":"number"}},"required":["name"],"additionalProperties":{"type":"string","maxLength":4}}`,
		`{"anyOf":[{"type":"string","maxLength":5},{"type":"string","pattern":"^[a-z]{8}$"},{"enum":["true",true]}]}`,
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			g := mustCompile(t, Schema, text)
			r := newRand(t)
			for range 6 {
				m := NewMatcher(g, v)
				var output []byte
				for !m.Done() && len(output) < 60 {
					got, err := m.Mask()
					if err != nil {
						t.Fatal(err)
					}
					if want := plainMask(t, m, output); !equalMasks(got, want) {
						t.Fatalf("after %q: %s", output, difference(v, got, want))
					}
					id := pick(r, got)
					if err := m.Accept(id); err != nil {
						t.Fatal(err)
					}
					output = append(output, v.pieces[id]...)
				}
			}
		})
	}
}

func equalMasks(a, b []uint64) bool {
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return len(a) == len(b)
}

func difference(v *Vocabulary, got, want []uint64) string {
	for id, s := range v.pieces {
		if g, w := has(got, int32(id)), has(want, int32(id)); g != w {
			return fmt.Sprintf("token %d %q is %v, want %v", id, s, g, w)
		}
	}
	return "equal"
}

func has(mask []uint64, id int32) bool { return mask[id/64]>>(id%64)&1 != 0 }

// pick draws one of the allowed tokens.
func pick(r *rand.Rand, mask []uint64) int32 {
	for {
		start := r.IntN(len(mask))
		for i := range mask {
			w := (start + i) % len(mask)
			if mask[w] == 0 {
				continue
			}
			for {
				if b := r.IntN(64); mask[w]>>b&1 != 0 {
					return int32(64*w + b)
				}
			}
		}
		panic("an empty mask")
	}
}

func newRand(t testing.TB) *rand.Rand {
	t.Helper()
	a, b := rand.Uint64(), rand.Uint64()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d, %d", a, b)
		}
	})
	return rand.New(rand.NewPCG(a, b))
}

func TestAccept(t *testing.T) {
	v := testVocabulary(t, 1000)
	g := mustCompile(t, GBNF, `root ::= "a" [b-c]?`)
	m := NewMatcher(g, v)
	token := func(s string) int32 {
		for id, p := range v.pieces {
			if p == s {
				return int32(id)
			}
		}
		t.Fatalf("no token %q", s)
		return 0
	}
	for _, id := range []int32{-1, 1000, 0, 3, token("b")} {
		if err := m.Accept(id); err == nil {
			t.Errorf("token %d is accepted at the start", id)
		}
	}
	for _, s := range []string{"a", "c"} {
		if err := m.Accept(token(s)); err != nil {
			t.Fatal(err)
		}
	}
	mask, err := m.Mask()
	if err != nil {
		t.Fatal(err)
	}
	for id := range int32(1000) {
		if has(mask, id) != (id == 3 || id == 4) {
			t.Errorf("token %d after the end: %v", id, has(mask, id))
		}
	}
	if m.Done() || m.Accept(4) != nil || !m.Done() || m.Accept(4) == nil {
		t.Error("the end")
	}
	if _, err := NewVocabulary(1000, pieces(1000), nil, nil); err == nil {
		t.Error("a vocabulary without an end")
	}
	if _, err := NewVocabulary(10, pieces(1000), []int32{10}, []int32{3}); err == nil {
		t.Error("a special token outside")
	}
	// A vocabulary that cannot spell the answer.
	few, err := NewVocabulary(2, func(id int32) []byte { return []byte("xy")[id : id+1] }, nil, []int32{1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewMatcher(g, few).Mask(); !errors.Is(err, errDeadEnd) {
		t.Errorf("a dead end: %v", err)
	}
}

// TestForgetting is about grammars whose automaton begins anew under matchers, and
// about many goroutines.
func TestForgetting(t *testing.T) {
	v := testVocabulary(t, 3000)
	const text = `{"type":"array","items":{"type":"object","properties":{"a":{"type":"string","maxLength":40},"b":{"$ref":"#"}}}}`
	calm, wild := mustCompile(t, Schema, text), mustCompile(t, Schema, text)
	seed := rand.Uint64()
	var group sync.WaitGroup
	for i := range uint64(4) {
		group.Go(func() {
			r := rand.New(rand.NewPCG(seed, i))
			m, n := NewMatcher(calm, v), NewMatcher(wild, v)
			for step := range 300 {
				if m.Done() {
					m, n = NewMatcher(calm, v), NewMatcher(wild, v)
				}
				if r.IntN(5) == 0 {
					wild.mu.Lock()
					wild.masks = maxMaskBytes + 1
					wild.mu.Unlock()
				}
				a, err := m.Mask()
				b, err2 := n.Mask()
				if err != nil || err2 != nil || !equalMasks(a, b) {
					t.Errorf("seed %d, step %d: %v, %v", seed, step, err, err2)
					return
				}
				id := pick(r, a)
				if m.Accept(id) != nil || n.Accept(id) != nil {
					t.Errorf("seed %d, step %d: token %d is allowed and not accepted", seed, step, id)
					return
				}
			}
		})
	}
	group.Wait()
}

// TestWork is about grammars that are too costly to follow: the error depends on the
// place alone, not on what was computed before.
func TestWork(t *testing.T) {
	v := testVocabulary(t, 20000)
	// Each letter of a text makes for another set of places.
	text := "root ::= ("
	for i := range 14 {
		if i > 0 {
			text += " | "
		}
		text += fmt.Sprintf("(([a-z ]{%d} | .{%d} | [^e]{%d})*)", 3+2*i, 5+3*i, 7+i)
	}
	text += ") \"!\""
	g, fresh := mustCompile(t, GBNF, text), mustCompile(t, GBNF, text)
	r := newRand(t)
	failed := 0
	for range 5 {
		m := NewMatcher(g, v)
		var ids []int32
		for range 4 {
			mask, err := m.Mask()
			fresh.masks = maxMaskBytes + 1 // forget
			again := NewMatcher(fresh, v)
			for _, id := range ids {
				if err := again.Accept(id); err != nil {
					t.Fatal(err)
				}
			}
			mask2, err2 := again.Mask()
			if !errors.Is(err, err2) || err == nil && !equalMasks(mask, mask2) {
				t.Fatalf("after %v: %v, %v", ids, err, err2)
			}
			if err != nil {
				failed++
				break
			}
			id := pick(r, mask)
			if err := m.Accept(id); err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
	}
	t.Logf("%d of 5 answers were too costly", failed)
}
