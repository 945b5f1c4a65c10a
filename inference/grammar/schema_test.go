package grammar

import (
	"errors"
	"strings"
	"testing"
)

func mustCompile(t testing.TB, k Kind, text string) *Grammar {
	t.Helper()
	g, err := Compile(k, text)
	if err != nil {
		t.Fatalf("compile %s: %v", text, err)
	}
	return g
}

// whole reports whether text satisfies g.
func whole(t testing.TB, g *Grammar, text string) bool {
	t.Helper()
	_, ok, err := g.Match([]byte(text))
	if err != nil {
		t.Fatalf("match %q: %v", text, err)
	}
	return ok
}

func TestSchemas(t *testing.T) {
	for _, c := range []struct {
		schema  string
		yes, no []string
	}{
		{`{}`, []string{`1`, `"a"`, `{"a": [1,2.5e3, null]}`, "[\n  true]", `{}`, `[]`, `""`, `"\u00e9é😀\uD83D\uDE00"`},
			[]string{``, ` 1`, `1 `, `01`, `"\x"`, `[1,]`, `{"a"}`, `"\uD83D"`, "[\n\n1]", `tru`, "\"\n\"", "\"\xff\""}},
		{`{"type":"string","minLength":2,"maxLength":3}`, []string{`"ab"`, `"äöü"`, `"\n\"\\"`, `"\ud83d\ude00x"`}, []string{`"a"`, `"abcd"`, `"\ud83d\ude00"`}},
		{`{"type":"string","pattern":"^[a-z]+(-[0-9]{2})?$"}`, []string{`"ab"`, `"ab-12"`}, []string{`"ab-1"`, `""`, `"A"`, `"\u0061"`}},
		{`{"type":"string","pattern":"b\"$"}`, []string{`"ab\""`, `"b\""`, `"éb\""`}, []string{`"ab"`, `"b\"c"`}},
		{`{"type":"string","pattern":"^a|b$"}`, []string{`"axx"`, `"xxb"`, `"b"`}, []string{`"xx"`, `"bx"`}},
		{`{"type":"string","pattern":"^.\\s(?i:k)$"}`, []string{`"é k"`, `"a\tK"`, "\"a \u212a\""}, []string{`"\n k"`}},
		{`{"type":"string","format":"date"}`, []string{`"2024-02-29"`, `"2000-02-29"`, `"1999-12-31"`}, []string{`"2023-02-29"`, `"1900-02-29"`, `"2024-04-31"`, `"2024-13-01"`}},
		{`{"type":"string","format":"date-time"}`, []string{`"2024-02-29T23:59:59Z"`, `"2024-02-28T00:00:00.123+02:00"`}, []string{`"2024-02-29"`, `"2024-02-28T24:00:00Z"`}},
		{`{"type":"string","format":"uuid"}`, []string{`"123e4567-e89b-12d3-a456-426614174000"`}, []string{`"123e4567e89b12d3a456426614174000"`}},
		{`{"type":"string","format":"email"}`, []string{`"a.b+c@example.org"`}, []string{`"a@b"`, `"@b.c"`, `".a@b.c"`, `"a@-b.c"`}},
		{`{"type":"string","format":"ipv4"}`, []string{`"192.168.0.255"`}, []string{`"192.168.0.256"`, `"1.2.3"`}},
		{`{"type":"integer"}`, []string{`0`, `-12`, `1234567890123456`}, []string{`1.0`, `00`, `-`, `12345678901234567`, `1e3`}},
		{`{"type":"number"}`, []string{`0`, `-1.25`, `1e9`, `2.5E-10`}, []string{`.5`, `1.`, `1e`, `01`}},
		{`{"type":"integer","minimum":-3,"maximum":117}`, []string{`-3`, `0`, `9`, `117`, `99`}, []string{`-4`, `118`, `-0`, `200`}},
		{`{"type":"integer","exclusiveMinimum":99,"maximum":1005}`, []string{`100`, `999`, `1005`}, []string{`99`, `1006`, `1010`}},
		{`{"type":"number","minimum":0,"exclusiveMaximum":1}`, []string{`0`, `0.0`, `0.999`}, []string{`1`, `-0.1`, `1.0`}},
		{`{"type":"number","exclusiveMinimum":-2,"maximum":1}`, []string{`-1.9`, `-0.5`, `0`, `1.00`, `0.3`}, []string{`-2`, `1.01`, `-2.0`}},
		{`{"enum":["a","ab","b\"",1,null,{"x":[1]}]}`, []string{`"a"`, `"ab"`, `"b\""`, `1`, `null`, `{"x":[1]}`}, []string{`"b"`, `2`, `{"x": [1]}`}},
		{`{"type":"string","enum":["a",1]}`, []string{`"a"`}, []string{`1`}},
		{`{"const":null}`, []string{`null`}, []string{`1`}},
		{`{"type":["string","null"],"maxLength":1}`, []string{`"a"`, `null`}, []string{`"ab"`, `1`}},
		{`{"type":"array","items":{"type":"boolean"},"minItems":1,"maxItems":3}`, []string{`[true]`, `[true, false,true]`}, []string{`[]`, `[true,true,true,true]`, `[1]`}},
		{`{"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}],"minItems":1}`, []string{`[1]`, `[1,"a"]`}, []string{`[]`, `["a"]`, `[1,"a",2]`}},
		{`{"type":"array","prefixItems":[{"type":"integer"}],"items":{"type":"string"},"minItems":2,"maxItems":3}`, []string{`[1,"a"]`, `[1,"a","b"]`}, []string{`[1]`, `[1,"a","b","c"]`, `[1,2]`}},
		{`{"type":"array","maxItems":0}`, []string{`[]`}, []string{`[1]`}},
		{`{"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"string"},"c":{"type":"null"}},"required":["b"],"additionalProperties":false}`,
			[]string{`{"b":"x"}`, `{"a": 1, "b":"x"}`, `{"b":"x","c":null}`, "{\n  \"a\": 1,\n  \"b\": \"x\"\n}"}, []string{`{}`, `{"a":1}`, `{"b":"x","a":1}`, `{"b":"x",}`, `{"b":"x","d":1}`}},
		{`{"type":"object","properties":{"ab":{"type":"integer"},"é\"":{}},"additionalProperties":{"type":"boolean"}}`,
			[]string{`{}`, `{"ab":1}`, `{"ab":1,"x":true}`, `{"a":true}`, `{"abc":true}`, `{"":false}`, `{"é":true,"x\n":true}`}, []string{`{"ab":true}`, `{"x":1}`, `{"x":true,"ab":1}`, `{"\u0061b":true}`, `{"\n":true}`}},
		{`{"type":"object","required":["z"],"additionalProperties":{"type":"null"}}`, []string{`{"z":null}`, `{"z":null,"y":null}`}, []string{`{}`}},
		{`{"type":"object"}`, []string{`{}`, `{"a":{"b":[]}}`}, []string{`[]`}},
		{`{"anyOf":[{"type":"integer"},{"$ref":"#/$defs/x"}],"$defs":{"x":{"type":"array","items":{"$ref":"#"}}}}`, []string{`1`, `[1,[2,[]]]`}, []string{`"a"`, `["a"]`}},
		{`{"oneOf":[{"type":"object","properties":{"k":{"const":"a"},"v":{"type":"integer"}},"required":["k","v"]},{"type":"object","properties":{"k":{"const":"b"}},"required":["k"]}]}`,
			[]string{`{"k":"a","v":1}`, `{"k":"b"}`}, []string{`{"k":"a"}`, `{"k":"c"}`}},
		{`{"allOf":[{"$ref":"#/definitions/t"}],"description":"d","definitions":{"t":{"type":"boolean"}}}`, []string{`true`}, []string{`1`}},
		{`{"type":"object","properties":{"next":{"anyOf":[{"$ref":"#"},{"type":"null"}]}},"required":["next"]}`, []string{`{"next":{"next":null}}`}, []string{`{"next":{}}`}},
	} {
		g := mustCompile(t, Schema, c.schema)
		for _, s := range c.yes {
			if !whole(t, g, s) {
				t.Errorf("%s refuses %s", c.schema, s)
			}
		}
		for _, s := range c.no {
			if whole(t, g, s) {
				t.Errorf("%s allows %s", c.schema, s)
			}
		}
	}
}

