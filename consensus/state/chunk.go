package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/state/proof"
)

// A snapshot is all entries of the state, ascending, in chunks; the tree is made from
// them again. A chunk is the format and then, for each entry, the length and bytes of
// its key and of its value. The metadata is the height and each chunk's SHA-256. So
// every node makes the same snapshot of a height.

const (
	// SnapshotFormat is the one that this version makes and takes.
	SnapshotFormat = 1
	// MaxChunk bounds a chunk, in bytes.
	MaxChunk = 4 << 20
	// MaxChunks bounds a snapshot: 400 GB, of which the metadata has 3.2 MB, which
	// still fits into a message of CometBFT's.
	MaxChunks = 100_000
)

// Snapshot describes one, as CometBFT offers it to those who join.
type Snapshot struct {
	Height   mesh.Height
	Format   uint32
	Chunks   uint32
	Hash     mesh.Hash // of the metadata
	Metadata []byte
}

func newSnapshot(height mesh.Height, chunks []mesh.Hash) Snapshot {
	meta := binary.BigEndian.AppendUint64(nil, uint64(height))
	for _, c := range chunks {
		meta = append(meta, c[:]...)
	}
	return Snapshot{Height: height, Format: SnapshotFormat, Chunks: uint32(len(chunks)), Hash: mesh.HashOf(meta), Metadata: meta}
}

// Check reports why what a peer says of a snapshot does not belong together.
func (s Snapshot) Check() error {
	height, chunks, err := decodeMetadata(s.Metadata)
	switch {
	case err != nil:
		return err
	case s.Format != SnapshotFormat:
		return fmt.Errorf("snapshot format %d is not known", s.Format)
	case s.Hash != mesh.HashOf(s.Metadata):
		return errors.New("snapshot has another hash than its metadata")
	case s.Height != height:
		return fmt.Errorf("snapshot of height %d has the metadata of height %d", s.Height, height)
	case uint64(s.Chunks) != uint64(len(chunks)):
		return fmt.Errorf("snapshot of %d chunks has the metadata of %d", s.Chunks, len(chunks))
	}
	return nil
}

// decodeMetadata is the inverse of newSnapshot.
func decodeMetadata(meta []byte) (mesh.Height, []mesh.Hash, error) {
	n := (len(meta) - 8) / len(mesh.Hash{})
	if len(meta) < 8 || (len(meta)-8)%len(mesh.Hash{}) != 0 || n == 0 || n > MaxChunks {
		return 0, nil, fmt.Errorf("snapshot's metadata has %d bytes", len(meta))
	}
	chunks := make([]mesh.Hash, n)
	for i := range chunks {
		copy(chunks[i][:], meta[8+i*len(chunks[i]):])
	}
	return mesh.Height(binary.BigEndian.Uint64(meta)), chunks, nil
}

// appendEntry adds an entry to a chunk.
func appendEntry(chunk, key, value []byte) []byte {
	chunk = binary.AppendUvarint(chunk, uint64(len(key)))
	chunk = append(chunk, key...)
	chunk = binary.AppendUvarint(chunk, uint64(len(value)))
	return append(chunk, value...)
}

// decodeChunk returns a chunk's entries, which share its bytes. Keys ascend, from
// behind last.
func decodeChunk(chunk, last []byte) ([]ledger.Change, error) {
	if len(chunk) == 0 || len(chunk) > MaxChunk || chunk[0] != SnapshotFormat {
		return nil, fmt.Errorf("chunk of %d bytes is not of format %d", len(chunk), SnapshotFormat)
	}
	var out []ledger.Change
	for rest := chunk[1:]; len(rest) > 0; {
		key, after, err := field(rest, proof.MaxKey)
		if err != nil {
			return nil, err
		}
		value, after, err := field(after, proof.MaxValue)
		if err != nil {
			return nil, err
		}
		if bytes.Compare(key, last) <= 0 {
			return nil, errors.New("chunk is not sorted by key")
		}
		out = append(out, ledger.Change{Key: key, Value: value})
		last, rest = key, after
	}
	return out, nil
}

// field reads a length and as many bytes; they are never nil.
func field(b []byte, most int) (value, rest []byte, err error) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(most) || n > uint64(len(b)-size) {
		return nil, nil, errors.New("chunk has an entry of no possible size")
	}
	if size > 1 && b[size-1] == 0 {
		return nil, nil, errors.New("chunk has a length that is not encoded as it should be")
	}
	end := size + int(n)
	return b[size:end:end], b[end:], nil
}
