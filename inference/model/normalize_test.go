package model

import (
	"strings"
	"testing"

	"golang.org/x/text/unicode/norm"
)

func TestNormalForms(t *testing.T) {
	tests := []struct{ in, nfc, nfd, nfkc string }{
		{"e\u0301", "\u00e9", "e\u0301", "\u00e9"},
		{"\u212b", "\u00c5", "A\u030a", "\u00c5"},
		{"s\u0307\u0323", "\u1e69", "s\u0323\u0307", "\u1e69"},
		{"\u1112\u1161\u11ab", "\ud55c", "\u1112\u1161\u11ab", "\ud55c"},
		{"\ud55c\u11a8", "\ud55c\u11a8", "\u1112\u1161\u11ab\u11a8", "\ud55c\u11a8"},
		{"\u0958", "\u0915\u093c", "\u0915\u093c", "\u0915\u093c"}, // excluded from composition
		{"\ufb01\u2460", "\ufb01\u2460", "\ufb01\u2460", "fi1"},
		{"\U00010413\u032f\u0301", "\U00010413\u032f\u0301", "\U00010413\u032f\u0301", "\U00010413\u032f\u0301"},
		{"\U00011099\u0301\U000110ba", "\U0001109a\u0301", "\U00011099\U000110ba\u0301", "\U0001109a\u0301"},
		{"\U00011131\U00011127", "\U0001112e", "\U00011131\U00011127", "\U0001112e"},
		{"a\xffe\u0301\xe2\x82", "a\xff\u00e9\xe2\x82", "a\xffe\u0301\xe2\x82", "a\xff\u00e9\xe2\x82"},
		{"e" + strings.Repeat("\u0301", 100), "\u00e9" + strings.Repeat("\u0301", 99), "e" + strings.Repeat("\u0301", 100), "\u00e9" + strings.Repeat("\u0301", 99)},
	}
	for _, tt := range tests {
		if got := nfc(tt.in); got != tt.nfc {
			t.Errorf("NFC of %+q: got %+q, want %+q", tt.in, got, tt.nfc)
		}
		if got := nfd(tt.in); got != tt.nfd {
			t.Errorf("NFD of %+q: got %+q, want %+q", tt.in, got, tt.nfd)
		}
		if got := nfkc(tt.in); got != tt.nfkc {
			t.Errorf("NFKC of %+q: got %+q, want %+q", tt.in, got, tt.nfkc)
		}
	}
}

// TestNormalFormsOfCharacters compares single characters, and each with marks behind
// it, with x/text, which is right about those.
func TestNormalFormsOfCharacters(t *testing.T) {
	for r := rune(0xA0); r < 0x2FA20; r++ {
		if r >= 0xD800 && r < 0xE000 {
			continue
		}
		s := string(r)
		for _, f := range []struct {
			name string
			got  string
			form norm.Form
		}{{"NFC", nfc(s), norm.NFC}, {"NFD", nfd(s), norm.NFD}, {"NFKC", nfkc(s), norm.NFKC}, {"NFKD", nfkd(s), norm.NFKD}} {
			if want := f.form.String(s); f.got != want {
				t.Fatalf("%s of %U: got %+q, want %+q", f.name, r, f.got, want)
			}
		}
		if r < 0x10000 && norm.NFC.String(s+"\u0301") != nfc(s+"\u0301") {
			t.Fatalf("%U with an acute accent: got %+q, want %+q", r, nfc(s+"\u0301"), norm.NFC.String(s+"\u0301"))
		}
	}
}
