package model

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh"
)

// dequantise is the definition of each format, block by block; the layouts are those
// of ggml-org/ggml, src/ggml-quants.c.
func dequantise(f Format, b []byte) (out []float32) {
	f16 := func(at int) float32 { return widen(binary.LittleEndian.Uint16(b[at:])) }
	size := f.RowBytes(f.Block())
	for ; len(b) > 0; b = b[size:] {
		switch f {
		case F32:
			out = append(out, math.Float32frombits(binary.LittleEndian.Uint32(b)))
		case F16:
			out = append(out, f16(0))
		case BF16:
			out = append(out, math.Float32frombits(uint32(binary.LittleEndian.Uint16(b))<<16))
		case Q8_0:
			for i := range 32 {
				out = append(out, f16(0)*float32(int8(b[2+i])))
			}
		case Q4_0:
			for i := range 32 {
				out = append(out, f16(0)*float32(int(b[2+i%16]>>(i/16*4)&15)-8))
			}
		case Q4_K, Q5_K:
			for i := range 256 {
				sc, m := scaleOfK(b[4:16], i/32)
				high, qs := byte(0), b[16:]
				if f == Q5_K {
					high, qs = b[16+i%32]>>(i/32)&1, b[48:]
				}
				q := qs[i/64*32+i%32]>>(i/32%2*4)&15 | high<<4
				out = append(out, f16(0)*float32(sc)*float32(q)-f16(2)*float32(m))
			}
		case Q6_K:
			for i := range 256 {
				half, l, part := i/128, i%32, i%128/32
				low := b[64*half+l+part%2*32] >> (part / 2 * 4) & 15
				high := b[128+32*half+l] >> (2 * part) & 3
				scale := int8(b[192+i/16])
				out = append(out, f16(208)*float32(scale)*float32(int(low|high<<4)-32))
			}
		}
	}
	return out
}

// scaleOfK unpacks scale and minimum of part j out of 12 bytes.
func scaleOfK(s []byte, j int) (sc, m byte) {
	if j < 4 {
		return s[j] & 63, s[j+4] & 63
	}
	return s[j+4]&15 | s[j-4]>>6<<4, s[j+4]>>4 | s[j]>>6<<4
}

// TestSyntheticFormats looks at the numbers in every format: deviation and mean as
// ordered, the first element of each row as given, zero rows.
func TestSyntheticFormats(t *testing.T) {
	for _, format := range Formats {
		t.Run(format.String(), func(t *testing.T) {
			const in, rows, std, constant = 512, 200, 0.02, 0.32
			fill := func(g *weights) []float32 {
				g.format, g.in, g.rows, g.std, g.seed = format, in, rows, std, 3
				var b bytes.Buffer
				if err := g.fill(&b); err != nil || b.Len() != rows*format.RowBytes(in) {
					t.Fatalf("%d bytes, %v", b.Len(), err)
				}
				return dequantise(format, b.Bytes())
			}
			x := fill(&weights{})
			if mean, dev := moments(x); math.Abs(mean) > 0.03*std || math.Abs(dev-std) > 0.05*std {
				t.Errorf("mean %g, deviation %g: want 0 and %g", mean, dev, std)
			}
			sign := func(row int) float64 { return constant * float64(1-row%2*2) }
			x = fill(&weights{first: sign, zeroEvery: 50})
			var rest []float32
			for row := range rows {
				r := x[row*in : (row+1)*in]
				if row%50 == 0 {
					if slices.ContainsFunc(r, func(v float32) bool { return v != 0 }) {
						t.Fatalf("row %d is not zero", row)
					}
					continue
				}
				if math.Abs(float64(r[0])-sign(row)) > 0.02*constant {
					t.Fatalf("row %d begins with %g: want %g", row, r[0], sign(row))
				}
				rest = append(rest, r[1:]...)
			}
			if mean, dev := moments(rest); math.Abs(mean) > 0.06*std || math.Abs(dev-std) > 0.15*std {
				t.Errorf("beside the first: mean %g, deviation %g: want 0 and %g", mean, dev, std)
			}
		})
	}
}

func moments(x []float32) (mean, deviation float64) {
	for _, v := range x {
		mean += float64(v)
	}
	mean /= float64(len(x))
	for _, v := range x {
		deviation += (float64(v) - mean) * (float64(v) - mean)
	}
	return mean, math.Sqrt(deviation / float64(len(x)))
}

