package native

import (
	"encoding/binary"
	"fmt"
	"math"
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
	attnNorm, ffnNorm         []float32
	postAttnNorm, postFFNNorm []float32 // nil: none
	qNorm, kNorm              []float32 // nil: none
	qkvBias, outBias          []float32 // nil: none
	qkv, out                  product
	mlp                       mlp     // of a dense layer
	router                    product // of a mixture of experts, rows = experts
	experts                   []mlp   // nil: dense
	local                     bool    // attention sees a window
}

// mlp is a gated feed-forward network.
type mlp struct {
	gateUp, down product
}

// network is the model as it is computed: vectors widened, matrices packed.
type network struct {
	model.Config
	rope    kernel.Rope
	local   kernel.Rope // of layers with a window; no frequencies: as the others
	embed   *kernel.Matrix
	head    product
	norm    []float32
	layers  []layer
	formats string // of the matrices
}

// loader makes the network of a file.
type loader struct {
	file   *model.File
	packed *packedFile // nil: none is kept
	widen  bool        // every matrix becomes F32
}

// load packs the matrices of f, several at a time, and gives the mapped pages of
// what was copied back to the system. What stands in packed is not packed again.
// With widen every matrix becomes F32.
func load(f *model.File, threads int, widen bool, packed *packedFile) (*network, error) {
	c, l := f.Config, &loader{file: f, widen: widen, packed: packed}
	n := &network{
		Config: c, layers: make([]layer, c.Layers),
		rope:    kernel.Rope{Frequencies: c.InvFreq(), Interleaved: c.RopeKind == model.RopeInterleaved},
		local:   kernel.Rope{Frequencies: c.LocalInvFreq(), Interleaved: c.RopeKind == model.RopeInterleaved},
		formats: formats(f, widen),
	}
	work := errgroup.Group{}
	work.SetLimit(max(threads, 1))
	work.Go(func() error { return l.ends(n) }) // first: it has the largest matrix
	for i := range n.layers {
		n.layers[i].local = c.IsLocal(i)
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
	if n.embed, err = matrix(t); err != nil {
		return err
	}
	n.head, err = l.product("output.weight")
	return err
}

func (l *loader) layer(into *layer, prefix string) (err error) {
	c := &l.file.Config
	if into.qkv, err = l.product(prefix+"attn_q.weight", prefix+"attn_k.weight", prefix+"attn_v.weight"); err != nil {
		return err
	}
	if into.out, err = l.product(prefix + "attn_output.weight"); err != nil {
		return err
	}
	if c.Experts > 0 {
		err = l.mixture(into, prefix)
	} else {
		into.mlp, err = l.mlp(prefix+"ffn_gate.weight", prefix+"ffn_up.weight", prefix+"ffn_down.weight")
	}
	if err != nil {
		return err
	}
	for _, v := range []struct {
		into  *[]float32
		names []string
		there bool
	}{
		{&into.attnNorm, []string{"attn_norm.weight"}, true},
		{&into.ffnNorm, []string{"ffn_norm.weight"}, true},
		{&into.postAttnNorm, []string{"post_attention_norm.weight"}, c.PostNorms},
		{&into.postFFNNorm, []string{"post_ffw_norm.weight"}, c.PostNorms},
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

func (l *loader) mlp(gate, up, down string) (m mlp, err error) {
	if m.gateUp, err = l.product(gate, up); err != nil {
		return m, err
	}
	m.down, err = l.product(down)
	return m, err
}

// mixture loads the router and the experts of a layer.
func (l *loader) mixture(into *layer, prefix string) (err error) {
	if into.router, err = l.product(prefix + "ffn_gate_inp.weight"); err != nil {
		return err
	}
	var stacks [3]*model.Tensor
	for i, name := range []string{"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"} {
		if stacks[i], err = l.tensor(prefix + name + ".weight"); err != nil {
			return err
		}
	}
	into.experts = make([]mlp, l.file.Config.Experts)
	for e := range into.experts {
		gate, up, down := stacks[0].Expert(e), stacks[1].Expert(e), stacks[2].Expert(e)
		if into.experts[e].gateUp, err = l.stack(gate, up); err != nil {
			return err
		}
		if into.experts[e].down, err = l.stack(down); err != nil {
			return err
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
	tensors := make([]*model.Tensor, len(names))
	for i, name := range names {
		var err error
		if tensors[i], err = l.tensor(name); err != nil {
			return product{}, err
		}
	}
	return l.stack(tensors...)
}

// stack makes one product of tensors with equal rows.
func (l *loader) stack(tensors ...*model.Tensor) (product, error) {
	var p product
	var groups [][]*model.Tensor // those of a group are stacked
	for i, t := range tensors {
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
	rows := 0
	for _, t := range tensors {
		rows += t.Rows()
	}
	format, err := formatOf(tensors[0])
	if err != nil {
		return nil, err
	}
	return l.packed.matrix(tensors[0].Name, format, rows, tensors[0].In(), func() (*kernel.Matrix, error) { return l.repack(tensors) })
}

// repack is pack from the model file.
func (l *loader) repack(tensors []*model.Tensor) (*kernel.Matrix, error) {
	m, err := l.join(tensors)
	if err != nil {
		return nil, err
	}
	m.Pack()
	for _, t := range tensors {
		l.release(t.Data)
	}
	return m, nil
}

// join stands tensors one below the other.
func (l *loader) join(tensors []*model.Tensor) (*kernel.Matrix, error) {
	format, err := formatOf(tensors[0])
	if l.widen {
		format, err = kernel.F32, nil
	}
	if err != nil {
		return nil, err
	}
	rows, parts := 0, make([][]byte, len(tensors))
	for i, t := range tensors {
		rows += t.Rows()
		parts[i] = t.Data
		if l.widen {
			if parts[i], err = widened(t); err != nil {
				return nil, err
			}
		}
	}
	return kernel.NewMatrix(format, rows, tensors[0].In(), parts...)
}

// release tells the system that mapped bytes were copied and are not needed in
// memory. They can still be read.
func (l *loader) release(data []byte) {
	if l.file.Path() != "" { // a file in the heap could not be read again
		dropPages(data)
	}
}

// widened returns the weights of a tensor as F32.
func widened(t *model.Tensor) ([]byte, error) {
	m, err := matrix(t)
	if err != nil {
		return nil, err
	}
	data := make([]byte, 0, 4*t.Rows()*t.In())
	row := make([]float32, t.In())
	for i := range t.Rows() {
		m.Row(i, row)
		for _, x := range row {
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(x))
		}
	}
	return data, nil
}

// matrix wraps the data of a tensor.
func matrix(t *model.Tensor) (*kernel.Matrix, error) {
	f, err := formatOf(t)
	if err != nil {
		return nil, err
	}
	return kernel.NewMatrix(f, t.Rows(), t.In(), t.Data)
}

// formatOf is the kernel's format of a tensor: the names are the same.
func formatOf(t *model.Tensor) (kernel.Format, error) {
	for f := kernel.Format(0); f.BlockSize() > 0; f++ {
		if f.String() == t.Format.String() {
			return f, nil
		}
	}
	return 0, fmt.Errorf("tensor %q: the kernels have no format %v", t.Name, t.Format)
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
