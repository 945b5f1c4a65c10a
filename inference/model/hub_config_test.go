package model

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

// TestHubConfigs reads config.json of published models, shortened to what counts.
func TestHubConfigs(t *testing.T) {
	root := func(n float64) float32 { return float32(1 / math.Sqrt(n)) }
	tests := []struct {
		name, config string
		want         Config
		local        []int // layers with a window, of the first 12
	}{
		{"Llama-3.1-8B", `{"architectures":["LlamaForCausalLM"],"attention_bias":false,"bos_token_id":128000,"eos_token_id":128001,"hidden_act":"silu",
			"hidden_size":4096,"intermediate_size":14336,"max_position_embeddings":131072,"mlp_bias":false,"model_type":"llama","num_attention_heads":32,
			"num_hidden_layers":32,"num_key_value_heads":8,"pretraining_tp":1,"rms_norm_eps":1e-05,"rope_scaling":{"factor":8.0,"high_freq_factor":4.0,
			"low_freq_factor":1.0,"original_max_position_embeddings":8192,"rope_type":"llama3"},"rope_theta":500000.0,"tie_word_embeddings":false,"vocab_size":128256}`,
			Config{Architecture: "llama", Layers: 32, Width: 4096, FFN: 14336, Heads: 32, KVHeads: 8, HeadDim: 128, Vocab: 128256, Context: 131072, Eps: 1e-5,
				EmbedScale: 1, AttnScale: root(128), RopeBase: 5e5, RopeScale: 1}, nil},
		{"Mistral-7B-v0.1", `{"model_type":"mistral","hidden_act":"silu","hidden_size":4096,"intermediate_size":14336,"max_position_embeddings":32768,
			"num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,"rms_norm_eps":1e-05,"rope_theta":10000.0,"sliding_window":4096,
			"tie_word_embeddings":false,"vocab_size":32000}`,
			Config{Architecture: "mistral", Layers: 32, Width: 4096, FFN: 14336, Heads: 32, KVHeads: 8, HeadDim: 128, Vocab: 32000, Context: 32768, Eps: 1e-5,
				EmbedScale: 1, AttnScale: root(128), RopeBase: 1e4, RopeScale: 1, Window: 4096}, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}},
		{"Mistral-Nemo", `{"model_type":"mistral","head_dim":128,"hidden_act":"silu","hidden_size":5120,"intermediate_size":14336,"max_position_embeddings":1024000,
			"num_attention_heads":32,"num_hidden_layers":40,"num_key_value_heads":8,"rms_norm_eps":1e-05,"rope_theta":1000000.0,"sliding_window":null,
			"tie_word_embeddings":false,"vocab_size":131072}`,
			Config{Architecture: "mistral", Layers: 40, Width: 5120, FFN: 14336, Heads: 32, KVHeads: 8, HeadDim: 128, Vocab: 131072, Context: 1024000, Eps: 1e-5,
				EmbedScale: 1, AttnScale: root(128), RopeBase: 1e6, RopeScale: 1}, nil},
		{"Qwen2.5-0.5B", `{"model_type":"qwen2","hidden_act":"silu","hidden_size":896,"intermediate_size":4864,"max_position_embeddings":32768,"max_window_layers":24,
			"num_attention_heads":14,"num_hidden_layers":24,"num_key_value_heads":2,"rms_norm_eps":1e-06,"rope_theta":1000000.0,"sliding_window":32768,
			"tie_word_embeddings":true,"use_mrope":false,"use_sliding_window":false,"vocab_size":151936}`,
			Config{Architecture: "qwen2", Layers: 24, Width: 896, FFN: 4864, Heads: 14, KVHeads: 2, HeadDim: 64, Vocab: 151936, Context: 32768, Eps: 1e-6,
				EmbedScale: 1, AttnScale: root(64), RopeBase: 1e6, RopeScale: 1}, nil},
		{"Qwen3-235B-A22B", `{"architectures":["Qwen3MoeForCausalLM"],"attention_bias":false,"decoder_sparse_step":1,"head_dim":128,"hidden_act":"silu","hidden_size":4096,
			"intermediate_size":12288,"max_position_embeddings":40960,"max_window_layers":94,"mlp_only_layers":[],"model_type":"qwen3_moe","moe_intermediate_size":1536,
			"norm_topk_prob":true,"num_attention_heads":64,"num_experts":128,"num_experts_per_tok":8,"num_hidden_layers":94,"num_key_value_heads":4,
			"rms_norm_eps":1e-06,"rope_scaling":null,"rope_theta":1000000.0,"sliding_window":null,"tie_word_embeddings":false,"use_sliding_window":false,"vocab_size":151936}`,
			Config{Architecture: "qwen3moe", Layers: 94, Width: 4096, Heads: 64, KVHeads: 4, HeadDim: 128, Vocab: 151936, Context: 40960, Eps: 1e-6, QKNorm: true,
				Experts: 128, ExpertsUsed: 8, ExpertFFN: 1536, NormTopK: true, EmbedScale: 1, AttnScale: root(128), RopeBase: 1e6, RopeScale: 1}, nil},
		{"gemma-2b", `{"model_type":"gemma","head_dim":256,"hidden_act":"gelu","hidden_activation":null,"hidden_size":2048,"intermediate_size":16384,
			"max_position_embeddings":8192,"num_attention_heads":8,"num_hidden_layers":18,"num_key_value_heads":1,"rms_norm_eps":1e-06,"rope_theta":10000.0,"vocab_size":256000}`,
			Config{Architecture: "gemma", Layers: 18, Width: 2048, FFN: 16384, Heads: 8, KVHeads: 1, HeadDim: 256, Vocab: 256000, Context: 8192, Eps: 1e-6,
				Activation: GELUTanh, EmbedScale: 45.254834, AttnScale: root(256), RopeBase: 1e4, RopeScale: 1}, nil},
		{"gemma-2-27b", `{"model_type":"gemma2","attn_logit_softcapping":50.0,"final_logit_softcapping":30.0,"head_dim":128,"hidden_act":"gelu_pytorch_tanh",
			"hidden_activation":"gelu_pytorch_tanh","hidden_size":4608,"intermediate_size":36864,"max_position_embeddings":8192,"num_attention_heads":32,
			"num_hidden_layers":46,"num_key_value_heads":16,"query_pre_attn_scalar":144,"rms_norm_eps":1e-06,"rope_theta":10000.0,"sliding_window":4096,"vocab_size":256000}`,
			Config{Architecture: "gemma2", Layers: 46, Width: 4608, FFN: 36864, Heads: 32, KVHeads: 16, HeadDim: 128, Vocab: 256000, Context: 8192, Eps: 1e-6,
				Activation: GELUTanh, EmbedScale: 67.88225, AttnScale: root(144), AttnCap: 50, LogitCap: 30, RopeBase: 1e4, RopeScale: 1, Window: 4096, PostNorms: true},
			[]int{0, 2, 4, 6, 8, 10}},
		{"gemma-3-1b", `{"architectures":["Gemma3ForCausalLM"],"attention_bias":false,"attn_logit_softcapping":null,"final_logit_softcapping":null,"head_dim":256,
			"hidden_activation":"gelu_pytorch_tanh","hidden_size":1152,"intermediate_size":6912,"max_position_embeddings":32768,"model_type":"gemma3_text",
			"num_attention_heads":4,"num_hidden_layers":26,"num_key_value_heads":1,"query_pre_attn_scalar":256,"rms_norm_eps":1e-06,"rope_local_base_freq":10000,
			"rope_scaling":null,"rope_theta":1000000,"sliding_window":512,"sliding_window_pattern":6,"vocab_size":262144}`,
			Config{Architecture: "gemma3", Layers: 26, Width: 1152, FFN: 6912, Heads: 4, KVHeads: 1, HeadDim: 256, Vocab: 262144, Context: 32768, Eps: 1e-6,
				Activation: GELUTanh, EmbedScale: 33.941124, AttnScale: root(256), RopeBase: 1e6, RopeScale: 1, Window: 512, LocalRopeBase: 1e4, PostNorms: true, QKNorm: true},
			[]int{0, 1, 2, 3, 4, 6, 7, 8, 9, 10}},
		{"gemma-3, newer form", `{"model_type":"gemma3_text","head_dim":256,"hidden_activation":"gelu_pytorch_tanh","hidden_size":2560,"intermediate_size":10240,
			"layer_types":["sliding_attention","full_attention","sliding_attention","full_attention"],"max_position_embeddings":131072,"num_attention_heads":8,
			"num_hidden_layers":4,"num_key_value_heads":4,"query_pre_attn_scalar":256,"rms_norm_eps":1e-06,"rope_parameters":{"full_attention":{"factor":8.0,
			"rope_theta":1000000.0,"rope_type":"linear"},"sliding_attention":{"rope_theta":20000.0,"rope_type":"default"}},"sliding_window":1024,"vocab_size":262208}`,
			Config{Architecture: "gemma3", Layers: 4, Width: 2560, FFN: 10240, Heads: 8, KVHeads: 4, HeadDim: 256, Vocab: 262208, Context: 131072, Eps: 1e-6,
				Activation: GELUTanh, EmbedScale: 50.596443, AttnScale: root(256), RopeBase: 1e6, RopeScale: 8, Window: 1024, LocalRopeBase: 2e4, PostNorms: true, QKNorm: true},
			[]int{0, 2}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readHubConfig([]byte(tt.config))
			if err != nil {
				t.Fatal(err)
			}
			var local []int
			for i := range min(12, got.Layers) {
				if got.IsLocal(i) {
					local = append(local, i)
				}
			}
			if !slices.Equal(local, tt.local) {
				t.Errorf("layers with a window: %v, want %v", local, tt.local)
			}
			if tt.name == "Llama-3.1-8B" {
				checkLlama3(t, &got.Config)
			}
			got.Local, got.RopeFactors = nil, nil
			if !sameConfig(got.Config, tt.want) {
				t.Errorf("\n got %+v\nwant %+v", got.Config, tt.want)
			}
		})
	}
}

