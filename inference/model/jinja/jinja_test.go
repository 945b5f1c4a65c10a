package jinja

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// TestCases compares with Jinja 2 itself: what the cases want was rendered by
// version 3.1.6 with trim_blocks, lstrip_blocks and loop controls, and the tojson
// that model libraries use (json.dumps with ensure_ascii=False).
func TestCases(t *testing.T) {
	b, err := os.ReadFile("testdata/cases.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Vars  map[string]json.RawMessage
		Cases []struct {
			Name, Template string
			Want           *string
			Refusal, Error string
		}
	}
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	vars := map[string]any{}
	for k, v := range file.Vars {
		if vars[k], err = ParseJSON(v); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range file.Cases {
		t.Run(c.Name, func(t *testing.T) {
			tpl, err := Compile(c.Template)
			if err != nil {
				t.Fatal(err)
			}
			got, err := tpl.Render(vars)
			var refusal *Refusal
			switch {
			case c.Want != nil && err != nil:
				t.Errorf("%v\nwant %q", err, *c.Want)
			case c.Want != nil && got.s != *c.Want:
				t.Errorf("got  %q\nwant %q", got.s, *c.Want)
			case c.Refusal != "" && (!errors.As(err, &refusal) || refusal.Message != c.Refusal):
				t.Errorf("got %v, want refusal %q", err, c.Refusal)
			case c.Want == nil && err == nil:
				t.Errorf("got %q, want %s%s", got.s, c.Error, c.Refusal)
			}
		})
	}
}

func TestProvenance(t *testing.T) {
	const marked = "a<U>b" // what stands between < and > below is a user's
	tests := []struct{ template, want string }{
		{"x{{ u }}y", "x<a<U>b>y"},
		{"{{ '[' + u + ']' }}", "[<a<U>b>]"},
		{"{{ u | upper }}", "<A<U>B>"},
		{"{{ '  ' ~ u ~ '  ' | trim }}", "  <a<U>b>"},
		{"{{ ('  ' ~ u ~ '  ') | trim }}", "<a<U>b>"},
		{"{{ u[1:4] }}", "<<U>>"},
		{"{{ u[::-1] }}", "<b>U<a>"},
		{"{{ u.split('<')[1] }}", "<U>b>"},
		{"{{ u.replace('U', '!') }}", "<a<>!<>b>"},
		{"{{ 'aXb'.replace('X', u) }}", "a<a<U>b>b"},
		{"{{ [u, 'q'] | join('-') }}", "<a<U>b>-q"},
		{"{{ {'k': u} | tojson }}", `{"k": "<a<U>b>"}`},
		{"{{ {u: 1} }}", "{'<a<U>b>': 1}"},
		{"{% set z %}[{{ u }}]{% endset %}{{ z }}", "[<a<U>b>]"},
		{"{% macro m(x) %}({{ x }}){% endmacro %}{{ m(u) }}", "(<a<U>b>)"},
		{"{% for c in u %}{{ c }}.{% endfor %}", "<a>.<<>.<U>.<>>.<b>."},
		{"{{ u | indent(1) }}{{ u | title }}{{ u | capitalize }}", "<a<U>bA<U>BA<u>b>"},
		{"{{ 'x' * 2 }}{{ u * 2 }}", "xx<a<U>ba<U>b>"},
		{"{{ u.strip('ab') }}|{{ u | first }}|{{ u.removeprefix('a') }}", "<<U>>|<a>|<<U>b>"},
		{"{{ u if '<U>' in u else '' }}{{ u == 'a<U>b' }}", "<a<U>b>True"},
		{"{{ u | string }}{{ u | default('d') }}{{ (u ~ 1) | safe }}", "<a<U>ba<U>ba<U>b>1"},
	}
	for _, tt := range tests {
		tpl, err := Compile(tt.template)
		if err != nil {
			t.Fatalf("%s: %v", tt.template, err)
		}
		out, err := tpl.Render(map[string]any{"u": User(marked)})
		if err != nil {
			t.Fatalf("%s: %v", tt.template, err)
		}
		var b strings.Builder
		for s, user := range out.Parts() {
			if user {
				s = "<" + s + ">"
			}
			b.WriteString(s)
		}
		if b.String() != tt.want {
			t.Errorf("%s\n got %s\nwant %s", tt.template, b.String(), tt.want)
		}
	}
}

func TestBounds(t *testing.T) {
	tests := []struct{ name, template string }{
		{"loops", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"},
		{"range", "{{ range(10000000000) }}"},
		{"doubling", "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"},
		{"doubling list", "{% set ns = namespace(s=[1]) %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"},
		{"shared list", "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}"},
		{"deep list", "{% set ns = namespace(s=[1]) %}{% for i in range(90000) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s | tojson }}"},
		{"equal", "{% set ns = namespace(s=[1], t=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.s == ns.t }}"},
		{"repeat", "{{ 'x' * 1000000000000 }}"},
		{"repeat twice", "{{ ('x' * 100000000) ~ ('x' * 100000000) }}"},
		{"macro", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"},
		{"output", "{% set x = 'x' * 1000000 %}{% for i in range(90000) %}{{ x }}{% endfor %}"},
		{"indent", "{{ ('\n' * 10000000) | indent(64, true, true) }}"},
		{"replace", "{{ ('x' * 1000000) | replace('x', 'y' * 1000000) }}"},
		{"join", "{{ range(99999) | join('x' * 1000000) }}"},
		{"self-holding namespace", "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tpl, err := Compile(tt.template)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if _, err := tpl.Render(nil); err == nil {
				t.Error("no error")
			}
			// Far above what any takes, far below what none may take.
			if d := time.Since(start); d > 30*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

func TestCompileRefuses(t *testing.T) {
	for _, src := range []string{
		"{% include 'x' %}", "{% import 'x' as y %}", "{% extends 'x' %}", "{{ open('x') }", "{{", "{%", "{#", "{{ 'a }}",
		"{% if %}{% endif %}", "{% if x %}", "{% for x %}{% endfor %}", "{{ x | nosuch }}", "{{ x is nosuch }}", "{% endif %}",
		"{{ 'a\\x4' }}", "{{ x[] }}", "{{ x[1:2:3:4] }}", "{{ 99999999999999999999 }}", "{% set = 1 %}", "{{ a b }}", "{{ f(a=1, 2) }}",
		strings.Repeat("{{ ", 1) + strings.Repeat("(", 200000) + "x", strings.Repeat("{% if x %}", 100000), "{{ " + strings.Repeat("not ", 100000) + "x }}",
		"{{ " + strings.Repeat("-", 100000) + "1 }}", "{% if x %}" + strings.Repeat("{% elif x %}", 50000) + "{% endif %}", strings.Repeat("x", maxSource+1),
	} {
		if _, err := Compile(src); err == nil {
			t.Errorf("%.60q compiles", src)
		}
	}
}

func TestNoClock(t *testing.T) {
	tpl, err := Compile("{{ strftime_now is defined }}{{ now is defined }}")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := tpl.Render(nil); err != nil || out.s != "FalseFalse" {
		t.Errorf("got %q, %v", out.s, err)
	}
}

func TestParseJSON(t *testing.T) {
	for _, s := range []string{"", "{", "[1", "1 2", `{"a":1}x`, `{"a" 1}`, strings.Repeat("[", 100000)} {
		if _, err := ParseJSON([]byte(s)); err == nil {
			t.Errorf("%.20q parses", s)
		}
	}
	v, err := ParseJSON([]byte(`{"z":1,"a":[true,null,1.5,"x"],"z":2}`))
	if err != nil {
		t.Fatal(err)
	}
	out, err := (&run{}).json(v, -1)
	if want := `{"z": 2, "a": [true, null, 1.5, "x"]}`; err != nil || out.s != want {
		t.Errorf("got %s, %v, want %s", out.s, err, want)
	}
}

func FuzzRender(f *testing.F) {
	b, err := os.ReadFile("testdata/cases.json")
	if err != nil {
		f.Fatal(err)
	}
	var file struct{ Cases []struct{ Template string } }
	if err := json.Unmarshal(b, &file); err != nil {
		f.Fatal(err)
	}
	for _, c := range file.Cases {
		f.Add(c.Template, "a <b> é")
	}
	f.Fuzz(func(t *testing.T, source, user string) {
		if len(source) > 2000 {
			return
		}
		tpl, err := Compile(source)
		if err != nil {
			return
		}
		m := NewDict()
		m.Set("role", Literal("user"))
		m.Set("content", User(user))
		out, err := tpl.Render(map[string]any{"messages": NewList(m), "u": User(user), "n": int64(3)})
		if err != nil {
			return
		}
		n := 0
		for s := range out.Parts() {
			n += len(s)
		}
		if n != len(out.s) {
			t.Errorf("parts add up to %d bytes of %d", n, len(out.s))
		}
	})
}
