// Package native is the engine of the exact class: it computes models of the
// llama, qwen2 and qwen3 architectures with the arithmetic of inference/kernel, so
// an answer has equal bits on any machine, with any number of threads, alone or in
// company, computed in one go or continued from another host's tokens.
//
// One goroutine, the scheduler, computes steps. A step takes one token of every
// answer in the making and a chunk of the prompts of newcomers (continuous
// batching); payers who ask at the same time have equal parts of it (group.go).
// Requests wait in a queue while all slots or the memory for keys and values are
// taken. Keys and values are kept in pages for prompts that begin alike (memory.go).
package native

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/inference/kernel"
	"github.com/gonka-mesh/mesh/inference/model"
)

// Config says what an engine serves and with how much of the machine.
type Config struct {
	File    *model.File // stays open until Close has returned; the caller closes it
	ID      mesh.ModelID
	Name    string // by which requests ask for it; empty: the file's
	Threads int    // 0: one for each processor
	Slots   int    // requests decoded at once; 0: 32
	Context int    // tokens, prompt and output of a request; 0: the model's
	Memory  int64  // bytes for keys and values of all requests; 0: 1 GiB
	KV      string // how keys and values are stored, "f16" or "f32"; empty: f16
	Chunk   int    // prompt tokens of a step; 0: as many as the machine computes in a moment

	// Packed is a file of packed weights, which the next start maps instead of packing
	// again: it is used if it fits, and written in the background if not. Empty, or
	// without an ID: none.
	Packed      string
	PackedLimit int64        // bytes that it may have; 0: any number
	Log         *slog.Logger // nil: none

	// DequantizeToF32 computes with float32 weights and activations. That is another
	// model to the contract, and its fingerprint says so; tests compare with it.
	DequantizeToF32 bool
}

const (
	defaultSlots  = 32
	defaultMemory = 1 << 30
	// settleDelay is until the first token is out and what loading left may go back to
	// the system: the heap beside the weights is too small to be collected soon.
	settleDelay = time.Second
	packedDelay = 2 * time.Second // until the first answers are on their way
)

// errClosed reports a request to an engine that was closed.
var errClosed = errors.New("the engine is closed")

// Engine implements inference.Engine.
type Engine struct {
	info      inference.ModelInfo
	net       *network
	packed    *packedFile // nil: none
	pool      *kernel.Pool
	format    kernel.Format // of keys and values
	encoder   *Encoder
	tokenizer *model.Tokenizer // the encoder's
	forms     forms            // of answers with a constraint
	context   int
	slots     int
	chunk     int

	compute sync.Mutex // held during a step
	graph   *graph     // guarded by compute

	clock func() time.Time

	mu      sync.Mutex
	queue   []*sequence             // guarded by mu; without a store
	active  int                     // guarded by mu; sequences in the batch
	groups  map[mesh.Address]*group // guarded by mu; those of all sequences
	arrived int                     // guarded by mu; sequences so far
	pages   inference.Load          // guarded by mu; of it what the memory says
	closed  bool                    // guarded by mu

	wake chan struct{} // holds one element when the scheduler has something to look at
	done chan struct{} // closed when the scheduler has ended

	settled *time.Timer // see settleDelay

	lendWait time.Duration // see there
	// Until then who waits for memory holds up nobody: those who waited behind one that
	// gave up come first. Guarded by mu.
	noDebt time.Time

	passing chan struct{} // holds one element while a sequence is scored
	memory  *memory       // the scheduler's
	freed   chan struct{} // holds one element when a sequence has left the batch
}

var _ inference.Engine = (*Engine)(nil)

// Open packs the matrices of the file and starts the engine.
func Open(cfg Config) (*Engine, error) {
	e, s, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("open engine: %w", err)
	}
	go s.run()
	e.packed.tend(packedDelay, func(mend func()) {
		e.compute.Lock()
		defer e.compute.Unlock()
		mend()
	})
	return e, nil
}

