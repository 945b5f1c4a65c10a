package plainly

import (
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// TestYAML: a mistake in a file is told without the types of this program.
func TestYAML(t *testing.T) {
	for text, want := range map[string]string{
		"contxt: x":              "line 1: there is no setting contxt",
		"model: x\nslots: abc":   "line 2: abc: want a whole number",
		"model: {a: b}":          "line 1: want a text",
		"contxt: x\nslots: abc":  "line 1: there is no setting contxt; line 2: abc: want a whole number",
		"pace: soon":             "line 1: soon: want a time, like 100ms",
		"light: perhaps":         "line 1: perhaps: want true or false",
		"model: x\n  slots: [1,": "", // not a TypeError: as the parser says it
	} {
		var into struct {
			Model string        `yaml:"model"`
			Slots int           `yaml:"slots"`
			Pace  time.Duration `yaml:"pace"`
			Light bool          `yaml:"light"`
		}
		dec := yaml.NewDecoder(strings.NewReader(text))
		dec.KnownFields(true)
		err := dec.Decode(&into)
		if err == nil {
			t.Fatalf("%q is taken", text)
		}
		if got := YAML(err).Error(); want != "" && got != want || strings.Contains(got, "unmarshal") {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