// TestSyntheticShapes opens every small shape in every format, and holds the bytes:
// benchmarks and tests elsewhere compare results over them.
func TestSyntheticShapes(t *testing.T) {
	want := map[string]string{
		"tiny-mistral F32": "2c1acecb28c1", "tiny-mistral F16": "57f36fb4fe76", "tiny-mistral BF16": "6582e731ac86",
		"tiny-mistral Q8_0": "9351e00a61f5", "tiny-mistral Q4_0": "6330af024868", "tiny-mistral Q4_K": "7ecc82286bc3",
		"tiny-mistral Q5_K": "9d1e6d5085be", "tiny-mistral Q6_K": "69b68dd31dd8", "tiny-qwen3moe F32": "5c08487fbb80",
		"tiny-qwen3moe F16": "d7508a4038a5", "tiny-qwen3moe BF16": "dba14532c121", "tiny-qwen3moe Q8_0": "4850b71e315b",
		"tiny-qwen3moe Q4_0": "e26f0b7538fc", "tiny-qwen3moe Q4_K": "ce8a5db041e7", "tiny-qwen3moe Q5_K": "5a33f011b096",
		"tiny-qwen3moe Q6_K": "6d55fd53f977", "tiny-gemma F32": "5b294cee31d9", "tiny-gemma F16": "53c6c910a36f",
		"tiny-gemma BF16": "41b52effbf77", "tiny-gemma Q8_0": "6b8e6f38ebd8", "tiny-gemma Q4_0": "9b5ee96328fb",
		"tiny-gemma Q4_K": "da848962e8a1", "tiny-gemma Q5_K": "a4b4efb52213", "tiny-gemma Q6_K": "ec414f33a0a3",
		"tiny-gemma2 F32": "ed2365a3a538", "tiny-gemma2 F16": "bda5b820cf0c", "tiny-gemma2 BF16": "5565274cdd4d",
		"tiny-gemma2 Q8_0": "52d961f448c4", "tiny-gemma2 Q4_0": "2da14cf4349c", "tiny-gemma2 Q4_K": "304a283f7d1d",
		"tiny-gemma2 Q5_K": "c600371739d1", "tiny-gemma2 Q6_K": "b60e86704143", "tiny-gemma3 F32": "496af56363f9",
		"tiny-gemma3 F16": "4f4e112873a6", "tiny-gemma3 BF16": "9c7ca6789d24", "tiny-gemma3 Q8_0": "1559e9ec20af",
		"tiny-gemma3 Q4_0": "afaafb3c6c32", "tiny-gemma3 Q4_K": "1b84e6a21978", "tiny-gemma3 Q5_K": "212b40672cc9",
		"tiny-gemma3 Q6_K": "d9bfd3fee2fd",
	}
	for _, shape := range []string{"tiny-mistral", "tiny-qwen3moe", "tiny-gemma", "tiny-gemma2", "tiny-gemma3"} {
		for _, format := range Formats {
			name := fmt.Sprintf("%s %v", shape, format)
			data := synthesize(t, shape, format)
			f, err := OpenBytes(data)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if got := f.Tensor("blk.1.attn_q.weight").Format; got != format {
				t.Errorf("%s: attn_q is %v", name, got)
			}
			if _, err := f.Template(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if got := mesh.HashOf(data).Short(); got != want[name] {
				t.Errorf("%s: got %s, want %s", name, got, want[name])
			}
		}
	}
}

func TestGGUFConfigs(t *testing.T) {
	base := func(shape string, change func(*[]Meta)) (*File, error) {
		s, _ := ShapeOf(shape)
		tokens, merges := s.tokens()
		meta := s.meta(tokens, merges, 1)
		change(&meta)
		var b bytes.Buffer
		if err := Write(&b, meta, s.tensors(tokens, BF16, 1)); err != nil {
			t.Fatal(err)
		}
		return OpenBytes(b.Bytes())
	}
	set := func(key string, v any) func(*[]Meta) { return func(m *[]Meta) { setMeta(m, key, v) } }
	tests := []struct {
		name, shape string
		change      func(*[]Meta)
		check       func(*Config) bool
	}{
		{"gemma2", "tiny-gemma2", set("general.name", "x"), func(c *Config) bool {
			return c.AttnCap == 50 && c.LogitCap == 30 && c.PostNorms && !c.QKNorm && c.EmbedScale == 16 && c.Activation == GELUTanh &&
				fmt.Sprint(c.Local) == "[true false true false]" && c.LocalInvFreq() == nil && c.Window == 48
		}},
		{"gemma3", "tiny-gemma3", set("general.name", "x"), func(c *Config) bool {
			return c.AttnCap == 0 && c.LogitCap == 0 && c.PostNorms && c.QKNorm && fmt.Sprint(c.Local) == "[true true true true true false]" &&
				c.LocalRopeBase == 10000 && len(c.LocalInvFreq()) == 32 && c.LocalInvFreq()[1] > c.InvFreq()[1]
		}},
		{"gemma3 period", "tiny-gemma3", set("gemma3.attention.sliding_window_pattern", uint32(3)), func(c *Config) bool {
			return fmt.Sprint(c.Local) == "[true true false true true false]"
		}},
		{"gemma3 pattern", "tiny-gemma3", set("gemma3.attention.sliding_window_pattern", []int32{1, 0, 0, 0, 0, 1}), func(c *Config) bool {
			return fmt.Sprint(c.Local) == "[true false false false false true]"
		}},
		{"gemma3 local base", "tiny-gemma3", set("gemma3.rope.freq_base_swa", float32(777)), func(c *Config) bool { return c.LocalRopeBase == 777 }},
		{"gemma", "tiny-gemma", set("general.name", "x"), func(c *Config) bool {
			return !c.PostNorms && c.Local == nil && c.Window == 0 && c.EmbedScale == 16 && c.Tied
		}},
		{"mistral", "tiny-mistral", set("general.name", "x"), func(c *Config) bool {
			return c.Architecture == "llama" && c.RopeKind == RopeInterleaved && c.Window == 48 && fmt.Sprint(c.Local) == "[true true]"
		}},
		{"experts", "tiny-qwen3moe", set("general.name", "x"), func(c *Config) bool {
			return c.Experts == 8 && c.ExpertsUsed == 2 && c.ExpertFFN == 256 && c.FFN == 0 && c.NormTopK && c.QKNorm
		}},
		{"experts not renormalised", "tiny-qwen3moe", set("qwen3moe.expert_weights_norm", false), func(c *Config) bool { return !c.NormTopK }},
		{"scale", "tiny-gemma", set("gemma.attention.scale", float32(0.25)), func(c *Config) bool { return c.AttnScale == 0.25 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := base(tt.shape, tt.change)
			if err != nil {
				t.Fatal(err)
			}
			if !tt.check(&f.Config) {
				t.Errorf("config %+v", f.Config)
			}
		})
	}
	for _, tt := range []struct {
		shape, key string
		v          any
	}{
		{"tiny-gemma3", "gemma3.attention.sliding_window_pattern", []int32{1, 0}},
		{"tiny-gemma3", "gemma3.attention.sliding_window_pattern", "x"},
		{"tiny-gemma3", "gemma3.rope.freq_base_swa", float32(0.5)},
		{"tiny-gemma2", "gemma2.attn_logit_softcapping", float32(-1)},
		{"tiny-gemma2", "gemma2.final_logit_softcapping", float32(1e9)},
		{"tiny-gemma", "gemma.attention.scale", float32(0)},
		{"tiny-qwen3moe", "qwen3moe.expert_count", uint32(7)},
		{"tiny-qwen3moe", "qwen3moe.expert_count", uint32(0)},
		{"tiny-qwen3moe", "qwen3moe.expert_used_count", uint32(9)},
		{"tiny-qwen3moe", "qwen3moe.expert_feed_forward_length", uint32(0)},
		{"tiny-qwen3moe", "qwen3moe.expert_shared_count", uint32(1)},
		{"tiny-mistral", "split.count", uint32(2)},
	} {
		_, err := base(tt.shape, set(tt.key, tt.v))
		field := tt.key
		if field == "qwen3moe.expert_count" && tt.v == uint32(7) {
			field = "blk.0.ffn_gate_inp.weight"
		}
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s %v: got %v", tt.key, tt.v, err)
		}
	}
}

func TestWiden(t *testing.T) {
	for h := range 1 << 16 {
		x := widen(uint16(h))
		if x != x {
			if h&0x7C00 != 0x7C00 || h&0x3FF == 0 {
				t.Fatalf("%04x is not a number", h)
			}
			continue
		}
		if got := half(x); int(got) != h {
			t.Fatalf("%04x becomes %g and then %04x", h, x, got)
		}
	}
}
