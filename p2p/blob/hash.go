package blob

import (
	"context"
	"crypto/sha256"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/internal/merkle"
)

// bufferSize is how much of a file is in memory per reader. It stays in cache
// between the read and the hash or the encryption that follows.
const bufferSize = 256 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// hashChunks hashes the first size bytes of r in chunks, on all processors, and
// calls progress, when not nil, with the bytes done so far, one call at a time.
func hashChunks(ctx context.Context, r io.ReaderAt, size uint64, chunkSize uint32, progress func(done uint64)) ([]mesh.Hash, error) {
	chunks := make([]mesh.Hash, merkle.Chunks(size, chunkSize))
	var (
		next atomic.Int64
		mu   sync.Mutex
		done uint64 // guarded by mu
	)
	g, ctx := errgroup.WithContext(ctx)
	for range min(runtime.GOMAXPROCS(0), len(chunks)) {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(chunks) {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				n := chunkLen(size, chunkSize, uint64(i))
				var err error
				if chunks[i], err = hashAt(r, int64(i)*int64(chunkSize), n); err != nil {
					return err
				}
				mu.Lock()
				done += uint64(n)
				if progress != nil {
					progress(done)
				}
				mu.Unlock()
			}
		})
	}
	return chunks, g.Wait()
}

// hashAt hashes n bytes of r from off. Fewer bytes than that are an error.
func hashAt(r io.ReaderAt, off int64, n int) (mesh.Hash, error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	h := sha256.New()
	for n > 0 {
		b := (*buf)[:min(n, len(*buf))]
		if _, err := readFullAt(r, b, off); err != nil {
			return mesh.Hash{}, err
		}
		h.Write(b)
		off += int64(len(b))
		n -= len(b)
	}
	var out mesh.Hash
	h.Sum(out[:0])
	return out, nil
}

// readFullAt fills b; a ReaderAt may say io.EOF beside the last full read.
func readFullAt(r io.ReaderAt, b []byte, off int64) (int, error) {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return n, nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
