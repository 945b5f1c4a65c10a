package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	meshmodel "github.com/gonka-mesh/mesh/inference/model"
)

// setting is one comparison: a model, the kernels of each side, and threads.
type setting struct {
	Shape   string `json:"shape"`
	Format  string `json:"format"`
	Mesh    string `json:"mesh"`      // kernels
	Peer    string `json:"llama_cpp"` // variant of its libraries
	Threads int    `json:"threads"`
}

// result holds tokens/s of both sides, and the median of the ratios of the rounds.
// OfRoof is what our side makes of the memory that it reads a token's weights from:
// the median of the rounds, each with its own measurement; decode only.
type result struct {
	setting
	Work   string    `json:"work"`
	Mesh   []float64 `json:"mesh_tok_s"`
	Peer   []float64 `json:"llama_cpp_tok_s"`
	Ratio  float64   `json:"ratio"`
	Lowest float64   `json:"ratio_min"`
	Most   float64   `json:"ratio_max"`
	OfRoof float64   `json:"mesh_of_roof,omitempty"`
}

// kernels pairs ours with the variant of llama.cpp that uses the same instructions.
var kernels = map[string]string{"avx512": "icelake", "avx2": "haswell"}

var work = []struct {
	verb string
	n    int
}{{"decode", 32}, {"prefill", 128}, {"score", 128}}

