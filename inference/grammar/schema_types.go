package grammar

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// white is the white space between the parts of an object or array.
func (c *schema) white() expr {
	return c.once("white space", func() expr {
		return alt{literal(""), literal(" "), seq{literal("\n"), repeat{class{{' ', ' '}}, 0, 32}}}
	})
}

// char is a character of a JSON string, in any spelling.
func (c *schema) char() expr {
	return c.once("character", func() expr {
		hex := class{{'0', '9'}, {'A', 'F'}, {'a', 'f'}}
		notD, d := class{{'0', '9'}, {'A', 'C'}, {'E', 'F'}, {'a', 'c'}, {'e', 'f'}}, class{{'D', 'D'}, {'d', 'd'}}
		high, low := class{{'8', '9'}, {'A', 'B'}, {'a', 'b'}}, class{{'C', 'F'}, {'c', 'f'}}
		return alt{
			append(slices.Clone(plain), span{0x7F, 0x7F}).normal(),
			seq{literal(`\`), class{{'"', '"'}, {'/', '/'}, {'\\', '\\'}, {'b', 'b'}, {'f', 'f'}, {'n', 'n'}, {'r', 'r'}, {'t', 't'}}},
			seq{literal(`\u`), notD, hex, hex, hex},
			seq{literal(`\u`), d, class{{'0', '7'}}, hex, hex},
			seq{literal(`\u`), d, high, hex, hex, literal(`\u`), d, low, hex, hex},
		}
	})
}

// any is any JSON value.
func (c *schema) any() expr {
	return c.once("value", func() expr {
		return alt{
			c.anyObject(), c.list(c.any(), 0, -1), quoted(repeat{c.char(), 0, -1}), c.anyNumber(false),
			literal("true"), literal("false"), literal("null"),
		}
	})
}

func (c *schema) anyObject() expr {
	return c.once("object", func() expr {
		member := seq{quoted(repeat{c.char(), 0, -1}), literal(":"), c.white(), c.any()}
		return c.members(member, 0, -1, "{", "}")
	})
}

func quoted(e expr) expr { return seq{literal(`"`), e, literal(`"`)} }

// members puts least to most items between brackets.
func (c *schema) members(item expr, least, most int, open, end string) expr {
	more := repeat{seq{literal(","), c.white(), item}, max(least-1, 0), -1}
	if most >= 0 {
		more.max = max(most-1, 0)
	}
	out := alt{}
	if most != 0 {
		out = append(out, seq{item, more, c.white(), literal(end)})
	}
	if least <= 0 {
		out = append(out, literal(end))
	}
	return seq{literal(open), c.white(), out}
}

func (c *schema) list(item expr, least, most int) expr {
	return c.members(item, least, most, "[", "]")
}

// count reads a keyword that is a number of things.
func count(o *object, path, key string, otherwise int) (int, error) {
	v, has := o.values[key]
	if !has {
		return otherwise, nil
	}
	n, _ := v.(json.Number)
	i, err := strconv.Atoi(string(n))
	if err != nil || i < 0 || i > MaxRepeat {
		return 0, fault(under(path, key), "want a whole number from 0 to %d", MaxRepeat)
	}
	return i, nil
}

func bounds(o *object, path, least, most string) (lo, hi int, err error) {
	if lo, err = count(o, path, least, 0); err != nil {
		return 0, 0, err
	}
	if hi, err = count(o, path, most, -1); err != nil {
		return 0, 0, err
	}
	if hi >= 0 && hi < lo {
		return 0, 0, fault(path, "%s is %d and %s is %d: nothing satisfies that", least, lo, most, hi)
	}
	return lo, hi, nil
}

func (c *schema) text(o *object, path string) (expr, error) {
	lo, hi, err := bounds(o, path, "minLength", "maxLength")
	if err != nil {
		return nil, err
	}
	pattern, key := "", ""
	for _, k := range []string{"pattern", "format"} {
		v, has := o.values[k]
		if !has {
			continue
		}
		s, ok := v.(string)
		if !ok {
			return nil, fault(under(path, k), "want a string")
		}
		for _, other := range []string{"minLength", "maxLength", key} {
			if _, has := o.values[other]; has {
				return nil, fault(under(path, k), "the keyword %q is not supported beside %s", k, other)
			}
		}
		if pattern, key = s, k; k == "format" {
			if pattern = formats[s]; pattern == "" {
				return nil, fault(under(path, k), "the format %.40q is not supported; %s are", s, strings.Join(formatNames(), ", "))
			}
		}
	}
	if key == "" {
		return quoted(repeat{c.char(), lo, hi}), nil
	}
	e, err := c.pattern(pattern)
	if err != nil {
		return nil, fault(under(path, key), "%v", err)
	}
	return quoted(e), nil
}

// array reads items, prefixItems and their number. Without items, an array that has
// prefixItems is no longer than those.
func (c *schema) array(o *object, path string) (expr, error) {
	least, most, err := bounds(o, path, "minItems", "maxItems")
	if err != nil {
		return nil, err
	}
	var fixed []expr
	first, hasFirst := o.values["prefixItems"]
	list, ok := first.([]any)
	if hasFirst && !ok {
		return nil, fault(under(path, "prefixItems"), "want an array of schemas")
	}
	for i, v := range list {
		e, err := c.value(v, under(under(path, "prefixItems"), i))
		if err != nil {
			return nil, err
		}
		fixed = append(fixed, e)
	}
	items, hasItems := o.values["items"]
	var item expr
	switch {
	case hasItems && items != false:
		if item, err = c.value(items, under(path, "items")); err != nil {
			return nil, err
		}
	case !hasItems && !hasFirst:
		item = c.any()
	case most < 0 || most > len(fixed):
		most = len(fixed)
	}
	if most >= 0 && most < least {
		return nil, fault(path, "minItems is %d, but there are at most %d items", least, most)
	}
	if len(fixed) == 0 {
		return c.list(item, least, most), nil
	}
	return c.tuple(fixed, item, least, most), nil
}

// tuple is an array that begins with fixed items. Rule i of it is what follows i items.
func (c *schema) tuple(fixed []expr, item expr, least, most int) expr {
	end := seq{c.white(), literal("]")}
	var after expr = end
	if item != nil {
		more := repeat{seq{literal(","), c.white(), item}, max(least-len(fixed), 0), -1}
		if most >= 0 {
			more.max = max(most-len(fixed), 0)
		}
		after = seq{more, end}
	}
	for i := len(fixed) - 1; i >= 0; i-- {
		next := c.add("items", after)
		here := alt{}
		if most < 0 || i < most {
			comma := expr(literal(""))
			if i > 0 {
				comma = seq{literal(","), c.white()}
			}
			here = append(here, seq{comma, fixed[i], next})
		}
		switch {
		case i >= least && i > 0:
			here = append(here, end)
		case i >= least:
			here = append(here, literal("]"))
		}
		after = here
	}
	return seq{literal("["), c.white(), after}
}

// maxName bounds the name of a property, in bytes.
const maxName = 1 << 10

// member is a property of an object.
type member struct {
	name     string
	value    expr
	required bool
}

// object reads properties, which come in the order of the schema. Others follow them if
// additionalProperties allows them, or if no properties are declared.
func (c *schema) object(o *object, path string) (expr, error) {
	declared, ok := o.values["properties"].(*object)
	if _, has := o.values["properties"]; has && !ok {
		return nil, fault(under(path, "properties"), "want an object")
	}
	if !ok {
		declared = &object{}
	}
	var others expr
	v, has := o.values["additionalProperties"]
	switch {
	case has && v != false:
		var err error
		if others, err = c.value(v, under(path, "additionalProperties")); err != nil {
			return nil, err
		}
	case !has && len(declared.keys) == 0:
		others = c.any()
	}
	list, at := []member{}, map[string]int{}
	for _, key := range declared.keys {
		if len(key) > maxName {
			return nil, fault(under(path, "properties"), "a name has %d bytes, at most %d are supported", len(key), maxName)
		}
		e, err := c.value(declared.values[key], under(under(path, "properties"), key))
		if err != nil {
			return nil, err
		}
		at[key] = len(list)
		list = append(list, member{name: key, value: e})
	}
	required, ok := o.values["required"].([]any)
	if _, has := o.values["required"]; has && !ok {
		return nil, fault(under(path, "required"), "want an array of names")
	}
	for _, v := range required {
		name, ok := v.(string)
		if !ok {
			return nil, fault(under(path, "required"), "want an array of names")
		}
		i, ok := at[name]
		if !ok {
			if others == nil {
				return nil, fault(under(path, "required"), "%.60q is not among the properties", name)
			}
			i = len(list)
			at[name] = i
			list = append(list, member{name: name, value: others})
		}
		list[i].required = true
	}
	return c.inOrder(list, others), nil
}

// inOrder makes two rules for each place between members: what follows if a member is
// to come, and what follows a member.
func (c *schema) inOrder(list []member, others expr) expr {
	end := seq{c.white(), literal("}")}
	var want, after expr
	canEnd := true
	if others == nil {
		want, after = alt{}, end
	} else {
		last := c.add("members", nil)
		want = seq{c.otherKey(list), literal(":"), c.white(), others, last}
		want = c.add("members", want)
		c.bodies[last] = alt{seq{literal(","), c.white(), want}, end}
		after = last
	}
	for i := len(list) - 1; i >= 0; i-- {
		m := list[i]
		here := alt{seq{literal(quote(m.name) + ":"), c.white(), m.value, c.add("members", after)}}
		if !m.required {
			here = append(here, want)
		}
		want = c.add("members", here)
		canEnd = canEnd && !m.required
		after = seq{literal(","), c.white(), want}
		if canEnd {
			after = alt{after, end}
		}
	}
	if canEnd {
		want = alt{want, literal("}")}
	}
	return seq{literal("{"), c.white(), want}
}

// otherKey is a string that is none of the names, and free of escapes as far as it
// begins like one.
func (c *schema) otherKey(list []member) expr {
	names := make([]string, len(list))
	for i, m := range list {
		names[i] = m.name
	}
	return seq{literal(`"`), c.notOf(names)}
}

// notOf is the rest of a string, with its closing quote, that is none of the names.
func (c *schema) notOf(names []string) expr {
	if len(names) == 0 {
		return c.once("rest of a key", func() expr { return seq{repeat{c.char(), 0, -1}, literal(`"`)} })
	}
	next := map[rune][]string{}
	var firsts class
	ends := false
	for _, s := range names {
		if s == "" {
			ends = true
			continue
		}
		r, size := utf8.DecodeRuneInString(s)
		next[r] = append(next[r], s[size:])
		firsts = append(firsts, span{r, r})
	}
	firsts = firsts.normal()
	ascii, far := class{{0, 0x7F}}, class{{0x80, 0x10FFFF}}
	others := firsts.not().and(append(slices.Clone(plain), span{0x7F, 0x7F}).normal())
	out := alt{seq{alt{others.and(ascii), c.shared(others.and(far))}, c.notOf(nil)}}
	if !ends {
		out = append(out, literal(`"`))
	}
	for _, s := range firsts {
		for r := s.lo; r <= s.hi; r++ {
			text := quote(string(r))
			out = append(out, seq{literal(text[1 : len(text)-1]), c.notOf(next[r])})
		}
	}
	return out
}
