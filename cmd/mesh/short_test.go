package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/node/api"
)

// TestFindModel lets the beginning of an ID stand for it, if it is of one model alone.
func TestFindModel(t *testing.T) {
	id := func(begin string) mesh.Hash {
		h, err := mesh.ParseHash(begin + strings.Repeat("0", 63-len(begin)) + "1")
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	models := []api.Model{
		{Name: "one", Model: id("abcdef1"), Root: id("123456")},
		{Name: "two", Model: id("abcdef2")},
		{Name: "three", Root: id("fedcba")}, // half pulled
		{Name: "abcdef2", Model: id("777777")},
		{Name: "both", Model: id("5555551"), Root: id("5555552")},
	}
	for _, c := range []struct{ ref, want, err string }{
		{"one", "one", ""}, {"abcdef1", "one", ""}, {id("abcdef1").String(), "one", ""}, {"123456", "one", ""},
		{"fedcba", "three", ""}, {"abcdef2", "abcdef2", ""}, {"abcdef20", "two", ""}, {"777777", "abcdef2", ""}, {"555555", "both", ""},
		{"abcdef", "", "type more digits"}, {"abcde", "", ""}, {"ABCDEF1", "", ""}, {"999999", "", ""}, {"000000", "", ""}, {"", "", ""},
	} {
		m, found, err := findModel(models, c.ref)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q: error %v, want %q", c.ref, err, c.err)
			}
		case err != nil || found != (c.want != "") || found && m.Name != c.want:
			t.Errorf("%q: %q, %v, %v, want %q", c.ref, m.Name, found, err, c.want)
		}
	}
}

// TestShortIDs types the beginnings of IDs that lists show.
func TestShortIDs(t *testing.T) {
	n := newNetwork(t, 1, "")
	models, err := n.client(n.light).Models(t.Context())
	if err != nil || len(models) != 1 {
		t.Fatalf("%d models, %v", len(models), err)
	}
	model := models[0].Model.String()
	a, err := ask(t.Context(), n.client(n.light), chatRequest{Messages: []chatMessage{{"user", "hello"}}, MaxTokens: 4}, nil)
	if err != nil {
		t.Fatal(err)
	}
	request := a.Receipt.String()
	code, receipts, stderr := meshCommand(t, "receipt", "show", request, "--json", "--api", n.light.Ready.API)
	if code != exitDone {
		t.Fatal(stderr)
	}
	folder := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("receipt.json", receipts)
	at := strings.Index(receipts, `"signed": "`) + 30
	forged := file("forged.json", receipts[:at]+string("AB"[strings.Count("A", receipts[at:at+1])])+receipts[at+1:])
	wrong := strings.Map(func(r rune) rune { return rune("0f"[strings.Count("f", string(r))^1]) }, request[:6]) // no digit is right
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"chat", "hello", "--max-tokens", "4", "--json", "--model", model[:6]}, exitDone, `"receipt"`},
		{[]string{"chat", "hello", "--price-cap", "0"}, exitUsage, "from 1"},
		{[]string{"model", "show", model[:12]}, exitDone, model},
		{[]string{"receipt", "show", request[:6]}, exitDone, request},
		{[]string{"receipt", "show", request[:63]}, exitDone, request},
		{[]string{"receipt", "show", request[:5]}, exitUsage, "the first 6 or more"},
		{[]string{"receipt", "show", wrong}, exitFailed, "not found"},
		{[]string{"receipt", "verify", request}, exitDone, "no escrow pays it"},
		{[]string{"receipt", "verify", request[:8], "--json"}, exitDone, `"state": "free"`},
		{[]string{"receipt", "verify", good}, exitDone, "begins the answer"},
		{[]string{"receipt", "verify", forged}, exitFailed, "NOT VALID"},
		{[]string{"receipt", "verify", forged}, exitFailed, "is not in order"},
		{[]string{"receipt", "verify", file("empty.json", "[]")}, exitFailed, "mesh receipt show ID --json"},
		{[]string{"receipt", "verify", file("other.json", "{}")}, exitFailed, "mesh receipt show ID --json"},
		{[]string{"receipt", "verify", wrong}, exitFailed, "not found"},
		{[]string{"receipt", "verify", "nowhere.json"}, exitFailed, "neither an ID"},
	} {
		code, stdout, stderr := meshCommand(t, append(c.args, "--home", n.light.Ready.Home)...)
		if code != c.code || !strings.Contains(stdout+stderr, c.want) {
			t.Errorf("mesh %s: exit code %d, want %d and %q in\n%s%s", strings.Join(c.args, " "), code, c.code, c.want, stdout, stderr)
		}
	}
}