// checkLlama3 compares the factors with the formula in plain float64.
func checkLlama3(t *testing.T, c *Config) {
	t.Helper()
	if len(c.RopeFactors) != 64 {
		t.Fatalf("%d factors", len(c.RopeFactors))
	}
	between := 0
	for i, f := range c.RopeFactors {
		wave := 2 * math.Pi * math.Pow(5e5, float64(2*i)/128)
		want := 1.0
		switch {
		case wave > 8192:
			want = 8
		case wave > 8192.0/4:
			smooth := (8192/wave - 1) / 3
			want = 1 / ((1-smooth)/8 + smooth)
			between++
		}
		if math.Abs(float64(f)-want) > 1e-5*want {
			t.Errorf("factor %d: got %g, want %g", i, f, want)
		}
	}
	if between < 5 {
		t.Errorf("%d factors lie between", between)
	}
}

func TestHubRefuses(t *testing.T) {
	config := func(field string, v any) func(hubModel) { return editing(t, "config.json", field, v) }
	tests := []struct {
		name, shape string
		change      func(hubModel)
		want        []string
	}{
		{"no config", "tiny-qwen2", func(m hubModel) { delete(m, "config.json") }, []string{"config.json"}},
		{"no tokenizer", "tiny-qwen2", func(m hubModel) { delete(m, "tokenizer.json") }, []string{"tokenizer.json"}},
		{"empty file", "tiny-qwen2", func(m hubModel) { m["generation_config.json"] = nil }, []string{"generation_config.json"}},
		{"damaged config", "tiny-qwen2", func(m hubModel) { m["config.json"] = []byte("{") }, []string{"config.json"}},
		{"model type", "tiny-qwen2", config("model_type", "mamba"), []string{"model_type", "mamba"}},
		{"quantised", "tiny-qwen2", config("quantization_config", map[string]any{"quant_method": "fp8"}), []string{"quantization_config"}},
		{"no layers", "tiny-qwen2", config("num_hidden_layers", 0), []string{"num_hidden_layers"}},
		{"layers", "tiny-qwen2", config("num_hidden_layers", 3), []string{"model.layers.2."}},
		{"fewer layers", "tiny-qwen2", config("num_hidden_layers", 1), []string{"model.layers.1."}},
		{"missing field", "tiny-qwen2", config("hidden_size", nil), []string{"hidden_size"}},
		{"type of a field", "tiny-qwen2", config("hidden_size", "x"), []string{"hidden_size"}},
		{"width", "tiny-qwen2", config("hidden_size", 256), []string{"model.embed_tokens.weight"}},
		{"vocabulary", "tiny-qwen2", config("vocab_size", 1025), []string{"vocab_size"}},
		{"heads", "tiny-qwen2", config("num_key_value_heads", 3), []string{"num_key_value_heads"}},
		{"no kv heads", "tiny-qwen2", config("num_key_value_heads", nil), []string{"num_key_value_heads"}},
		{"head", "tiny-qwen2", config("head_dim", 33), []string{"head_dim"}},
		{"eps", "tiny-qwen2", config("rms_norm_eps", 2), []string{"rms_norm_eps"}},
		{"no eps", "tiny-qwen2", config("rms_norm_eps", nil), []string{"rms_norm_eps"}},
		{"rope base", "tiny-qwen2", config("rope_theta", 0), []string{"rope_theta"}},
		{"yarn", "tiny-qwen2", config("rope_scaling", map[string]any{"rope_type": "yarn", "factor": 4}), []string{"rope_scaling", "yarn"}},
		{"llama3", "tiny-llama", config("rope_scaling", map[string]any{"rope_type": "llama3", "factor": 4}), []string{"low_freq_factor"}},
		{"linear", "tiny-llama", config("rope_scaling", map[string]any{"type": "linear"}), []string{"rope_scaling.factor"}},
		{"partial", "tiny-llama", config("partial_rotary_factor", 0.5), []string{"partial_rotary_factor"}},
		{"activation", "tiny-llama", config("hidden_act", "relu"), []string{"hidden_act", "relu"}},
		{"mlp bias", "tiny-llama", config("mlp_bias", true), []string{"mlp_bias"}},
		{"attention bias", "tiny-llama", config("attention_bias", true), []string{"q_proj.bias", "bias"}},
		{"untied", "tiny-qwen2", config("tie_word_embeddings", false), []string{"lm_head.weight", "tie_word_embeddings"}},
		{"sparse step", "tiny-qwen3moe", config("decoder_sparse_step", 2), []string{"decoder_sparse_step"}},
		{"dense layers", "tiny-qwen3moe", config("mlp_only_layers", []int{0}), []string{"mlp_only_layers"}},
		{"experts", "tiny-qwen3moe", config("num_experts", 9), []string{"mlp.experts.8.gate_proj.weight"}},
		{"fewer experts", "tiny-qwen3moe", config("num_experts", 7), []string{"mlp.experts.7."}},
		{"experts used", "tiny-qwen3moe", config("num_experts_per_tok", 9), []string{"num_experts_per_tok"}},
		{"expert size", "tiny-qwen3moe", config("moe_intermediate_size", 128), []string{"mlp.experts.*.gate_proj.weight"}},
		{"layer types", "tiny-gemma3", config("layer_types", []string{"full_attention"}), []string{"layer_types"}},
		{"layer type", "tiny-mistral", config("layer_types", []string{"full_attention", "x"}), []string{"layer_types element 1"}},
		{"window", "tiny-mistral", config("sliding_window", -1), []string{"sliding_window"}},
		{"cap", "tiny-gemma2", config("attn_logit_softcapping", -1), []string{"attn_logit_softcapping"}},
		{"scale", "tiny-gemma2", config("query_pre_attn_scalar", 0), []string{"query_pre_attn_scalar"}},
		{"end", "tiny-qwen2", config("eos_token_id", []int{5, 1024}), []string{"config.json", "eos_token_id"}},
		{"missing shard", "tiny-qwen2", func(m hubModel) {
			m.edit(t, indexName, map[string]any{"weight_map": map[string]string{"x": "a.safetensors"}})
			delete(m, weightsName)
		}, []string{"a.safetensors"}},
		{"path of a shard", "tiny-qwen2", func(m hubModel) {
			m.edit(t, indexName, map[string]any{"weight_map": map[string]string{"x": "../a.safetensors"}})
			delete(m, weightsName)
		}, []string{"weight_map", "../a.safetensors"}},
		{"index without a tensor", "tiny-qwen2", func(m hubModel) {
			m["a.safetensors"] = m[weightsName]
			m.edit(t, indexName, map[string]any{"weight_map": map[string]string{"x": "a.safetensors"}})
			delete(m, weightsName)
		}, []string{"a.safetensors", "does not say"}},
		{"templates", "tiny-qwen2", editing(t, "tokenizer_config.json", "chat_template", []map[string]string{{"name": "x", "template": ""}}), []string{"chat_template", "default"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, _ := hubOf(t, tt.shape, BF16)
			tt.change(m)
			_, err := m.open(t)
			for _, want := range tt.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want an error that names %s", err, want)
				}
			}
		})
	}
}

