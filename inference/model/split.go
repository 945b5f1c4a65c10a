package model

import (
	"unicode"
	"unicode/utf8"
)

// splitter returns the length in bytes of the first word of a text that is not
// empty. The splitters below are hand-written forms of the pre-tokenizer patterns
// of the models' own tokenizers; each looks at a character at most a few times, so
// no text makes them slow.
type splitter func(text string) int

type class uint8

const (
	other class = iota // neither letter, number nor space; invalid UTF-8 too
	letter
	number
	space   // White_Space but a line end
	newline // \r or \n
)

func classify(r rune) class {
	switch {
	case r < utf8.RuneSelf:
		switch {
		case r|0x20 >= 'a' && r|0x20 <= 'z':
			return letter
		case r >= '0' && r <= '9':
			return number
		case r == '\r' || r == '\n':
			return newline
		case r == ' ' || r >= '\t' && r <= '\r':
			return space
		}
		return other
	case unicode.IsLetter(r):
		return letter
	case unicode.IsNumber(r):
		return number
	case unicode.Is(unicode.White_Space, r):
		return space
	}
	return other
}

// first returns class and width of the first character; width 0 at the end.
func first(text string) (class, int) {
	if text == "" {
		return other, 0
	}
	r, n := utf8.DecodeRuneInString(text)
	return classify(r), n
}

// run returns the length of the characters of class c that text starts with.
func run(text string, c class) int {
	p := 0
	for {
		k, n := first(text[p:])
		if n == 0 || k != c {
			return p
		}
		p += n
	}
}

// spaces returns the length of the white space that text starts with, the length
// up to its last line end (0: none) and the width of its last character.
func spaces(text string) (all, toLine, last int) {
	for {
		k, n := first(text[all:])
		if n == 0 || k != space && k != newline {
			return all, toLine, last
		}
		all += n
		last = n
		if k == newline {
			toLine = all
		}
	}
}

// splitSpaces is \s+(?!\S)|\s+ at the start of white space: its last character
// stays for the word behind it.
func splitSpaces(text string) int {
	all, _, last := spaces(text)
	if all == len(text) || all == last {
		return all
	}
	return all - last
}

// contraction returns the length of an English contraction ('s 't 're 've 'm 'll
// 'd) at the start of text, or 0. Folding is that of (?i): ſ counts as s.
func contraction(text string, fold bool) int {
	if len(text) < 2 || text[0] != '\'' {
		return 0
	}
	lower := func(b byte) byte {
		if fold && b >= 'A' && b <= 'Z' {
			return b | 0x20
		}
		return b
	}
	switch lower(text[1]) {
	case 's', 't', 'm', 'd':
		return 2
	}
	if fold && len(text) >= 3 && text[1:3] == "ſ" {
		return 3
	}
	if len(text) >= 3 {
		switch string([]byte{lower(text[1]), lower(text[2])}) {
		case "re", "ve", "ll":
			return 3
		}
	}
	return 0
}

// splitGPT2 is 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// (openai/gpt-2, encoder.py).
func splitGPT2(text string) int {
	if n := contraction(text, false); n > 0 {
		return n
	}
	lead := 0
	if text[0] == ' ' {
		lead = 1
	}
	if c, n := first(text[lead:]); n > 0 && c != space && c != newline {
		return lead + run(text[lead:], c)
	}
	return splitSpaces(text)
}

// splitLlama3 is the pattern of Llama 3 (numbers in groups of three):
//
//	(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}
//	| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
func splitLlama3(text string) int { return splitModern(text, 3) }

// splitQwen2 is the pattern of Qwen2 and Qwen3: as Llama 3, numbers digit by digit.
func splitQwen2(text string) int { return splitModern(text, 1) }

func splitModern(text string, digits int) int {
	if n := contraction(text, true); n > 0 {
		return n
	}
	c, n := first(text)
	switch c {
	case letter:
		return run(text, letter)
	case number:
		p := n
		for range digits - 1 {
			k, m := first(text[p:])
			if m == 0 || k != number {
				break
			}
			p += m
		}
		return p
	case other, space:
		if next, m := first(text[n:]); m > 0 && next == letter {
			return n + run(text[n:], letter)
		}
	}
	lead := 0
	if text[0] == ' ' {
		lead = 1
	}
	if p := run(text[lead:], other); p > 0 {
		p += lead
		return p + run(text[p:], newline)
	}
	if _, toLine, _ := spaces(text); toLine > 0 {
		return toLine
	}
	return splitSpaces(text)
}
