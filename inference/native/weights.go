package native

import (
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/gonka-mesh/mesh/inference/kernel"
	"github.com/gonka-mesh/mesh/inference/model"
)

// product is a matrix of a layer, or several of one input that stand one below the
// other, so that one pass over the threads computes them.
type product struct {
	parts []*kernel.Matrix // more than one where the formats differ
	rows  int
}

type layer struct {
	attnNorm, ffnNorm []float32
	qNorm, kNorm      []float32 // nil: none
	qkvBias, outBias  []float32 // nil: none
	qkv, out          product
	gateUp, down      product
}

// network is the model as it is computed: vectors widened, matrices packed.
type network struct {
	model.Config
	rope    kernel.Rope
	embed   *kernel.Matrix
	head    product
	norm    []float32
	layers  []layer
	scale   float32 // of attention scores
	formats string  // of the matrices
}

// load packs the matrices of f, several at a time, and gives the mapped pages of
// what was copied back to the system. With widen every matrix becomes F32.
func load(f *model.File, threads int, widen bool) (*network, error) {
	c := f.Config
	n := &network{
		Config: c, layers: make([]layer, c.Layers),
		rope:    kernel.Rope{Frequencies: c.InvFreq(), Interleaved: c.RopeKind == model.RopeInterleaved},
		scale:   float32(1 / math.Sqrt(float64(c.HeadDim))),
		formats: formats(f, widen),
	}
	work := errgroup.Group{}
	work.SetLimit(max(threads, 1))
	work.Go(func() (err error) { // first: it is the largest
		if n.norm, err = vector(f, "output_norm.weight"); err != nil {
			return err
		}
		if c.Tied {
			n.head, err = load1(f, widen, "token_embd.weight")
			n.embed = n.head.parts[0]
			return err
		}
		t := f.Tensor("token_embd.weight")
		if n.embed, err = kernel.NewMatrix(formatOf(t), t.Rows(), t.In(), t.Data); err != nil {
			return err
		}
		n.head, err = load1(f, widen, "output.weight")
		return err
	})
	for i := range n.layers {
		work.Go(func() error {
			if err := n.layers[i].load(f, fmt.Sprintf("blk.%d.", i), widen); err != nil {
				return fmt.Errorf("layer %d: %w", i, err)
			}
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		return nil, err
	}
	return n, nil
}

func (l *layer) load(f *model.File, prefix string, widen bool) error {
	for _, p := range []struct {
		into  *product
		names []string
	}{
		{&l.qkv, []string{"attn_q", "attn_k", "attn_v"}},
		{&l.out, []string{"attn_output"}},
		{&l.gateUp, []string{"ffn_gate", "ffn_up"}},
		{&l.down, []string{"ffn_down"}},
	} {
		names := make([]string, len(p.names))
		for i, name := range p.names {
			names[i] = prefix + name + ".weight"
		}
		var err error
		if *p.into, err = load1(f, widen, names...); err != nil {
			return err
		}
	}
	for _, v := range []struct {
		into  *[]float32
		names []string
		on    bool
	}{
		{&l.attnNorm, []string{"attn_norm.weight"}, true},
		{&l.ffnNorm, []string{"ffn_norm.weight"}, true},
		{&l.qNorm, []string{"attn_q_norm.weight"}, f.Config.QKNorm},
		{&l.kNorm, []string{"attn_k_norm.weight"}, f.Config.QKNorm},
		{&l.qkvBias, []string{"attn_q.bias", "attn_k.bias", "attn_v.bias"}, f.Config.QKVBias},
		{&l.outBias, []string{"attn_output.bias"}, f.Config.OutputBias},
	} {
		for _, name := range v.names {
			if !v.on {
				break
			}
			x, err := vector(f, prefix+name)
			if err != nil {
				return err
			}
			*v.into = append(*v.into, x...)
		}
	}
	return nil
}

func vector(f *model.File, name string) ([]float32, error) {
	t := f.Tensor(name)
	if t == nil {
		return nil, fmt.Errorf("tensor %q is missing", name)
	}
	return t.Float32s()
}

// load1 makes one product of the named tensors, which have equal rows.
func load1(f *model.File, widen bool, names ...string) (product, error) {
	var p product
	tensors := make([]*model.Tensor, len(names))
	for i, name := range names {
		t := f.Tensor(name)
		if t == nil {
			return p, fmt.Errorf("tensor %q is missing", name)
		}
		tensors[i] = t
		p.rows += t.Rows()
	}
	first := tensors[0]
	same := !slices.ContainsFunc(tensors, func(t *model.Tensor) bool { return t.Format != first.Format })
	groups := [][]*model.Tensor{tensors}
	if !same && !widen {
		groups = nil
		for _, t := range tensors {
			groups = append(groups, []*model.Tensor{t})
		}
	}
	for _, group := range groups {
		m, err := pack(group, widen)
		if err != nil {
			return p, fmt.Errorf("tensor %q: %w", group[0].Name, err)
		}
		p.parts = append(p.parts, m)
	}
	for _, t := range tensors {
		release(f, t.Data)
	}
	return p, nil
}

// pack stacks tensors of one format, or of any when they are widened to F32.
func pack(tensors []*model.Tensor, widen bool) (*kernel.Matrix, error) {
	rows, format, data := 0, formatOf(tensors[0]), tensors[0].Data
	for _, t := range tensors {
		rows += t.Rows()
	}
	switch {
	case widen:
		format, data = kernel.F32, nil
		for _, t := range tensors {
			var err error
			if data, err = appendWidened(data, t); err != nil {
				return nil, err
			}
		}
	case len(tensors) > 1:
		data = nil
		for _, t := range tensors {
			data = append(data, t.Data...)
		}
	}
	m, err := kernel.NewMatrix(format, rows, tensors[0].In(), data)
	if err != nil {
		return nil, err
	}
	m.Pack()
	return m, nil
}

func appendWidened(data []byte, t *model.Tensor) ([]byte, error) {
	m, err := kernel.NewMatrix(formatOf(t), t.Rows(), t.In(), t.Data)
	if err != nil {
		return nil, err
	}
	row := make([]float32, t.In())
	for i := range t.Rows() {
		m.Row(i, row)
		for _, x := range row {
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(x))
		}
	}
	return data, nil
}

func formatOf(t *model.Tensor) kernel.Format {
	switch t.Format {
	case model.F32:
		return kernel.F32
	case model.F16:
		return kernel.F16
	}
	return kernel.Q8_0 // model.Open refuses all others
}

// formats names the formats of the matrices, in alphabetic order.
func formats(f *model.File, widen bool) string {
	if widen {
		return kernel.F32.String()
	}
	var names []string
	for _, t := range f.Tensors {
		if t.Rows() > 1 && !slices.Contains(names, t.Format.String()) {
			names = append(names, t.Format.String())
		}
	}
	slices.Sort(names)
	return strings.Join(names, "+")
}

// release tells the system that the mapped bytes were copied and are not needed in
// memory. They can still be read.
func release(f *model.File, data []byte) {
	if f.Path() == "" || runtime.GOOS != "linux" {
		return // a file in the heap cannot be read again
	}
	dropPages(data)
}