func editing(t *testing.T, file, field string, v any) func(hubModel) {
	return func(m hubModel) { m.edit(t, file, map[string]any{field: v}) }
}

func TestSafetensorsRefuse(t *testing.T) {
	file := func(header string, data int) []byte {
		b := make([]byte, 8, 8+len(header)+data)
		b[0], b[1] = byte(len(header)), byte(len(header)>>8)
		return append(append(b, header...), make([]byte, data)...)
	}
	one := func(fields string) []byte { return file(`{"t":{`+fields+`}}`, 8) }
	tests := []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "length"},
		{"long header", []byte{255, 0, 0, 0, 0, 0, 0, 0, '{', '}'}, "header of 255"},
		{"huge header", []byte{0, 0, 0, 0, 0, 0, 0, 128, '{', '}'}, "header of"},
		{"no object", file(`[]`, 0), "no JSON object"},
		{"no JSON", file(`{x}`, 0), "header"},
		{"two objects", file(`{}{}`, 0), "behind"},
		{"bytes too many", file(`{}`, 3), "3 bytes behind"},
		{"dtype", one(`"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]`), `"F8_E4M3"`},
		{"no dtype", one(`"shape":[2],"data_offsets":[0,8]`), "dtype"},
		{"unknown field", one(`"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1`), `"x"`},
		{"no shape", one(`"dtype":"F32","data_offsets":[0,8]`), "shape"},
		{"dimensions", one(`"dtype":"F32","shape":[1,1,1,1,2],"data_offsets":[0,8]`), "5 dimensions"},
		{"zero", one(`"dtype":"F32","shape":[0],"data_offsets":[0,0]`), "shape"},
		{"negative", one(`"dtype":"F32","shape":[-2],"data_offsets":[0,8]`), "shape"},
		{"overflow", one(`"dtype":"F32","shape":[2147483647,2147483647,2147483647],"data_offsets":[0,8]`), "too large"},
		{"offsets", one(`"dtype":"F32","shape":[2],"data_offsets":[0,4]`), "data_offsets"},
		{"offsets backwards", one(`"dtype":"F32","shape":[2],"data_offsets":[8,0]`), "data_offsets"},
		{"one offset", one(`"dtype":"F32","shape":[2],"data_offsets":[8]`), "data_offsets"},
		{"offset type", one(`"dtype":"F32","shape":[2],"data_offsets":[-1,7]`), "data_offsets"},
		{"outside", one(`"dtype":"F32","shape":[4],"data_offsets":[0,16]`), "data_offsets"},
		{"hole at the start", one(`"dtype":"F32","shape":[1],"data_offsets":[4,8]`), "unused"},
		{"behind", one(`"dtype":"F32","shape":[1],"data_offsets":[0,4]`), "4 bytes behind"},
		{"overlap", file(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, 8), "overlap"},
		{"twice", file(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, 8), "twice"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := parseSafetensors(tt.data); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error that names %s", err, tt.want)
			}
		})
	}
	tensors, err := parseSafetensors(one(`"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]`))
	if err != nil || len(tensors) != 1 || len(tensors[0].Data) != 8 {
		t.Errorf("a good file: %v, %v", tensors, err)
	}
}