func main() {
	if err := bench(); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func bench() error {
	shape := flag.String("shape", "", "random weights of this shape (default: 0.5b, and 0.6b for formats that do not fit it)")
	formats := flag.String("formats", "q8_0,q4_k", "formats of its weights")
	sets := flag.String("kernels", "avx512,avx2", "instruction sets: avx512, avx2")
	threads := flag.String("threads", "1,2", "threads, the same on both sides")
	rounds := flag.Int("rounds", 5, "rounds after one that warms up; the median of their ratios counts")
	asJSON := flag.Bool("json", false, "write JSON")
	flag.Parse()
	dir, err := os.MkdirTemp("", "mesh-peers-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var results []result
	for format := range strings.SplitSeq(strings.ToUpper(*formats), ",") {
		name, file, err := weights(dir, *shape, format)
		if err != nil {
			return err
		}
		for set := range strings.SplitSeq(*sets, ",") {
			if kernels[set] == "" {
				return fmt.Errorf("no kernels %q: want avx512 or avx2", set)
			}
			for n := range strings.SplitSeq(*threads, ",") {
				count, err := strconv.Atoi(n)
				if err != nil || count < 1 {
					return fmt.Errorf("%q is no number of threads", n)
				}
				s := setting{name, format, set, kernels[set], count}
				more, err := compare(dir, file, s, *rounds)
				if err != nil {
					return fmt.Errorf("%s with %s and %d threads: %w", format, set, count, err)
				}
				for _, r := range more {
					fmt.Fprintf(os.Stderr, "%s %s, %s, %d threads, %s: %.2f\n", r.Shape, r.Format, r.setting.Mesh, r.Threads, r.Work, r.Ratio)
				}
				results = append(results, more...)
			}
		}
		os.Remove(file)
	}
	if *asJSON {
		return json.NewEncoder(os.Stdout).Encode(results)
	}
	return show(results)
}

// weights makes the model of a comparison. Both sides would compute with another format
// where rows are not whole blocks of the one that is asked for, so that is refused, or
// the next shape tried.
func weights(dir, shape, format string) (name, file string, err error) {
	names := []string{shape}
	if shape == "" {
		names = []string{"0.5b", "0.6b"}
	}
	for _, name = range names {
		if file, err = synthesize(dir, name, format); err != nil {
			return name, "", err
		}
		if err = isAll(file, format); err == nil {
			return name, file, nil
		}
		os.Remove(file)
	}
	return name, "", fmt.Errorf("shape %s: %w", name, err)
}

// isAll reports a matrix that became Q8_0 where another format was asked for.
func isAll(file, format string) error {
	f, err := meshmodel.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, t := range f.Tensors {
		if len(t.Shape) > 1 && t.Format == meshmodel.Q8_0 && format != "Q8_0" {
			return fmt.Errorf("%s is %v, not %s: its rows of %d are not whole blocks", t.Name, t.Format, format, t.In())
		}
	}
	return nil
}

func synthesize(dir, name, format string) (string, error) {
	shape, err := meshmodel.ShapeOf(name)
	if err != nil {
		return "", err
	}
	f, err := meshmodel.FormatOf(strings.ToUpper(format))
	if err != nil {
		return "", err
	}
	out, err := os.Create(filepath.Join(dir, name+"-"+format+".gguf"))
	if err != nil {
		return "", err
	}
	return out.Name(), errors.Join(meshmodel.Synthesize(out, shape, f, 1), out.Close())
}

// roof asks `mesh bench` what the memory gives, in bytes a second.
func roof(kernels string, threads int) (float64, error) {
	cmd := exec.Command("bin/mesh", "bench", "--json", "--part", "roof", "--rounds", "1", "--kernels", kernels, "--threads", strconv.Itoa(threads))
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("measure the memory: %w", err)
	}
	var doc struct {
		Engine []struct {
			Roof float64 `json:"roof_gb_s"`
		} `json:"engine"`
	}
	if err := json.Unmarshal(out, &doc); err != nil || len(doc.Engine) != 1 || doc.Engine[0].Roof <= 0 {
		return 0, errors.Join(errors.New("measure the memory: no figure came"), err)
	}
	return doc.Engine[0].Roof * 1e9, nil
}

// compare lets both sides take turns.
func compare(dir, file string, s setting, rounds int) ([]result, error) {
	ours, err := mesh(s.Mesh, file, s.Threads)
	if err != nil {
		return nil, err
	}
	defer ours.close()
	theirs, err := llamaCPP(dir, s.Peer, file, s.Threads)
	if err != nil {
		return nil, err
	}
	defer theirs.close()
	results := make([]result, len(work))
	for i := range results {
		results[i].setting, results[i].Work = s, fmt.Sprintf("%s %d", work[i].verb, work[i].n)
	}
	shape, err := meshmodel.ShapeOf(s.Shape)
	if err != nil {
		return nil, err
	}
	read, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	var shares []float64
	for round := range rounds + 1 { // the first one warms up
		limit, err := roof(s.Mesh, s.Threads)
		if err != nil {
			return nil, err
		}
		for i, w := range work {
			a, err := ours.time(w.verb, w.n)
			if err != nil {
				return nil, fmt.Errorf("mesh: %w", err)
			}
			b, err := theirs.time(w.verb, w.n)
			if err != nil {
				return nil, fmt.Errorf("llama.cpp: %w", err)
			}
			if round > 0 {
				results[i].Mesh = append(results[i].Mesh, float64(w.n)/a.Seconds())
				results[i].Peer = append(results[i].Peer, float64(w.n)/b.Seconds())
				if w.verb == "decode" {
					shares = append(shares, float64(w.n)/a.Seconds()*float64(read.Size())/limit)
				}
			}
		}
	}
	for i := range results {
		r := &results[i]
		ratios := make([]float64, len(r.Mesh))
		for j := range ratios {
			ratios[j] = r.Mesh[j] / r.Peer[j]
		}
		r.Ratio, r.Lowest, r.Most = median(ratios), slices.Min(ratios), slices.Max(ratios)
		// Nearly all of the file are weights, and a token reads them once if these hold.
		if work[i].verb == "decode" && shape.Tied && shape.Experts == 0 {
			r.OfRoof = median(shares)
		}
	}
	return results, nil
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return (x[(len(x)-1)/2] + x[len(x)/2]) / 2
}

func show(results []result) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MODEL\tKERNELS\tTHREADS\tWORK\tMESH tok/s\tLLAMA.CPP tok/s\tRATIO\tOF THE ROUNDS\tMESH OF THE MEMORY READ")
	for _, r := range results {
		share := ""
		if r.OfRoof > 0 {
			share = fmt.Sprintf("%.0f %%", 100*r.OfRoof)
		}
		fmt.Fprintf(w, "%s %s\t%s / %s\t%d\t%s\t%.1f\t%.1f\t%.2f\t%.2f-%.2f\t%s\n", r.Shape, r.Format, r.setting.Mesh, r.setting.Peer, r.Threads, r.Work,
			median(r.Mesh), median(r.Peer), r.Ratio, r.Lowest, r.Most, share)
	}
	return w.Flush()
}
