package model

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestOpenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.gguf")
	data := synthesize(t, "tiny-qwen3", Q8_0)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{Architecture: "qwen3", Name: "synthetic-tiny-qwen3-1", Layers: 2, Width: 128, FFN: 352, Heads: 4, KVHeads: 2, HeadDim: 64,
		Vocab: 1024, Context: 512, Eps: 1e-6, RopeBase: 1e6, RopeKind: RopeHalf, RopeScale: 1, Tied: true, QKNorm: true, EmbedScale: 1, AttnScale: 0.125}
	if got := f.Config; !sameConfig(got, want) {
		t.Errorf("config\n got %+v\nwant %+v", got, want)
	}
	q := f.Tensor("blk.1.attn_q.weight")
	if q == nil || q.In() != 128 || q.Rows() != 256 || q.Format != Q8_0 || len(q.Data) != 256*128/32*34 || len(q.Row(255)) != 136 {
		t.Errorf("tensor %+v", q)
	}
	if n, err := f.Tensor("output_norm.weight").Float32s(); err != nil || len(n) != 128 || n[0] != 20 || n[1] != 1 {
		t.Errorf("norm %v, %v", n, err)
	}
	if _, err := q.Float32s(); err == nil {
		t.Error("floats of a Q8_0 tensor")
	}
	if f.Tensor("nosuch") != nil || f.Path() != path || f.Size() != int64(len(data)) {
		t.Error("a tensor that is not there, the path or the size")
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{filepath.Join(t.TempDir(), "none"), t.TempDir(), os.DevNull} {
		if _, err := Open(bad); err == nil {
			t.Errorf("%s opens", bad)
		}
	}
}

func sameConfig(a, b Config) bool {
	if !slices.Equal(a.RopeFactors, b.RopeFactors) || !slices.Equal(a.Local, b.Local) {
		return false
	}
	a.RopeFactors, b.RopeFactors = nil, nil
	return slices.Equal([]any{a.Architecture, a.Name, a.Layers, a.Width, a.FFN, a.Heads, a.KVHeads, a.HeadDim, a.Vocab, a.Context, a.Eps, a.RopeBase, a.RopeKind, a.RopeScale, a.Tied, a.QKVBias, a.OutputBias, a.QKNorm,
		a.Experts, a.ExpertsUsed, a.ExpertFFN, a.NormTopK, a.Activation, a.EmbedScale, a.AttnScale, a.AttnCap, a.LogitCap, a.Window, a.LocalRopeBase, a.PostNorms},
		[]any{b.Architecture, b.Name, b.Layers, b.Width, b.FFN, b.Heads, b.KVHeads, b.HeadDim, b.Vocab, b.Context, b.Eps, b.RopeBase, b.RopeKind, b.RopeScale, b.Tied, b.QKVBias, b.OutputBias, b.QKNorm,
			b.Experts, b.ExpertsUsed, b.ExpertFFN, b.NormTopK, b.Activation, b.EmbedScale, b.AttnScale, b.AttnCap, b.LogitCap, b.Window, b.LocalRopeBase, b.PostNorms})
}

