package merkle

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/gonka-mesh/mesh"
)

// ChunkSize is the size of a chunk of a blob in bytes; the last may be shorter.
const ChunkSize = 4 << 20

// Chunks returns how many chunks a blob of size bytes has; an empty blob has none.
func Chunks(size uint64, chunkSize uint32) uint64 {
	if size == 0 || chunkSize == 0 {
		return 0
	}
	return (size-1)/uint64(chunkSize) + 1
}

// ChunkRoot names a blob by the SHA-256 digests of its chunks, in order:
// SHA-256("mesh/chunks/1" ‖ 0x00 ‖ size u64 ‖ chunk size u32 ‖ digests), integers
// little-endian. The caller checks that there are Chunks(size, chunkSize) digests.
func ChunkRoot(size uint64, chunkSize uint32, digests []mesh.Hash) mesh.Hash {
	h := sha256.New()
	h.Write([]byte("mesh/chunks/1\x00"))
	var head [12]byte
	binary.LittleEndian.PutUint64(head[:], size)
	binary.LittleEndian.PutUint32(head[8:], chunkSize)
	h.Write(head[:])
	for i := range digests {
		h.Write(digests[i][:])
	}
	var root mesh.Hash
	h.Sum(root[:0])
	return root
}
