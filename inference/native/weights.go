package native

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"

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

// loader makes the network of a file.
type loader struct {
	file    *model.File
	widen   bool      // every matrix becomes F32
	buffers sync.Pool // *[]byte, for matrices that are stacked before they are packed
}

// load packs the matrices of f, several at a time, and gives the mapped pages of
// what was copied back to the system. With widen every matrix becomes F32.
func load(f *model.File, threads int, widen bool) (*network, error) {
	c, l := f.Config, &loader{file: f, widen: widen}
	n := &network{
		Config: c, layers: make([]layer, c.Layers),
		rope:    kernel.Rope{Frequencies: c.InvFreq(), Interleaved: c.RopeKind == model.RopeInterleaved},
		scale:   float32(1 / math.Sqrt(float64(c.HeadDim))),
		formats: formats(f, widen),
	}
	work := errgroup.Group{}
	work.SetLimit(max(threads, 1))
	work.Go(func() error { return l.ends(n) }) // first: it has the largest matrix
	for i := range n.layers {
		work.Go(func() error { return l.layer(&n.layers[i], fmt.Sprintf("blk.%d.", i)) })
	}
	if err := work.Wait(); err != nil {
		return nil, err
	}
	return n, nil
}

// ends loads what stands before and after the layers.
func (l *loader) ends(n *network) (err error) {
	if n.norm, err = l.vector("output_norm.weight"); err != nil {
		return err
	}
	const embedding = "token_embd.weight"
	if n.Tied {
		if n.head, err = l.product(embedding); err == nil {
			n.embed = n.head.parts[0]
		}
		return err
	}
	t, err := l.tensor(embedding)
	if err != nil {
		return err
	}
	// Only single rows of it are read, so it stays in the file.
	if n.embed, err = kernel.NewMatrix(formatOf(t), t.Rows(), t.In(), t.Data); err != nil {
		return err
	}
	n.head, err = l.product("output.weight")
	return err
}

func (l *loader) layer(into *layer, prefix string) error {
	for _, p := range []struct {
		into  *product
		names []string
	}{
		{&into.qkv, []string{"attn_q", "attn_k", "attn_v"}},
		{&into.out, []string{"attn_output"}},
		{&into.gateUp, []string{"ffn_gate", "ffn_up"}},
		{&into.down, []string{"ffn_down"}},
	} {
		names := make([]string, len(p.names))
		for i, name := range p.names {
			names[i] = prefix + name + ".weight"
		}
		var err error
		if *p.into, err = l.product(names...); err != nil {
			return err
		}
	}
	c := &l.file.Config
	for _, v := range []struct {
		into  *[]float32
		names []string
		there bool
	}{
		{&into.attnNorm, []string{"attn_norm.weight"}, true},
		{&into.ffnNorm, []string{"ffn_norm.weight"}, true},
		{&into.qNorm, []string{"attn_q_norm.weight"}, c.QKNorm},
		{&into.kNorm, []string{"attn_k_norm.weight"}, c.QKNorm},
		{&into.qkvBias, []string{"attn_q.bias", "attn_k.bias", "attn_v.bias"}, c.QKVBias},
		{&into.outBias, []string{"attn_output.bias"}, c.OutputBias},
	} {
		for _, name := range v.names {
			if !v.there {
				break
			}
			x, err := l.vector(prefix + name)
			if err != nil {
				return err
			}
			*v.into = append(*v.into, x...)
		}
	}
	return nil
}

func (l *loader) tensor(name string) (*model.Tensor, error) {
	t := l.file.Tensor(name)
	if t == nil {
		return nil, fmt.Errorf("tensor %q is missing", name)
	}
	return t, nil
}

func (l *loader) vector(name string) ([]float32, error) {
	t, err := l.tensor(name)
	if err != nil {
		return nil, err
	}
	return t.Float32s()
}

// product makes one product of the named tensors, which have equal rows.
func (l *loader) product(names ...string) (product, error) {
	var p product
	var groups [][]*model.Tensor // those of a group are stacked
	for i, name := range names {
		t, err := l.tensor(name)
		if err != nil {
			return p, err
		}
		p.rows += t.Rows()
		last := len(groups) - 1
		if i == 0 || t.Format != groups[last][0].Format && !l.widen {
			groups = append(groups, []*model.Tensor{t})
		} else {
			groups[last] = append(groups[last], t)
		}
	}
	for _, group := range groups {
		m, err := l.pack(group)
		if err != nil {
			return p, fmt.Errorf("tensor %q: %w", group[0].Name, err)
		}
		p.parts = append(p.parts, m)
	}
	return p, nil
}

// pack stacks tensors of one format, or of any when they are widened to F32.
func (l *loader) pack(tensors []*model.Tensor) (*kernel.Matrix, error) {
	rows, format, data := 0, formatOf(tensors[0]), tensors[0].Data
	for _, t := range tensors {
		rows += t.Rows()
	}
	if l.widen || len(tensors) > 1 {
		buffer, ok := l.buffers.Get().(*[]byte)
		if !ok {
			buffer = new([]byte)
		}
		defer l.buffers.Put(buffer)
		data = (*buffer)[:0]
		for _, t := range tensors {
			if !l.widen {
				data = append(data, t.Data...)
				continue
			}
			var err error
			if data, err = appendWidened(data, t); err != nil {
				return nil, err
			}
		}
		*buffer = data
	}
	if l.widen {
		format = kernel.F32
	}
	m, err := kernel.NewMatrix(format, rows, tensors[0].In(), data)
	if err != nil {
		return nil, err
	}
	m.Pack()
	for _, t := range tensors {
		l.release(t.Data)
	}
	return m, nil
}

// release tells the system that mapped bytes were copied and are not needed in
// memory. They can still be read.
func (l *loader) release(data []byte) {
	if l.file.Path() != "" { // a file in the heap could not be read again
		dropPages(data)
	}
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
