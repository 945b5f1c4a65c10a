package main

import "fmt"

// smallModel is a file that caches of processors may hold, and beside which a process
// itself is large: set against it, memory and its speed mean nothing.
const smallModel = 64 << 20

// benchRows writes one row a figure, and leaves out what nobody measured.
func benchRows(all []engineBench) [][]string {
	var rows [][]string
	add := func(name string, cell func(engineBench) string) {
		row := []string{name}
		some := false
		for _, b := range all {
			c := cell(b)
			some = some || c != ""
			row = append(row, c)
		}
		if some {
			rows = append(rows, row)
		}
	}
	number := func(name, format string, value func(engineBench) float64) {
		add(name, func(b engineBench) string {
			if v := value(b); v != 0 {
				return fmt.Sprintf(format, v)
			}
			return ""
		})
	}
	number("memory read, GB/s", "%.1f", func(b engineBench) float64 { return b.Roof })
	number("decode, tok/s", "%.1f", func(b engineBench) float64 { return b.Decode })
	number("  of the memory read", "%.0f %%", func(b engineBench) float64 {
		if b.Bytes < smallModel {
			return 0
		}
		return 100 * b.OfRoof
	})
	number(fmt.Sprintf("prefill %d, tok/s", prefillTokens), "%.0f", func(b engineBench) float64 { return b.Prefill })
	number(fmt.Sprintf("score %d, tok/s", prefillTokens), "%.0f", func(b engineBench) float64 { return b.Score })
	for n := range 5 {
		add(fmt.Sprintf("%d at once, tok/s", 1<<n), func(b engineBench) string {
			if n >= len(b.Batches) {
				return ""
			}
			return fmt.Sprintf("%.1f (%.1f ×)", b.Batches[n].Speed, b.Batches[n].Ratio)
		})
	}
	firstTokens(add)
	pointers(add)
	number("open in this process", "%.0f ms", func(b engineBench) float64 { return b.LoadMS })
	return rows
}

// firstTokens adds the rows of what others take from a newcomer.
func firstTokens(add func(string, func(engineBench) string)) {
	add("first token, idle", func(b engineBench) string {
		if b.Newcomer == nil {
			return ""
		}
		return fmt.Sprintf("%.0f ms", b.Newcomer.Idle)
	})
	add("  beside 15 of its payer", func(b engineBench) string {
		if b.Newcomer == nil {
			return ""
		}
		return fmt.Sprintf("%.0f ms (%.2f ×)", b.Newcomer.Same, b.Newcomer.SameRatio)
	})
	add("  beside 15 of other payers", func(b engineBench) string {
		if b.Newcomer == nil {
			return ""
		}
		return fmt.Sprintf("%.0f ms (%.2f ×)", b.Newcomer.Other, b.Newcomer.OtherRatio)
	})
}

// pointers adds the rows of the other figures that come together.
func pointers(add func(string, func(engineBench) string)) {
	add(fmt.Sprintf("check of %d tokens", answerTokens), func(b engineBench) string {
		if b.Check == nil {
			return ""
		}
		return fmt.Sprintf("%.1f %% (%.0f of %.0f ms)", 100*b.Check.Share, b.Check.Check, b.Check.Generate)
	})
	add("long prompt", func(b engineBench) string {
		if b.Prefix == nil {
			return ""
		}
		return fmt.Sprintf("%d tokens: %.0f ms", b.Prefix.Prompt, b.Prefix.First)
	})
	add("  its beginning kept", func(b engineBench) string {
		if b.Prefix == nil {
			return ""
		}
		return fmt.Sprintf("%d tokens: %.0f ms (%.1f %% less)", b.Prefix.Common, b.Prefix.Second, 100*b.Prefix.Less)
	})
	add("start to first token", func(b engineBench) string {
		if b.Start == nil {
			return ""
		}
		return fmt.Sprintf("%.0f, then %.0f ms", b.Start.First, b.Start.Again)
	})
	add("  of mesh up", func(b engineBench) string {
		if b.Start == nil {
			return ""
		}
		return fmt.Sprintf("%.0f, then %.0f ms", b.Start.NodeFirst, b.Start.NodeAgain)
	})
	add("memory", func(b engineBench) string {
		if b.Memory == nil || b.Memory.RSS == 0 {
			return ""
		}
		return fmt.Sprintf("%s, then %s", size(b.Memory.RSS), size(b.Memory.AgainRSS))
	})
	add("  over file, keys, values", func(b engineBench) string {
		if b.Memory == nil || b.Memory.RSS == 0 || b.Bytes < smallModel {
			return ""
		}
		return fmt.Sprintf("%+.1f, then %+.1f %%", 100*b.Memory.Over, 100*b.Memory.AgainOver)
	})
	add("two processes", func(b engineBench) string {
		if b.Crowd == nil {
			return ""
		}
		return fmt.Sprintf("%.1f tok/s (%.2f ×)", b.Crowd.Two, b.Crowd.Ratio)
	})
}