// rebuild writes the tiny model again with its parts changed.
func rebuild(t *testing.T, shape string, change func(meta *[]Meta, tensors *[]TensorSource)) []byte {
	t.Helper()
	s, err := ShapeOf(shape)
	if err != nil {
		t.Fatal(err)
	}
	tokens, merges := s.tokens()
	meta, tensors := s.meta(tokens, merges, 1), s.tensors(tokens, F32, 1)
	change(&meta, &tensors)
	var b bytes.Buffer
	if err := Write(&b, meta, tensors); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func setMeta(meta *[]Meta, key string, v any) {
	for i := range *meta {
		if (*meta)[i].Key == key {
			(*meta)[i].Value = v
			return
		}
	}
	*meta = append(*meta, Meta{key, v})
}

func zeros(name string, format Format, shape ...int) TensorSource {
	return TensorSource{name, format, shape, func(w io.Writer) error {
		n, err := format.size(shape)
		if err == nil {
			_, err = w.Write(make([]byte, n))
		}
		return err
	}}
}

func TestOpenRefuses(t *testing.T) {
	meta := func(key string, v any) func(*[]Meta, *[]TensorSource) {
		return func(m *[]Meta, _ *[]TensorSource) { setMeta(m, key, v) }
	}
	replace := func(s TensorSource) func(*[]Meta, *[]TensorSource) {
		return func(_ *[]Meta, ts *[]TensorSource) {
			for i := range *ts {
				if (*ts)[i].Name == s.Name {
					(*ts)[i] = s
					return
				}
			}
			*ts = append(*ts, s)
		}
	}
	remove := func(name string) func(*[]Meta, *[]TensorSource) {
		return func(_ *[]Meta, ts *[]TensorSource) {
			*ts = slices.DeleteFunc(*ts, func(s TensorSource) bool { return s.Name == name })
		}
	}
	tests := []struct {
		name   string
		change func(*[]Meta, *[]TensorSource)
		want   string // in the error
	}{
		{"architecture", meta("general.architecture", "mamba"), "mamba"},
		{"architecture type", meta("general.architecture", uint32(1)), "general.architecture"},
		{"no layers", meta("qwen2.block_count", uint32(0)), "qwen2.block_count"},
		{"layers", meta("qwen2.block_count", uint32(3)), "blk.2."},
		{"fewer layers", meta("qwen2.block_count", uint32(1)), "blk.1."},
		{"many layers", meta("qwen2.block_count", uint32(1<<31)), "qwen2.block_count"},
		{"huge layers", meta("qwen2.block_count", uint64(1<<63)), "qwen2.block_count"},
		{"width", meta("qwen2.embedding_length", uint32(256)), "token_embd.weight"},
		{"width type", meta("qwen2.embedding_length", "x"), "qwen2.embedding_length"},
		{"heads", meta("qwen2.attention.head_count", uint32(3)), "head"},
		{"kv heads", meta("qwen2.attention.head_count_kv", uint32(3)), "head_count_kv"},
		{"no kv heads", meta("qwen2.attention.head_count_kv", uint32(0)), "head_count_kv"},
		{"odd head", meta("qwen2.attention.key_length", uint32(33)), "key_length"},
		{"value length", meta("qwen2.attention.value_length", uint32(64)), "value_length"},
		{"partial rope", meta("qwen2.rope.dimension_count", uint32(16)), "dimension_count"},
		{"eps", meta("qwen2.attention.layer_norm_rms_epsilon", float32(0)), "epsilon"},
		{"base", meta("qwen2.rope.freq_base", float32(-1)), "freq_base"},
		{"yarn", meta("qwen2.rope.scaling.type", "yarn"), "rope.scaling.type"},
		{"context", meta("qwen2.context_length", uint64(1<<40)), "context_length"},
		{"experts", meta("qwen2.expert_count", uint32(8)), "expert_count"},
		{"vocab size", meta("qwen2.vocab_size", uint32(7)), "vocab_size"},
		{"tokens", meta("tokenizer.ggml.tokens", []string{"a"}), "tokenizer.ggml.tokens"},
		{"alignment", meta("general.alignment", uint32(3)), "general.alignment"},
		{"missing tensor", remove("blk.1.ffn_up.weight"), "blk.1.ffn_up.weight"},
		{"missing norm", remove("output_norm.weight"), "output_norm.weight"},
		{"missing embedding", remove("token_embd.weight"), "token_embd.weight"},
		{"missing bias", remove("blk.1.attn_k.bias"), "blk.1.attn_k.bias"},
		{"bias in one layer", remove("blk.0.attn_q.bias"), "bias"},
		{"shape", replace(zeros("blk.0.attn_q.weight", F32, 128, 64)), "blk.0.attn_q.weight"},
		{"vector shape", replace(zeros("blk.0.attn_norm.weight", F32, 64)), "blk.0.attn_norm.weight"},
		{"flat embedding", replace(zeros("token_embd.weight", F32, 128)), "token_embd.weight"},
		{"format", replace(zeros("blk.0.ffn_up.weight", 3, 128, 352)), "Q4_1"},
		{"norm format", replace(zeros("blk.0.attn_norm.weight", F16, 128)), "blk.0.attn_norm.weight"},
		{"unknown tensor", replace(zeros("blk.0.attn_q_norm.weight", F32, 32)), "blk.0.attn_q_norm.weight"},
		{"rope factors", replace(zeros("rope_freqs.weight", F32, 16)), "rope_freqs.weight"},
		{"long rope factors", replace(zeros("rope_factors_long.weight", F32, 16)), "rope_factors_long.weight"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := OpenBytes(rebuild(t, "tiny-qwen2", tt.change))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error that names %s", err, tt.want)
			}
		})
	}
	if _, err := OpenBytes(rebuild(t, "tiny-qwen2", func(*[]Meta, *[]TensorSource) {})); err != nil {
		t.Errorf("unchanged: %v", err)
	}
}

func TestRopeFactors(t *testing.T) {
	data := rebuild(t, "tiny-llama", func(_ *[]Meta, ts *[]TensorSource) {
		*ts = append(*ts, TensorSource{"rope_freqs.weight", F32, []int{16}, func(w io.Writer) error {
			return binary.Write(w, binary.LittleEndian, []float32{1, 1, 1, 1, 2, 2, 2, 2, 8, 8, 8, 8, 8, 8, 8, 8})
		}})
	})
	f, err := OpenBytes(data)
	if err != nil {
		t.Fatal(err)
	}
	plain := f.Config
	plain.RopeFactors = nil
	for i, x := range f.Config.InvFreq() {
		if want := plain.InvFreq()[i] / f.Config.RopeFactors[i]; x != want {
			t.Errorf("frequency %d: got %g, want %g", i, x, want)
		}
	}
	if f.Config.RopeKind != RopeInterleaved || f.Config.RopeKind.String() != "interleaved" || RopeHalf.String() != "half" {
		t.Error("llama files rotate interleaved pairs")
	}
}

