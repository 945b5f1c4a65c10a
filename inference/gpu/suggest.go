package gpu

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// Native is the engine inside the program.
const Native = "native"

// Machine is what the native engine runs on.
type Machine struct {
	Memory     int64  // bytes; 0: unknown
	Processors int    // threads that the engine may use
	Kernels    string // of the native engine: portable, avx2, avx512, ...
}

// Server is an inference server of this machine that answered.
type Server struct {
	Kind string // vllm, sglang, llama-server or ollama
	URL  string
}

// Ports are the places where servers listen unless told otherwise, the most useful
// one first: vLLM and SGLang score, llama-server takes token ids, Ollama knows text alone.
func Ports() []Server {
	return []Server{
		{"vllm", "http://127.0.0.1:8000"}, {"sglang", "http://127.0.0.1:30000"},
		{"llama-server", "http://127.0.0.1:8080"}, {"ollama", "http://127.0.0.1:11434"},
	}
}

// Choice is an engine and the reason for it.
type Choice struct {
	Engine string   // Native, or the kind of a server
	URL    string   // of the server; empty for Native
	Why    string   // one or two sentences
	Steps  []string // what to type to get more out of the machine; empty: nothing
}

// Suggest picks an engine for what Find returned and for the servers that answered.
// A server is picked where there is a GPU for it; else the native engine, which is
// checked bit by bit, and the servers stand in Steps.
func Suggest(i Inventory, err error, m Machine, servers []Server) Choice {
	best, found := bestServer(servers)
	usable := i.Usable()
	c := Choice{Engine: Native, Why: "native engine on " + m.String() + ": "}
	if err != nil || len(usable) == 0 {
		c.Why += noGPU(i, err) + "."
		if found {
			c.Why += fmt.Sprintf(" %s answers at %s, too.", best.Kind, best.URL)
			c.Steps = []string{"mesh up --engine " + best.URL}
		}
		return c
	}
	if found {
		c = Choice{Engine: best.Kind, URL: best.URL, Why: fmt.Sprintf("%s at %s: it answers, and this machine has %s.", best.Kind, best.URL, i)}
		if others := otherServers(servers, best); others != "" {
			c.Why += " Also here: " + others + "; name another one with --engine URL."
		}
		return c
	}
	c.Why += fmt.Sprintf("this machine has %s, but no vLLM, SGLang, llama-server or Ollama answers on its usual port.", i)
	steps, why := start(usable)
	if why != "" {
		c.Why += " " + why
	}
	c.Steps = steps
	return c
}

// String says what the native engine has to work with.
func (m Machine) String() string {
	s := fmt.Sprintf("%d processors", m.Processors)
	if m.Processors == 1 {
		s = "1 processor"
	}
	if m.Memory > 0 {
		s += " and " + gib(uint64(m.Memory))
	}
	if m.Kernels != "" {
		s += " with " + m.Kernels + " kernels"
	}
	return s
}

func noGPU(i Inventory, err error) string {
	var none *NotFoundError
	switch {
	case errors.As(err, &none):
		return none.Cause.String()
	case err != nil:
		return err.Error()
	case len(i.Devices) > 0:
		return i.String()
	}
	return NoDevice.String()
}

func bestServer(servers []Server) (Server, bool) {
	for _, p := range Ports() {
		for _, s := range servers {
			if s.Kind == p.Kind {
				return s, true
			}
		}
	}
	return Server{}, false
}

func otherServers(servers []Server, best Server) string {
	var out []string
	for _, s := range servers {
		if s != best {
			out = append(out, s.Kind+" at "+s.URL)
		}
	}
	return strings.Join(out, ", ")
}

// size is a model that vLLM loads by name.
type size struct {
	name    string
	weights uint64 // bytes of its safetensors files
	kv      uint64 // bytes of a token's keys and values: 2 x layers x KV heads x head size x 2
	fp8     bool
}

// sizes are of the Qwen3 family, largest first. Weights are those of the published
// files, layers and heads those of their config.json.
var sizes = []size{
	{"Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", 236_400_000_000, 2 * 94 * 4 * 128 * 2, true},
	{"Qwen/Qwen3-32B", 65_500_000_000, 2 * 64 * 8 * 128 * 2, false},
	{"Qwen/Qwen3-14B", 29_500_000_000, 2 * 40 * 8 * 128 * 2, false},
	{"Qwen/Qwen3-8B", 16_400_000_000, 2 * 36 * 8 * 128 * 2, false},
	{"Qwen/Qwen3-4B", 8_050_000_000, 2 * 36 * 8 * 128 * 2, false},
	{"Qwen/Qwen3-1.7B", 4_060_000_000, 2 * 28 * 8 * 128 * 2, false},
	{"Qwen/Qwen3-0.6B", 1_500_000_000, 2 * 28 * 8 * 128 * 2, false},
}

