package model

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh"
)

func TestSynthesizeGolden(t *testing.T) {
	// The same bytes on every platform.
	want := map[string]string{
		"tiny-llama F32":  "f096785bb6ec",
		"tiny-llama F16":  "bf1121a0ef38",
		"tiny-llama Q8_0": "20d84a7140d6",
		"tiny-qwen2 F32":  "7c952017b09c",
		"tiny-qwen2 F16":  "97da7d5156bd",
		"tiny-qwen2 Q8_0": "fe5ddb5ff365",
		"tiny-qwen3 F32":  "b79137061d74",
		"tiny-qwen3 F16":  "250e3ffc181c",
		"tiny-qwen3 Q8_0": "20706fbf56d9",
	}
	for _, shape := range []string{"tiny-llama", "tiny-qwen2", "tiny-qwen3"} {
		for _, format := range []Format{F32, F16, Q8_0} {
			name := fmt.Sprintf("%s %v", shape, format)
			if got := mesh.HashOf(synthesize(t, shape, format)).Short(); got != want[name] {
				t.Errorf("%s: got %s, want %s", name, got, want[name])
			}
		}
	}
}

func TestSynthesizeRefuses(t *testing.T) {
	if _, err := ShapeOf("huge"); err == nil || !strings.Contains(err.Error(), "mid-moe, tiny-gemma") {
		t.Errorf("got %v, want the names there are", err)
	}
	s, _ := ShapeOf("mid")
	if err := Synthesize(io.Discard, s, 3, 1); err == nil {
		t.Error("Q4_1")
	}
	s.Vocab = 10
	if err := Synthesize(io.Discard, s, F32, 1); err == nil {
		t.Error("a vocabulary of 10")
	}
	s, _ = ShapeOf("mid")
	if err := Synthesize(shortWriter{}, s, Q8_0, 1); err == nil {
		t.Error("a full disk")
	}
}

type shortWriter struct{}

func (shortWriter) Write(p []byte) (int, error) { return 0, io.ErrShortWrite }

func TestShapes(t *testing.T) {
	for name, s := range shapes {
		if s.Name != name || s.Heads%s.KVHeads != 0 || s.Width%32 != 0 || s.FFN%32 != 0 || s.Heads*s.HeadDim%32 != 0 {
			t.Errorf("%s: %+v", name, s)
		}
	}
	f := openSynthetic(t, "mid", Q8_0)
	n := 0
	for _, tensor := range f.Tensors {
		n += tensor.In() * tensor.Rows()
	}
	if n < 20e6 || n > 30e6 {
		t.Errorf("mid has %d parameters: want 20 to 30 million", n)
	}
}

func TestSyntheticText(t *testing.T) {
	tok, err := openSynthetic(t, "mid", Q8_0).Tokenizer()
	if err != nil {
		t.Fatal(err)
	}
	for id := int32(256); id < int32(tok.Vocab()-3); id++ {
		piece := string(tok.Piece(id))
		if strings.Trim(piece, " abcdefghijklmnopqrstuvwxyz") != "" || piece == "" {
			t.Fatalf("token %d is %q", id, piece)
		}
		if ids := tok.Encode(piece); !slices.Equal(ids, []int32{id}) {
			t.Fatalf("token %d, %q, encodes to %v", id, piece, ids)
		}
	}
}

func (t *Tensor) element(row, i int) float64 {
	b := t.Row(row)
	switch t.Format {
	case F32:
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:])))
	case F16:
		return halfToFloat(binary.LittleEndian.Uint16(b[2*i:]))
	}
	block := b[i/32*34:]
	return halfToFloat(binary.LittleEndian.Uint16(block)) * float64(int8(block[2+i%32]))
}

func halfToFloat(h uint16) float64 {
	exp, mant := int(h>>10&31), float64(h&1023)
	x := math.Ldexp(mant, -24)
	if exp > 0 {
		x = math.Ldexp(1024+mant, exp-25)
	}
	if h&0x8000 != 0 {
		x = -x
	}
	return x
}

func (t *Tensor) times(x []float64) []float64 {
	out := make([]float64, t.Rows())
	for r := range out {
		for i, v := range x {
			out[r] += v * t.element(r, i)
		}
	}
	return out
}

// rmsNorm normalises x and multiplies by the weights of the tensor.
func rmsNorm(x []float64, w *Tensor) []float64 {
	sum := 0.0
	for _, v := range x {
		sum += v * v
	}
	out := make([]float64, len(x))
	for i, v := range x {
		out[i] = v / math.Sqrt(sum/float64(len(x))+1e-6) * w.element(0, i)
	}
	return out
}