// le makes little-endian bytes of texts and integers.
func le(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch x := p.(type) {
		case string:
			b = append(binary.LittleEndian.AppendUint64(b, uint64(len(x))), x...)
		case []byte:
			b = append(b, x...)
		case uint32:
			b = binary.LittleEndian.AppendUint32(b, x)
		case uint64:
			b = binary.LittleEndian.AppendUint64(b, x)
		}
	}
	return b
}

func TestHostileHeaders(t *testing.T) {
	u32, u64 := func(n int) uint32 { return uint32(n) }, func(n int) uint64 { return uint64(n) }
	magic := []byte("GGUF")
	const all = ^uint64(0)
	head := func(tensors, keys uint64, rest ...any) []byte {
		return le(append([]any{magic, u32(3), tensors, keys}, rest...)...)
	}
	tests := []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "magic"},
		{"magic", []byte("GGML1234"), "magic"},
		{"version", le(magic, u32(1)), "version"},
		{"no counts", le(magic, u32(3)), "tensor count"},
		{"all keys", head(0, all), "metadata key 0"},
		{"all tensors", head(all, 0), "tensor 0"},
		{"key length", head(0, 1, all), "metadata key 0"},
		{"empty key", head(0, 1, ""), "metadata key 0"},
		{"value type", head(0, 1, "a", u32(99)), `"a"`},
		{"text length", head(0, 1, "a", u32(8), all), `"a"`},
		{"array length", head(0, 1, "a", u32(9), u32(4), all), `"a"`},
		{"array overflow", head(0, 1, "a", u32(9), u32(12), uint64(1)<<61), `"a"`},
		{"array of arrays", head(0, 1, "a", u32(9), u32(9), u64(0)), `"a"`},
		{"array of texts", head(0, 1, "a", u32(9), u32(8), u64(8), u64(1)), `"a"`},
		{"same key", head(0, 2, "a", u32(4), u32(1), "a", u32(4), u32(1)), `"a"`},
		{"dimensions", head(1, 0, "t", u32(5)), `"t"`},
		{"no dimension", head(1, 0, "t", u32(0)), `"t"`},
		{"zero dimension", head(1, 0, "t", u32(1), u64(0)), `"t"`},
		{"huge shape", head(1, 0, "t", u32(4), u64(1<<30), u64(1<<30), u64(1<<30), u64(1<<30), u32(0), u64(0)), `"t"`},
		{"wrapping shape", head(1, 0, "t", u32(3), u64(1<<22), u64(1<<21), u64(1<<21), u32(0), u64(0)), `"t"`},
		{"block", head(1, 0, "t", u32(1), u64(33), u32(8), u64(0)), `"t"`},
		{"unknown format", head(1, 0, "t", u32(1), u64(32), u32(77), u64(0)), `"t"`},
		{"offset", head(1, 0, "t", u32(1), u64(8), u32(0), u64(3)), `"t"`},
		{"offset beyond", head(1, 0, "t", u32(1), u64(8), u32(0), uint64(1)<<63), `"t"`},
		{"data beyond", head(1, 0, "t", u32(1), u64(8), u32(0), u64(0)), `"t"`},
		{"same tensor", head(2, 0, "t", u32(1), u64(8), u32(0), u64(0), "t", u32(1)), `"t"`},
		{"overlap", append(head(2, 0, "t", u32(1), u64(9), u32(0), u64(0), "s", u32(1), u64(9), u32(0), u64(32)), make([]byte, 200)...), "overlap"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseHeader(tt.data)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error that names %s", err, tt.want)
			}
		})
	}
}

func FuzzOpen(f *testing.F) {
	for _, architecture := range []string{"llama", "qwen2", "qwen3"} {
		s := Shape{Name: "fuzz", Architecture: architecture, Layers: 1, Width: 32, FFN: 32, Heads: 1, KVHeads: 1, HeadDim: 32,
			Vocab: 1024, Context: 64, RopeBase: 1e4, Tied: true}
		var b bytes.Buffer
		if err := Synthesize(&b, s, Q8_0, 1); err != nil {
			f.Fatal(err)
		}
		if _, err := OpenBytes(b.Bytes()); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
		f.Add(b.Bytes()[:b.Len()/2])
	}
	f.Add([]byte("GGUF\x03\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := OpenBytes(data)
		if err != nil {
			return
		}
		for _, tensor := range m.Tensors {
			if uint64(len(tensor.Data)) != tensor.size {
				t.Errorf("tensor %q has %d bytes of %d", tensor.Name, len(tensor.Data), tensor.size)
			}
		}
		if tok, err := m.Tokenizer(); err == nil {
			tok.Encode("hello")
		}
	})
}