const (
	leastContext = 8 << 10 // tokens, below which a smaller model is the better one
	mostContext  = 40_960  // tokens: the context of Qwen3
	overhead     = 2 << 30 // bytes on each GPU for activations and CUDA graphs, estimated
	mostShare    = 0.90    // of a GPU's memory, vLLM's own default
)

const llamaServer = "llama-server -m FILE.gguf -ngl 99 --host 127.0.0.1 --port 8080"

// start returns the commands that put the largest group of equal GPUs to use, or why
// there are none.
func start(usable []Device) (steps []string, why string) {
	all := groups(usable)
	at := slices.IndexFunc(all, func(g []Device) bool { return !g[0].MIG })
	if at < 0 {
		// Versions of vLLM up to 0.20 at least end at start with the UUID of an instance.
		return []string{"nvidia-smi -L", "CUDA_VISIBLE_DEVICES=MIG-UUID " + llamaServer, "mesh up --engine http://127.0.0.1:8080"},
			"The GPU is split (MIG): start a server on one of its instances, whose UUIDs nvidia-smi -L lists."
	}
	g := all[at]
	if v := capability(g[0]); v > 0 && v < 70 {
		return []string{llamaServer, "mesh up --engine http://127.0.0.1:8080"},
			"vLLM wants compute capability 7.0 and this is " + g[0].Compute + ": llama-server runs on it."
	}
	n := 1 << (bits.Len(uint(min(len(g), 8))) - 1) // tensor parallelism divides the heads
	g = g[:n]
	if g[0].Memory == 0 {
		return []string{serve(g, "MODEL", mostShare, 0, false), "mesh up --engine http://127.0.0.1:8000"}, "Choose a model that fits its memory."
	}
	share := freeShare(g)
	for _, s := range sizes {
		context := room(g, share, s)
		if context < leastContext || s.fp8 && capability(g[0]) < 89 {
			continue
		}
		return []string{serve(g, s.name, share, context, s.fp8 && n > 4), "mesh up --engine http://127.0.0.1:8000"}, ""
	}
	return nil, "Too little of its memory is free for a server: see what nvidia-smi lists."
}

// freeShare returns the part of the fullest GPU's memory that a new server may take,
// in steps of a hundredth.
func freeShare(g []Device) float64 {
	share := mostShare
	for _, d := range g {
		if used := float64(d.Used) / float64(d.Memory); used > 0.05 {
			share = min(share, 1-used-0.03)
		}
	}
	return float64(int(max(share, 0)*100)) / 100
}

// room returns how many tokens of keys and values fit beside a model's weights.
func room(g []Device, share float64, s size) int {
	n := uint64(len(g))
	have := n * uint64(float64(g[0].Memory)*share)
	need := s.weights + n*overhead
	if have <= need {
		return 0
	}
	return int(min((have-need)/s.kv/1024*1024, mostContext))
}

// serve writes the command for vLLM. It listens on this machine alone, tells the mesh
// about itself, and is batch invariant where every version that can be is: compute
// capability 9.0.
func serve(g []Device, model string, share float64, context int, experts bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=%s VLLM_SERVER_DEV_MODE=1 ", indices(g))
	if capability(g[0]) >= 90 {
		b.WriteString("VLLM_BATCH_INVARIANT=1 ")
	}
	fmt.Fprintf(&b, "vllm serve %s --host 127.0.0.1 --port 8000", model)
	if len(g) > 1 {
		fmt.Fprintf(&b, " --tensor-parallel-size %d", len(g))
	}
	if experts { // the FP8 blocks of 128 do not divide among more than four
		b.WriteString(" --enable-expert-parallel")
	}
	if share < mostShare {
		fmt.Fprintf(&b, " --gpu-memory-utilization %.2f", share)
	}
	if context > 0 && context < mostContext {
		fmt.Fprintf(&b, " --max-model-len %d", context)
	}
	if v := capability(g[0]); v > 0 && v < 80 { // no bfloat16
		b.WriteString(" --dtype half")
	}
	return b.String()
}

func indices(g []Device) string {
	var out []string
	for _, d := range g {
		out = append(out, strconv.Itoa(d.Index))
	}
	return strings.Join(out, ",")
}

// capability returns 89 for 8.9, and 0 where it is unknown.
func capability(d Device) int {
	major, minor, ok := strings.Cut(d.Compute, ".")
	a, err := strconv.Atoi(major)
	b, err2 := strconv.Atoi(minor)
	if !ok || err != nil || err2 != nil {
		return 0
	}
	return a*10 + b
}