func TestSchemaErrors(t *testing.T) {
	deep := strings.Repeat(`{"type":"array","items":`, 100) + `{}` + strings.Repeat(`}`, 100)
	for _, c := range []struct{ schema, want string }{
		{``, "unexpected end"},
		{`{"type":"string"} x`, "invalid character"},
		{`[]`, "schema #: want an object"},
		{`{"type":"object","properties":{"a/b":{"type":"string","multipleOf":2}}}`, `schema #/properties/a~1b/multipleOf: the keyword "multipleOf" is not supported`},
		{`{"type":"array","items":{"type":"integer","minLength":2}}`, `#/items/minLength: the keyword "minLength" is not supported with type integer`},
		{`{"type":"array","uniqueItems":true}`, `"uniqueItems" is not supported`},
		{`{"type":"text"}`, "#/type: want distinct types"},
		{`{"minItems":1,"minLength":2}`, "type is missing"},
		{`{"$ref":"#/nope"}`, `"#/nope" is not in the schema`},
		{`{"$ref":"http://x/y"}`, "is not supported"},
		{`{"$ref":"#/$defs/a","type":"string","$defs":{"a":{}}}`, `"type" is not supported beside $ref`},
		{`{"$ref":"#"}`, "begins with itself"},
		{`{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]}`, "no finite answer"},
		{`{"type":"object","required":["a"],"additionalProperties":false}`, `"a" is not among the properties`},
		{`{"oneOf":[{"type":"string"},{"type":"string","maxLength":2}]}`, "#/oneOf: schemas 0 and 1 might both"},
		{`{"allOf":[{},{}]}`, "#/allOf"},
		{`{"type":"string","pattern":"(a"}`, "#/pattern"},
		{`{"type":"string","pattern":"(?=a)b"}`, "#/pattern"},
		{`{"type":"string","pattern":"a\\bb"}`, "#/pattern"},
		{`{"type":"string","pattern":"a^b"}`, "ends of a pattern"},
		{`{"type":"string","pattern":"a","maxLength":2}`, "beside maxLength"},
		{`{"type":"string","format":"uri"}`, "#/format"},
		{`{"type":"string","maxLength":100000}`, "#/maxLength"},
		{`{"type":"string","minLength":3,"maxLength":2}`, "nothing satisfies"},
		{`{"type":"number","minimum":0.5}`, "#/minimum"},
		{`{"type":"integer","minimum":5,"maximum":4}`, "no number"},
		{`{"enum":[]}`, "#/enum"},
		{`{"type":"string","enum":[1]}`, "no value is of the type"},
		{`{"type":"string","type":"null"}`, "occurs twice"},
		{`{"type":"array","items":{"type":"string","maxLength":16000},"prefixItems":[` + strings.Repeat(`{"type":"string","maxLength":16000},`, 9) + `{}]}`, "states"},
		{deep, "deep"},
	} {
		_, err := Compile(Schema, c.schema)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.100s: %v, want %q", c.schema, err, c.want)
		}
	}
}