// logits runs the network on one token: with one position attention passes v
// through and position 0 does not rotate, so this is the whole of it.
func logits(f *File, token int) []float64 {
	c := f.Config
	emb := f.Tensor("token_embd.weight")
	x := make([]float64, c.Width)
	for i := range x {
		x[i] = emb.element(token, i)
	}
	for l := range c.Layers {
		get := func(name string) *Tensor { return f.Tensor(fmt.Sprintf("blk.%d.%s", l, name)) }
		v := get("attn_v.weight").times(rmsNorm(x, get("attn_norm.weight")))
		if c.QKVBias {
			for i := range v {
				v[i] += get("attn_v.bias").element(0, i)
			}
		}
		var heads []float64
		for h := range c.Heads {
			at := h / (c.Heads / c.KVHeads) * c.HeadDim
			heads = append(heads, v[at:at+c.HeadDim]...)
		}
		for i, o := range get("attn_output.weight").times(heads) {
			x[i] += o
		}
		n := rmsNorm(x, get("ffn_norm.weight"))
		gate, up := get("ffn_gate.weight").times(n), get("ffn_up.weight").times(n)
		for i, g := range gate {
			up[i] *= g / (1 + math.Exp(-g))
		}
		for i, o := range get("ffn_down.weight").times(up) {
			x[i] += o
		}
	}
	out := f.Tensor("output.weight")
	if out == nil {
		out = emb
	}
	return out.times(rmsNorm(x, f.Tensor("output_norm.weight")))
}

func TestSyntheticLogits(t *testing.T) {
	for _, shape := range []string{"tiny-llama", "tiny-qwen2", "tiny-qwen3"} {
		for _, format := range []Format{F32, F16, Q8_0} {
			f := openSynthetic(t, shape, format)
			for _, token := range []int{65, 400, 1000} {
				out := logits(f, token)
				words, specials := out[356:1021], out[1021:]
				mean, sum := 0.0, 0.0
				for _, v := range words {
					mean += v / float64(len(words))
				}
				for _, v := range words {
					sum += (v - mean) * (v - mean) / float64(len(words))
				}
				if rms := math.Sqrt(sum); rms < 0.3 || rms > 0.8 {
					t.Errorf("%s %v: rms of the logits is %.2f: want about 0.5", shape, format, rms)
				}
				if gap := mean - slices.Max(specials); gap < 8 || math.IsNaN(gap) {
					t.Errorf("%s %v: special tokens lie %.1f below the mean: want 8 at least", shape, format, gap)
				}
			}
		}
	}
}

func TestWeights(t *testing.T) {
	for _, format := range []Format{F32, F16, Q8_0} {
		g := weights{format: format, in: 1024, rows: 64, std: 0.02, seed: 3}
		var b bytes.Buffer
		if err := g.fill(&b); err != nil {
			t.Fatal(err)
		}
		tensor := &Tensor{Format: format, Shape: []int{1024, 64}, Data: b.Bytes()}
		mean, sum := 0.0, 0.0
		for r := range 64 {
			for i := range 1024 {
				v := tensor.element(r, i)
				mean += v / (64 * 1024)
				sum += v * v / (64 * 1024)
			}
			for i := 0; format == Q8_0 && i < len(tensor.Row(r)); i++ {
				if i%34 >= 2 && int8(tensor.Row(r)[i]) == -128 {
					t.Fatal("a weight of -128")
				}
			}
		}
		if math.Abs(mean) > 5e-4 || math.Abs(math.Sqrt(sum)/0.02-1) > 0.02 {
			t.Errorf("%v: mean %g, deviation %g: want 0 and 0.02", format, mean, math.Sqrt(sum))
		}
	}
}

func TestHalf(t *testing.T) {
	for h := range 0x7C00 {
		x := halfToFloat(uint16(h))
		if got := half(float32(x)); got != uint16(h) {
			t.Fatalf("%g: got %04x, want %04x", x, got, h)
		}
		if got := half(float32(-x)); got != uint16(h)|0x8000 {
			t.Fatalf("%g: got %04x", -x, got)
		}
		// Halfway between two goes to the even one.
		if next := halfToFloat(uint16(h) + 1); h < 0x7BFF {
			if got, want := half(float32((x+next)/2)), uint16(h+h&1); got != want {
				t.Fatalf("halfway from %g: got %04x, want %04x", x, got, want)
			}
		}
	}
	for f, want := range map[float32]uint16{65519: 0x7BFF, 65520: 0x7C00, 1e9: 0x7C00, 1e-9: 0} {
		if got := half(f); got != want {
			t.Errorf("%g: got %04x, want %04x", f, got, want)
		}
	}
	if half(float32(math.NaN()))&0x7C00 != 0x7C00 || half(float32(math.NaN()))&0x3FF == 0 {
		t.Error("not a number stays that")
	}
}
