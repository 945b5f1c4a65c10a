package light

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/internal/atomicfile"
)

// store keeps a few verified blocks in memory and the newest in a file.
type store struct {
	file  string
	chain string

	mu     sync.Mutex
	blocks []*types.LightBlock // ascending by height; guarded by mu
	kept   int64               // height in the file; guarded by mu
	from   mesh.Hash           // the checkpoint that they were verified from, zero for the genesis or an unknown one; guarded by mu
}

const (
	// keptBlocks bounds what is in memory: a block of 150 validators has some 100 KB there.
	keptBlocks = 16
	// maxFile bounds the file; a block of 150 validators has about 30 KB.
	maxFile = 1 << 20
)

// openStore reads the file. One that is damaged or of another network is left behind:
// the root is verified again.
func openStore(file, chain string) (*store, error) {
	s := &store{file: file, chain: chain}
	if file == "" {
		return s, nil
	}
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s, nil
	case err != nil:
		return nil, fmt.Errorf("open the verified header: %w", err)
	case info.Size() > maxFile:
		return s, nil
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("open the verified header: %w", err)
	}
	if b, from := decodeKept(raw, chain); b != nil {
		s.blocks, s.kept, s.from = []*types.LightBlock{b}, b.Height, from
	}
	return s, nil
}

// encodeKept makes the file's bytes: the hash of the checkpoint, and the block.
func encodeKept(b *types.LightBlock, from mesh.Hash) ([]byte, error) {
	raw, err := EncodeBlock(b)
	return append(from[:], raw...), err
}

// decodeKept reads the file's bytes; nil when they are damaged or of another network.
func decodeKept(raw []byte, chain string) (*types.LightBlock, mesh.Hash) {
	var from mesh.Hash
	return decodeBlockOf(raw[copy(from[:], raw):], chain), from
}

func decodeBlockOf(raw []byte, chain string) *types.LightBlock {
	b, err := DecodeBlock(raw)
	if err != nil || b.ValidateBasic(chain) != nil || b.ValidatorSet.VerifyCommitLight(chain, b.Commit.BlockID, b.Height, b.Commit) != nil {
		return nil
	}
	return b
}

// keep writes the newest block to the file.
func (s *store) keep() error {
	b := s.newest()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == "" || b == nil || b.Height == s.kept {
		return nil
	}
	raw, err := encodeKept(b, s.from)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(s.file, raw, 0o600); err != nil {
		return err
	}
	s.kept = b.Height
	return nil
}

func (s *store) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blocks, s.kept = nil, 0
}

// begin makes the store one of blocks that follow from a checkpoint. Those that follow from
// another one, or from none, go: they may be of another fork.
func (s *store) begin(from mesh.Hash) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.from != from {
		s.blocks, s.kept, s.from = nil, 0, from
	}
}

// find returns where a height is or belongs. mu is held.
func (s *store) find(height int64) (int, bool) {
	return slices.BinarySearchFunc(s.blocks, height, func(b *types.LightBlock, h int64) int {
		return int(min(max(b.Height-h, -1), 1))
	})
}

// save adds verified blocks and forgets the oldest beyond what is kept.
func (s *store) save(blocks ...*types.LightBlock) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range blocks {
		if i, ok := s.find(b.Height); ok {
			s.blocks[i] = b
		} else {
			s.blocks = slices.Insert(s.blocks, i, b)
		}
	}
	if n := len(s.blocks) - keptBlocks; n > 0 {
		s.blocks = slices.Delete(s.blocks, 0, n)
	}
}

// newest returns the last block, nil for none.
func (s *store) newest() *types.LightBlock {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.blocks) == 0 {
		return nil
	}
	return s.blocks[len(s.blocks)-1]
}

// around returns the block of a height, or else the nearest before and after it.
func (s *store) around(height int64) (at, before, after *types.LightBlock) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.find(height)
	if ok {
		return s.blocks[i], nil, nil
	}
	if i > 0 {
		before = s.blocks[i-1]
	}
	if i < len(s.blocks) {
		after = s.blocks[i]
	}
	return nil, before, after
}
