package native

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/kernel"
	"github.com/gonka-mesh/mesh/internal/atomicfile"
)

// packedHeader is what a file of packed weights says of itself, as JSON behind
// packedMagic, its length (u32, little-endian) and its SHA-256. Weights begin at the
// next multiple of packedStart.
//
// What is trusted, and why: the file is this node's own, written whole before it got
// its name, and used only while inode and modification time are those that it says of
// itself, as hashes of model files are remembered by size, time and inode. So a file
// that was copied, edited or cut is packed anew. Bits that the disk changed by itself
// are found by the checksums, which are read after the start, beside serving: reading
// all weights before the first token would cost as long as computing it. A model file
// whose hash is remembered has the same gap, and there nothing is read again.
type packedHeader struct {
	Version  int            `json:"version"`
	Layout   int            `json:"layout"` // kernel.PackedLayout
	Model    mesh.ModelID   `json:"model"`
	Inode    uint64         `json:"inode"`
	Time     int64          `json:"mtime_ns"`
	Matrices []packedMatrix `json:"matrices"`
}

// packedMatrix is a matrix in the file; Name is that of its first tensor.
type packedMatrix struct {
	Name   string `json:"name"`
	Format string `json:"format"`
	Rows   int    `json:"rows"`
	Cols   int    `json:"cols"`
	Offset int64  `json:"offset"` // from the first weights
	Bytes  int64  `json:"bytes"`
	CRC    uint32 `json:"crc32c"`
}

const (
	packedMagic   = "meshpack"
	packedVersion = 1
	packedPrefix  = len(packedMagic) + 4 + sha256.Size
	packedStart   = 2 << 20 // a huge page
	packedSpare   = 1 << 30 // bytes of the disk that stay free
	packedPiece   = 1 << 20 // bytes written or checked at once
	maxPackedHead = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// packedFile is the file of packed weights of an engine: mapped when it was there,
// to be written when it was not.
type packedFile struct {
	path  string
	model mesh.ModelID
	limit int64 // bytes; 0: none
	log   *slog.Logger

	data    []byte // the mapping; nil: none
	weights []byte // of data
	found   map[string]packedMatrix

	mu      sync.Mutex
	loaded  []packedWeights // guarded by mu while matrices are loaded
	missing bool            // guarded by mu; one was not in the file

	work sync.WaitGroup
	stop context.CancelFunc
}

// packedWeights is a matrix that the engine uses.
type packedWeights struct {
	name   string
	matrix *kernel.Matrix
	mapped bool
	again  func() (*kernel.Matrix, error) // packs it from the model file
}

// openPacked maps the file of packed weights of a model, if there is one that fits.
// Without a path or a model nothing is kept, and it returns nil.
func openPacked(cfg *Config) *packedFile {
	if cfg.Packed == "" || cfg.ID.IsZero() || cfg.DequantizeToF32 || !canMap {
		return nil
	}
	p := &packedFile{path: cfg.Packed, model: cfg.ID, limit: cfg.PackedLimit, log: cfg.Log}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	err := p.open()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		p.log.Info("packed weights are made anew", "file", p.path, "why", err)
	}
	return p
}

func (p *packedFile) open() error {
	data, own, err := mapPacked(p.path)
	if err != nil {
		return err
	}
	h, weights, err := parsePacked(data)
	switch {
	case err != nil:
	case h.Layout != kernel.PackedLayout:
		err = fmt.Errorf("layout %d: want %d", h.Layout, kernel.PackedLayout)
	case h.Model != p.model:
		err = fmt.Errorf("they are of model %s", h.Model)
	case h.Inode != own.inode || h.Time != own.time:
		err = errors.New("the file was copied or changed")
	}
	if err != nil {
		unmapPacked(data)
		return err
	}
	p.data, p.weights, p.found = data, weights, make(map[string]packedMatrix, len(h.Matrices))
	for _, m := range h.Matrices {
		p.found[m.Name] = m
	}
	p.work.Go(func() { populate(p.data) })
	return nil
}

