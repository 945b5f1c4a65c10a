package main

import (
	"bytes"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/gonka-mesh/mesh/inference/kernel"
	"github.com/gonka-mesh/mesh/inference/model"
)

// roofBytes is read by each measurement of the roof: more than any cache holds.
const roofBytes = 512 << 20

// roof measures what the memory of this machine gives: nothing that reads its weights
// from there can be faster. The kernels ask for large pages and for data ahead of its
// use, which an ordinary loop does not, so both are tried and the better counts.
type roof struct {
	plain  []byte         // touched: pages that were never written cost no reading
	matrix *kernel.Matrix // float32, packed: as many bytes
}

func newRoof() (*roof, error) {
	const cols = 1024
	// The float32s of these bytes are finite.
	r := &roof{plain: bytes.Repeat([]byte{1}, roofBytes)}
	var err error
	if r.matrix, err = kernel.NewMatrix(kernel.F32, roofBytes/4/cols, cols, r.plain); err != nil {
		return nil, fmt.Errorf("measure the memory: %w", err)
	}
	r.matrix.Pack()
	return r, nil
}

// close gives the memory back, so that it is not missing elsewhere.
func (r *roof) close() {
	r.plain, r.matrix = nil, nil
	debug.FreeOSMemory()
}

// measure returns the best of a few passes with this many threads, in bytes a second.
func (r *roof) measure(threads int) (float64, error) {
	pool := kernel.NewPool(threads)
	defer pool.Close()
	x, out := make([]float32, r.matrix.Cols()), make([]float32, r.matrix.Rows())
	var input kernel.Activations
	input.Set(x, 1, len(x))
	best := time.Duration(1<<63 - 1)
	for range 3 {
		start := time.Now()
		if err := pool.MatMul(out, r.matrix, &input); err != nil {
			return 0, fmt.Errorf("measure the memory: %w", err)
		}
		best = min(best, time.Since(start), r.search(threads))
	}
	return roofBytes / best.Seconds(), nil
}

// search looks for a byte that is not there, which the Go runtime does with the
// processor's vectors and without our kernels.
func (r *roof) search(threads int) time.Duration {
	var wg sync.WaitGroup
	start := time.Now()
	for i := range threads {
		part := r.plain[len(r.plain)/threads*i:][:len(r.plain)/threads]
		wg.Go(func() {
			if bytes.IndexByte(part, 0) >= 0 {
				panic("bench: the memory changed")
			}
		})
	}
	wg.Wait()
	return time.Since(start)
}

// tokenBytes is how much of the weights one token reads: every matrix once, of the
// embedding one row only, and of the experts those that are used.
func tokenBytes(f *model.File) int64 {
	total := int64(0)
	for _, t := range f.Tensors {
		n := int64(t.Format.RowBytes(t.In()) * t.Rows())
		switch {
		case len(t.Shape) < 2, t.Name == "token_embd.weight" && !f.Config.Tied:
		case t.Experts() > 1:
			total += n / int64(t.Experts()) * int64(f.Config.ExpertsUsed)
		default:
			total += n
		}
	}
	return total
}
