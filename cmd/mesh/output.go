package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/gonka-mesh/mesh/node/api"
)

// writeJSON writes an indented document, the form of --json for reads.
func writeJSON(w io.Writer, doc any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(doc)
}

// list writes a table, or what it means that it is empty.
func list(cmd *cobra.Command, head []string, rows [][]string, none string) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(cmd.ErrOrStderr(), none)
		return err
	}
	return table(cmd.OutOrStdout(), head, rows)
}

// table writes rows in aligned columns.
func table(w io.Writer, head []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	fmt.Fprintln(tw, strings.Join(head, "\t"))
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(tw, "\t")
			}
			fmt.Fprint(tw, strings.NewReplacer("\n", " ", "\t", " ").Replace(printable(cell)))
		}
		fmt.Fprintln(tw)
	}
	return tw.Flush()
}

// fields writes name and value pairs, one a line; empty values are left out.
func fields(w io.Writer, pairs ...string) error {
	tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(tw, "%s\t%s\n", pairs[i], printable(pairs[i+1]))
		}
	}
	return tw.Flush()
}

// printable leaves out what would command a terminal, or turn the direction of its text:
// answers, names and refusals are of strangers.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t':
			return r
		case unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r):
			return -1
		}
		return r
	}, s)
}

// tame returns what writes only what is printable where w is a terminal; programs get an
// answer as it is.
func tame(w io.Writer) io.Writer {
	if !terminal(w) {
		return w
	}
	return tamed{w}
}

type tamed struct{ w io.Writer }

// Write takes whole characters.
func (t tamed) Write(b []byte) (int, error) {
	if _, err := io.WriteString(t.w, printable(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}

func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// showProgress returns a function that draws a bar on a terminal, and writes a
// plain line at every tenth elsewhere.
func showProgress(w io.Writer) func(api.Progress) {
	var bar *progressbar.ProgressBar
	stage, tenth := "", int64(-1)
	return func(p api.Progress) {
		if terminal(w) {
			if p.Stage != stage {
				stage = p.Stage
				bar = progressbar.NewOptions64(p.Total, progressbar.OptionSetWriter(w), progressbar.OptionShowBytes(true),
					progressbar.OptionSetDescription(stage), progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond))
			}
			_ = bar.Set64(p.Bytes)
			return
		}
		if p.Total <= 0 {
			return
		}
		if t := p.Bytes * 10 / p.Total; p.Stage != stage || t != tenth {
			stage, tenth = p.Stage, t
			fmt.Fprintf(w, "%s %3d %% of %s\n", p.Stage, p.Bytes*100/p.Total, size(p.Total))
		}
	}
}

// size writes a number of bytes for people.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

// age writes how long ago something was, roughly.
func age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return time.Since(t).Round(time.Second).String()
}

func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