// parsePacked reads the header and checks that the file has all that it says.
func parsePacked(data []byte) (*packedHeader, []byte, error) {
	if len(data) < packedPrefix || string(data[:len(packedMagic)]) != packedMagic {
		return nil, nil, errors.New("not a file of packed weights")
	}
	n := uint64(binary.LittleEndian.Uint32(data[len(packedMagic):]))
	if n > maxPackedHead || n > uint64(len(data)-packedPrefix) {
		return nil, nil, fmt.Errorf("a header of %d bytes does not fit", n)
	}
	head := data[packedPrefix : packedPrefix+int(n)]
	if sum := sha256.Sum256(head); !bytes.Equal(sum[:], data[packedPrefix-sha256.Size:packedPrefix]) {
		return nil, nil, errors.New("the header is damaged")
	}
	var h packedHeader
	if err := json.Unmarshal(head, &h); err != nil {
		return nil, nil, fmt.Errorf("header: %w", err)
	}
	if h.Version != packedVersion {
		return nil, nil, fmt.Errorf("version %d: want %d", h.Version, packedVersion)
	}
	weights := data[min(packedFrom(int(n)), len(data)):]
	end := int64(0)
	for _, m := range h.Matrices {
		if m.Bytes <= 0 || m.Offset < end || m.Offset%kernel.PackedAlign != 0 || m.Bytes > int64(len(weights)) || m.Offset > int64(len(weights))-m.Bytes {
			return nil, nil, fmt.Errorf("matrix %.80q lies outside the file", m.Name)
		}
		end = m.Offset + m.Bytes
	}
	if end != int64(len(weights)) {
		return nil, nil, errors.New("the file has another length than it says")
	}
	return &h, weights, nil
}

// packedFrom is where weights begin behind a header.
func packedFrom(head int) int {
	return (packedPrefix + head + packedStart - 1) / packedStart * packedStart
}

// matrix returns a matrix of the file, or what pack makes. Both are the same bits.
func (p *packedFile) matrix(name string, format kernel.Format, rows, cols int, pack func() (*kernel.Matrix, error)) (*kernel.Matrix, error) {
	if p == nil {
		return pack()
	}
	m := p.mapped(name, format, rows, cols)
	w := packedWeights{name: name, matrix: m, mapped: m != nil, again: pack}
	if m == nil {
		var err error
		if w.matrix, err = pack(); err != nil {
			return nil, err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.loaded = append(p.loaded, w)
	p.missing = p.missing || !w.mapped
	return w.matrix, nil
}

// mapped returns a matrix of the file; nil: it has none like this.
func (p *packedFile) mapped(name string, format kernel.Format, rows, cols int) *kernel.Matrix {
	f, ok := p.found[name]
	if !ok || f.Format != format.String() || f.Rows != rows || f.Cols != cols {
		return nil
	}
	m, err := kernel.NewPacked(format, rows, cols, p.weights[f.Offset:f.Offset+f.Bytes:f.Offset+f.Bytes])
	if err != nil {
		return nil
	}
	return m
}

// tend does what has time until the engine has started: it writes the file, or checks
// the one that is mapped. mend runs while no step is computed.
func (p *packedFile) tend(after time.Duration, mend func(func())) {
	if p == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	p.work.Go(func() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(after):
		}
		if p.data != nil {
			p.check(ctx, mend)
		}
		if !p.missing { // all matrices are loaded: nothing writes it now
			return
		}
		start := time.Now()
		switch size, err := p.write(ctx); {
		case ctx.Err() != nil:
		case err != nil:
			p.log.Warn("packed weights are not kept", "file", p.path, "err", err)
		default:
			p.log.Info("packed weights kept for the next start", "file", p.path, "bytes", size, "took", time.Since(start).Round(time.Millisecond))
		}
	})
}

