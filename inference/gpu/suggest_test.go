package gpu

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestSuggest(t *testing.T) {
	m := Machine{Memory: 64 << 30, Processors: 16, Kernels: "avx512"}
	vllm, ollama := Server{"vllm", "http://127.0.0.1:8000"}, Server{"ollama", "http://127.0.0.1:11434"}
	many := func(n int, name, compute string, memory, used uint64) Inventory {
		var i Inventory
		for k := range n {
			d := device(k, name, memory)
			d.Compute, d.Used = compute, used
			i.Devices = append(i.Devices, d)
		}
		return i
	}
	with := func(i Inventory, change func([]Device)) Inventory { change(i.Devices); return i }
	const prefix = "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES="
	for _, c := range []struct {
		name      string
		inventory Inventory
		err       error
		servers   []Server
		engine    string
		why       []string
		first     string // of the steps; empty: none
	}{
		{"no GPU", Inventory{}, &NotFoundError{Cause: NoDevice}, nil, Native,
			[]string{"native engine on 16 processors and 64 GiB with avx512 kernels: no NVIDIA GPU in this machine."}, ""},
		{"no driver", Inventory{}, &NotFoundError{Cause: NoDriver}, nil, Native, []string{"the NVIDIA driver is not loaded"}, ""},
		{"another error", Inventory{}, errors.New("look for GPUs: cancelled"), nil, Native, []string{"look for GPUs: cancelled."}, ""},
		{"no GPU, a server", Inventory{}, &NotFoundError{Cause: NoDevice}, []Server{ollama}, Native,
			[]string{"no NVIDIA GPU", "ollama answers at http://127.0.0.1:11434, too."}, "mesh up --engine http://127.0.0.1:11434"},
		{"all lost", with(many(1, "NVIDIA L4", "8.9", 24<<30, 0), func(d []Device) { d[0].Fault = lostWords }), nil, nil, Native, []string{"GPU 0: " + lostWords}, ""},
		{"a server", many(1, "NVIDIA H200", "9.0", 141<<30, 130<<30), nil, []Server{ollama, vllm}, "vllm",
			[]string{"vllm at http://127.0.0.1:8000", "1 x NVIDIA H200 (141 GiB)", "Also here: ollama at http://127.0.0.1:11434"}, ""},
		{"ollama alone", many(1, "NVIDIA L4", "8.9", 23<<30, 0), nil, []Server{ollama}, "ollama", []string{"it answers"}, ""},
		{"one H200", many(1, "NVIDIA H200", "9.0", 141<<30, 0), nil, nil, Native, []string{"no vLLM, SGLang, llama-server or Ollama answers"},
			prefix + "0 VLLM_SERVER_DEV_MODE=1 VLLM_BATCH_INVARIANT=1 vllm serve Qwen/Qwen3-32B --host 127.0.0.1 --port 8000"},
		{"four H100", many(4, "NVIDIA H100", "9.0", 80<<30, 0), nil, nil, Native, nil,
			prefix + "0,1,2,3 VLLM_SERVER_DEV_MODE=1 VLLM_BATCH_INVARIANT=1 vllm serve Qwen/Qwen3-235B-A22B-Instruct-2507-FP8 --host 127.0.0.1 --port 8000 --tensor-parallel-size 4"},
		{"eight A100, no FP8", many(8, "NVIDIA A100", "8.0", 80<<30, 0), nil, nil, Native, nil,
			prefix + "0,1,2,3,4,5,6,7 VLLM_SERVER_DEV_MODE=1 vllm serve Qwen/Qwen3-32B --host 127.0.0.1 --port 8000 --tensor-parallel-size 8"},
		{"eight H100", many(8, "NVIDIA H100", "9.0", 80<<30, 0), nil, nil, Native, nil,
			prefix + "0,1,2,3,4,5,6,7 VLLM_SERVER_DEV_MODE=1 VLLM_BATCH_INVARIANT=1 vllm serve Qwen/Qwen3-235B-A22B-Instruct-2507-FP8 --host 127.0.0.1 --port 8000 --tensor-parallel-size 8 --enable-expert-parallel"},
		{"three of which two", with(many(4, "NVIDIA L4", "8.9", 23<<30, 0), func(d []Device) { d[1].Fault = lostWords }), nil, nil, Native, []string{"GPU 1: " + lostWords},
			prefix + "0,2 VLLM_SERVER_DEV_MODE=1 vllm serve Qwen/Qwen3-14B --host 127.0.0.1 --port 8000 --tensor-parallel-size 2"},
		{"a desktop that shows a screen", many(1, "NVIDIA GeForce RTX 4090", "8.9", 24<<30, 2<<30), nil, nil, Native, nil,
			prefix + "0 VLLM_SERVER_DEV_MODE=1 vllm serve Qwen/Qwen3-8B --host 127.0.0.1 --port 8000 --gpu-memory-utilization 0.88 --max-model-len 27648"},
		{"Turing", many(1, "Tesla T4", "7.5", 15<<30, 0), nil, nil, Native, nil,
			prefix + "0 VLLM_SERVER_DEV_MODE=1 vllm serve Qwen/Qwen3-4B --host 127.0.0.1 --port 8000 --max-model-len 28672 --dtype half"},
		{"Pascal", many(1, "Tesla P40", "6.1", 24<<30, 0), nil, nil, Native, []string{"compute capability 7.0 and this is 6.1"}, llamaServer},
		{"MIG", with(many(1, "NVIDIA A100", "8.0", 40<<30, 0), func(d []Device) { d[0].MIG = true }), nil, nil, Native, []string{"split (MIG)"}, "nvidia-smi -L"},
		{"memory taken", many(1, "NVIDIA L4", "8.9", 23<<30, 22<<30), nil, nil, Native, []string{"Too little of its memory is free"}, ""},
		{"memory unknown", many(1, "NVIDIA GB10", "12.1", 0, 0), nil, nil, Native, []string{"Choose a model"},
			prefix + "0 VLLM_SERVER_DEV_MODE=1 VLLM_BATCH_INVARIANT=1 vllm serve MODEL --host 127.0.0.1 --port 8000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := Suggest(c.inventory, c.err, m, c.servers)
			if got.Engine != c.engine || (got.URL == "") != (c.engine == Native) {
				t.Errorf("engine %s at %q, want %s", got.Engine, got.URL, c.engine)
			}
			for _, w := range c.why {
				if !strings.Contains(got.Why, w) {
					t.Errorf("why %q lacks %q", got.Why, w)
				}
			}
			if c.first == "" && len(got.Steps) != 0 || c.first != "" && (len(got.Steps) == 0 || got.Steps[0] != c.first) {
				t.Errorf("steps %q\nwant  %q", got.Steps, c.first)
			}
			if n := len(got.Steps); n > 0 && !strings.HasPrefix(got.Steps[n-1], "mesh up --engine http://127.0.0.1:") {
				t.Errorf("last step %q", got.Steps[n-1])
			}
		})
	}
	if !slices.IsSortedFunc(sizes, func(a, b size) int { return int(b.weights/1e9) - int(a.weights/1e9) }) {
		t.Error("the largest model is tried first")
	}
}