func TestHubTemplates(t *testing.T) {
	m, _ := hubOf(t, "tiny-qwen2", BF16)
	chat := func() string {
		t.Helper()
		f, err := m.open(t)
		if err != nil {
			t.Fatal(err)
		}
		tpl, err := f.Template()
		if err != nil {
			return err.Error()
		}
		text, err := tpl.Text([]Message{{Role: "user", Content: "x"}}, "")
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	set := editing(t, "tokenizer_config.json", "chat_template", []map[string]string{{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D{{ eos_token }}"}})
	set(m)
	if got := chat(); got != "D<|im_end|>" {
		t.Errorf("named templates: %q", got)
	}
	m["chat_template.jinja"] = []byte("J{{ bos_token }}")
	if got := chat(); got != "J<|endoftext|>" {
		t.Errorf("a template of its own: %q", got)
	}
	delete(m, "chat_template.jinja")
	editing(t, "tokenizer_config.json", "chat_template", nil)(m)
	if got := chat(); got != "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n" {
		t.Errorf("without a template: %q", got)
	}
	m["generation_config.json"], _ = json.Marshal(map[string]any{"eos_token_id": []int{7, 9}})
	f, err := m.open(t)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := f.Tokenizer()
	if err != nil {
		t.Fatal(err)
	}
	var ends []int32
	for i := range int32(tok.Vocab()) {
		if tok.IsEnd(i) {
			ends = append(ends, i)
		}
	}
	if fmt.Sprint(ends) != "[7 9 1021 1023]" {
		t.Errorf("ends %v", ends)
	}
}