// check reads all mapped weights, slowly. A matrix that has changed is packed again,
// and the file goes.
func (p *packedFile) check(ctx context.Context, mend func(func())) {
	for _, w := range p.loaded {
		if !w.mapped {
			continue
		}
		crc, b := uint32(0), w.matrix.PackedBytes()
		for piece := range slices.Chunk(b, packedPiece) {
			crc = crc32.Update(crc, castagnoli, piece)
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Millisecond):
			}
		}
		if crc == p.found[w.name].CRC {
			continue
		}
		fresh, err := w.again()
		if err != nil {
			p.log.Error("packed weights are damaged, and so is the model file", "file", p.path, "matrix", w.name, "err", err)
			continue
		}
		mend(func() { *w.matrix = *fresh })
		p.log.Error("packed weights were damaged; answers since the start may be wrong", "file", p.path, "matrix", w.name)
		p.missing = true // the good ones make a new file
	}
}

// write makes the file, unless it is too large for limit or disk, and returns its size.
func (p *packedFile) write(ctx context.Context) (int64, error) {
	h := packedHeader{Version: packedVersion, Layout: kernel.PackedLayout, Model: p.model}
	end := int64(0)
	for _, w := range p.loaded {
		b := w.matrix.PackedBytes()
		offset := (end + kernel.PackedAlign - 1) / kernel.PackedAlign * kernel.PackedAlign
		h.Matrices = append(h.Matrices, packedMatrix{
			w.name, w.matrix.Format().String(), w.matrix.Rows(), w.matrix.Cols(), offset, int64(len(b)), crc32.Checksum(b, castagnoli),
		})
		end = offset + int64(len(b))
	}
	size := end + packedStart
	dir := filepath.Dir(p.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	if p.limit > 0 && size > p.limit {
		return 0, fmt.Errorf("%d MiB are more than the %d MiB allowed", size>>20, p.limit>>20)
	}
	if free, err := diskFree(dir); err != nil || free < uint64(size)+packedSpare {
		return 0, errors.Join(fmt.Errorf("%d MiB would leave less than %d MiB of the disk", size>>20, packedSpare>>20), err)
	}
	return size, atomicfile.WriteFunc(p.path, 0o600, func(f *os.File) error { return p.writeTo(ctx, f, &h) })
}

// writeTo fills a new file, whose inode and time become part of its header.
func (p *packedFile) writeTo(ctx context.Context, f *os.File, h *packedHeader) error {
	own, err := identify(f)
	if err != nil {
		return err
	}
	// An even second is a time that every disk can keep, and one that has passed is no
	// time that a later change could get.
	stamp := time.Now().Truncate(2 * time.Second).Add(-2 * time.Second)
	h.Inode, h.Time = own.inode, stamp.UnixNano()
	head, err := json.Marshal(h)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(head)
	prefix := binary.LittleEndian.AppendUint32([]byte(packedMagic), uint32(len(head)))
	prefix = append(append(prefix, sum[:]...), head...)
	prefix = append(prefix, make([]byte, packedFrom(len(head))-len(prefix))...)
	if _, err := f.Write(prefix); err != nil {
		return err
	}
	end := int64(0)
	for i, w := range p.loaded {
		if _, err := f.Write(make([]byte, h.Matrices[i].Offset-end)); err != nil {
			return err
		}
		for piece := range slices.Chunk(w.matrix.PackedBytes(), packedPiece) {
			if _, err := f.Write(piece); err != nil {
				return err
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		end = h.Matrices[i].Offset + h.Matrices[i].Bytes
	}
	return os.Chtimes(f.Name(), stamp, stamp)
}

// close ends what runs and unmaps the file: no matrix of it may be used any more.
func (p *packedFile) close() {
	if p == nil {
		return
	}
	if p.stop != nil {
		p.stop()
	}
	p.work.Wait()
	if p.data != nil {
		unmapPacked(p.data)
		p.data = nil
	}
}
