package plainly

import (
	"errors"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

var (
	unknownField = regexp.MustCompile(`field (\S+) not found in type .*`)
	wrongValue   = regexp.MustCompile("cannot unmarshal !!\\S+(?: (`.*`))? into (\\S+)")
)

// wanted are Go's types in words for who writes a file.
var wanted = map[string]string{"uint64": "a whole number from 0", "int64": "a whole number", "int": "a whole number", "bool": "true or false",
	"string": "a text", "[]string": "a list", "time.Duration": "a time, like 100ms"}

// YAML returns what is wrong with a file, on one line and without the types of this program.
func YAML(err error) error {
	var wrong *yaml.TypeError
	if !errors.As(err, &wrong) {
		return err
	}
	var lines []string
	for _, line := range wrong.Errors {
		line = unknownField.ReplaceAllString(line, "there is no setting $1")
		if m := wrongValue.FindStringSubmatch(line); m != nil {
			want := wanted[m[2]]
			if want == "" {
				want = "another form"
			}
			line = strings.Replace(line, m[0], strings.TrimPrefix(strings.Trim(m[1], "`")+": want "+want, ": "), 1)
		}
		lines = append(lines, line)
	}
	return &reason{strings.Join(lines, "; "), err}
}