// open returns the engine and its scheduler, which does not run yet.
func open(cfg Config) (*Engine, *scheduler, error) {
	c := cfg.File.Config
	switch {
	case cfg.Threads < 0 || cfg.Slots < 0 || cfg.Context < 0 || cfg.Memory < 0 || cfg.Chunk < 0:
		return nil, nil, errors.New("a negative setting")
	case cfg.Context > c.Context:
		return nil, nil, fmt.Errorf("context of %d tokens: the model was made for %d", cfg.Context, c.Context)
	}
	if cfg.Threads == 0 {
		cfg.Threads = runtime.GOMAXPROCS(0)
	}
	cfg.Name, cfg.KV = cmp.Or(cfg.Name, c.Name), cmp.Or(cfg.KV, "f16")
	e := &Engine{
		slots: defaultIf(cfg.Slots, defaultSlots), chunk: cfg.Chunk,
		clock: time.Now, lendWait: lendWait, groups: make(map[mesh.Address]*group),
		wake: make(chan struct{}, 1), done: make(chan struct{}), passing: make(chan struct{}, 1), freed: make(chan struct{}, 1),
	}
	var err error
	if e.format, err = cacheFormat(cfg.KV); err != nil {
		return nil, nil, err
	}
	// What prompts need is made beside the weights.
	var beside errgroup.Group
	beside.Go(func() (err error) {
		e.encoder, err = NewEncoder(cfg.File, cfg.Name)
		return err
	})
	beside.Go(func() error { contract(); return nil })
	defer func() { _ = beside.Wait() }() // the caller may close the file
	memory, err := newMemory(c, e.format, defaultIf(cfg.Memory, defaultMemory))
	if err != nil {
		return nil, nil, err
	}
	// One request alone must fit the memory.
	e.context = min(defaultIf(cfg.Context, c.Context), memory.limit*pagePositions)
	e.packed = openPacked(&cfg)
	if e.net, err = load(cfg.File, cfg.Threads, cfg.DequantizeToF32, e.packed); err != nil {
		e.packed.close()
		return nil, nil, err
	}
	if err := beside.Wait(); err != nil {
		e.packed.close()
		return nil, nil, err
	}
	e.tokenizer = e.encoder.tokenizer
	for _, data := range cfg.File.Mapped() { // hardly any of it is read again
		dropPages(data)
	}
	e.info = inference.ModelInfo{
		ID: cfg.ID, Name: cfg.Name, Context: e.context, ModelContext: c.Context, Vocab: c.Vocab, Slots: e.slots, Bytes: cfg.File.Size(), Embed: c.Width,
		Fingerprint: &inferencepb.Fingerprint{
			Engine: "native", EngineVersion: mesh.Version, Contract: contract(), Weights: e.net.formats, Kv: cfg.KV,
		},
	}
	e.pool = kernel.NewPool(cfg.Threads)
	e.graph, e.memory = newGraph(e.net, e.pool), memory
	e.settled = time.AfterFunc(settleDelay, debug.FreeOSMemory)
	return e, newScheduler(e, e.graph, memory), nil
}

// contract returns what this machine may claim: nothing, if its arithmetic does not
// give the golden vectors. Its answers are then of the tolerance class.
var contract = sync.OnceValue(func() string {
	if kernel.SelfTestActive() != nil {
		return ""
	}
	return kernel.Contract
})

func cacheFormat(name string) (kernel.Format, error) {
	switch name {
	case "f16":
		return kernel.F16, nil
	case "f32":
		return kernel.F32, nil
	}
	return 0, fmt.Errorf("keys and values as %.20q: want f16 or f32", name)
}

func defaultIf[T int | int64](v, otherwise T) T {
	if v == 0 {
		return otherwise
	}
	return v
}

// Info describes the model. Context is what the memory holds, if that is less than
// the model's.
func (e *Engine) Info() inference.ModelInfo { return e.info }

// Text returns a detokenizer for one answer.
func (e *Engine) Text() inference.Detokenizer { return e.tokenizer.NewDetokenizer() }

// TokenBytes returns the bytes that a token stands for.
func (e *Engine) TokenBytes(id int32) []byte { return e.tokenizer.Piece(id) }

// Load reports how busy the engine is.
func (e *Engine) Load() inference.Load {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.pages
	l.Active, l.Queued = e.active, len(e.queue)
	return l
}

// Encode returns the prompt of a question as token ids.
func (e *Engine) Encode(q *inferencepb.Question) ([]int32, error) { return e.encoder.Encode(q) }

// Close ends the running answers with finish reason aborted and frees the engine.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	e.stir()
	e.mu.Unlock()
	<-e.done
	e.compute.Lock()
	defer e.compute.Unlock()
	e.settled.Stop()
	e.pool.Close()
	e.packed.close()
	return nil
}