func TestGBNF(t *testing.T) {
	for _, c := range []struct {
		text    string
		yes, no []string
	}{
		{"root ::= \"yes\" | \"no\" # comment\n", []string{"yes", "no"}, []string{"", "ye", "yesno"}},
		{"root ::= expr\nexpr ::= term (op term)*\nterm ::= [0-9]+ | \"(\" expr \")\"\nop ::= [-+*/]", []string{"1", "1+(2*3)-44"}, []string{"1+", "()", "1--2"}},
		{"root ::= ws \"a\"{2,3} ws\nws ::= ([ \\t\\n] ws)?", []string{"aa", " \n aaa \t"}, []string{"a", "aaaa"}},
		{"root ::= [^a-c\\]]? .\n", []string{"d", "xé", "a", "é]"}, []string{"aé", "]]", "xyz"}},
		{"root ::=\n  \"\\x41\\u00e9\" |\n  (\n \"b\"\n \"c\")+ \n# end", []string{"Aé", "bc", "bcbc"}, []string{"b", ""}},
		{"root ::= a{0} b{,}", nil, nil},
		{"root ::= (\"a\"*)* \"b\"{2}?", []string{"", "aaa", "abb", "bb"}, []string{"b", "bbb"}},
		{"root ::= item root | item\nitem ::= [a-z] \",\"", []string{"a,", strings.Repeat("x,", 2000)}, []string{"a", "a,b"}},
		{"root ::= (\"x\"{1000}){2}", []string{strings.Repeat("x", 2000)}, []string{strings.Repeat("x", 1999)}},
	} {
		if c.yes == nil {
			if _, err := Compile(GBNF, c.text); err == nil {
				t.Errorf("%q is accepted", c.text)
			}
			continue
		}
		g := mustCompile(t, GBNF, c.text)
		for _, s := range c.yes {
			if !whole(t, g, s) {
				t.Errorf("%q refuses %q", c.text, s)
			}
		}
		for _, s := range c.no {
			if whole(t, g, s) {
				t.Errorf("%q allows %q", c.text, s)
			}
		}
	}
}

func TestGBNFErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", `"root" is not defined`},
		{"root ::= a", `"a" is not defined`},
		{"root ::= root \"a\" | \"b\"", `"root" begins with itself`},
		{"root ::= x root\nx ::= \"a\"?", `begins with itself`},
		{"root ::= \"a\" root", "no finite answer"},
		{"root ::= \"a", "line 1: a literal"},
		{"root ::= \"a\"\nroot ::= \"b\"", "line 2"},
		{"root = \"a\"", "want ::="},
		{"root ::= [z-a]", "range"},
		{"root ::= []", "no finite answer"},
		{"root ::= \"\\q\"", "escape"},
		{"root ::= \"\\ud800\"", "hexadecimal"},
		{"root ::= (\"a\"", "not closed"},
		{"root ::= \"a\" )", "unexpected"},
		{"root ::= \"a\"{3,2}", "repetition from 3 to 2"},
		{"root ::= \"a\"{99999}", "number up to"},
		{"root ::= *", "unexpected"},
		{"root ::= " + strings.Repeat("(", 100) + "\"a\"" + strings.Repeat(")", 100), "nested"},
		{"root ::= " + strings.Repeat("x{16000} ", 10) + "\nx ::= [a-z] [0-9]", "states"},
	} {
		_, err := Compile(GBNF, c.text)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60q: %v, want %q", c.text, err, c.want)
		}
	}
}

// TestAmbiguity is about constraints that leave open more and more.
func TestAmbiguity(t *testing.T) {
	// After n letters the answer may be in each of many places of many rules.
	text := "root ::= a0\n"
	for i := range 20 {
		n := string(rune('a' + i))
		next := string(rune('a' + i + 1))
		text += n + "0 ::= " + next + "0 \"x\" | " + next + "0 \"y\" | " + next + "0 \"z\"\n"
	}
	text += "u0 ::= \"a\""
	if _, err := Compile(GBNF, text); !errors.Is(err, ErrTooComplex) {
		t.Errorf("a grammar with 3^20 ways: %v", err)
	}
}
