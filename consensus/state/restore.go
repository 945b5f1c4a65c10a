package state

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/gonka-mesh/mesh"
)

// ErrChunk marks a chunk whose hash is not the one in the metadata: another peer may
// have the right one. Any other error of Restore.Apply is one of the snapshot or the
// disk.
var ErrChunk = errors.New("chunk has another hash")

// Restore takes a snapshot into a store that has no block. What it writes counts only
// when the last chunk is in and the app hash is the trusted one; a restore that was
// interrupted is wiped at the next Open.
type Restore struct {
	store  *Store
	height mesh.Height
	chunks []mesh.Hash
	want   mesh.Hash
	next   int
	last   []byte // key
	sum    lattice
	root   mesh.Hash
	ended  bool
}

// Restore begins to take a snapshot in, whose app hash at that height is known from a
// header that is trusted. One that was begun before is dropped.
func (s *Store) Restore(height mesh.Height, metadata []byte, appHash mesh.Hash) (*Restore, error) {
	if !s.calls.enter() {
		return nil, ErrClosed
	}
	defer s.calls.leave()
	s.mu.Lock()
	defer s.mu.Unlock()
	in, chunks, err := decodeMetadata(metadata)
	switch {
	case err != nil:
		return nil, fmt.Errorf("restore height %d: %w", height, err)
	case in != height:
		return nil, fmt.Errorf("restore height %d: the snapshot is of height %d", height, in)
	case s.head.height > 0:
		return nil, fmt.Errorf("restore height %d: there is a state of height %d", height, s.head.height)
	}
	if s.restore != nil {
		s.restore.ended = true
	}
	s.restore = nil
	err = errors.Join(s.dropStaged(), s.wipe(func(b *pebble.Batch) error { return b.Set(keyRestore, nil, nil) }))
	if err != nil {
		return nil, fmt.Errorf("restore height %d: %w", height, err)
	}
	s.restore = &Restore{store: s, height: height, chunks: chunks, want: appHash}
	return s.restore, nil
}

// Reset empties the state, as if there had been no block: for what a snapshot left that
// whoever keeps the blocks never took over. One that is being taken in is dropped.
func (s *Store) Reset() error {
	if !s.calls.enter() {
		return ErrClosed
	}
	defer s.calls.leave()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.restore != nil {
		s.restore.ended, s.restore = true, nil
	}
	if err := errors.Join(s.dropStaged(), s.wipe(func(*pebble.Batch) error { return nil })); err != nil {
		return fmt.Errorf("empty the ledger's state: %w", err)
	}
	return nil
}

// wipe empties the state, and adds what more is to be written.
func (s *Store) wipe(more func(b *pebble.Batch) error) error {
	err := s.cache.change(nil, func() error {
		return s.write(func(b *pebble.Batch) error {
			if err := wipe(b); err != nil {
				return err
			}
			return more(b)
		})
	})
	if err != nil {
		return err
	}
	s.cache.clear()
	s.head, _, err = s.log.readHead(s.db)
	return err
}

// wipe deletes the state. CometBFT's part stays.
func wipe(b *pebble.Batch) error {
	for _, table := range []byte{tableFlat, tableTree, tableUndo} {
		if err := b.DeleteRange([]byte{table}, []byte{table + 1}, nil); err != nil {
			return err
		}
	}
	return errors.Join(b.Delete(keyHead, nil), b.Delete(keyRestore, nil))
}

// Apply takes the next chunk, from 0 on, and reports whether it was the last one and
// the state is now committed. After ErrChunk the same chunk may come again.
func (r *Restore) Apply(index uint32, chunk []byte) (done bool, err error) {
	s := r.store
	if !s.calls.enter() {
		return false, ErrClosed
	}
	defer s.calls.leave()
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.ended {
		return false, fmt.Errorf("restore height %d: it has ended", r.height)
	}
	if int(index) != r.next {
		return false, fmt.Errorf("restore height %d: chunk %d came, %d is next", r.height, index, r.next)
	}
	if mesh.HashOf(chunk) != r.chunks[index] {
		return false, fmt.Errorf("restore height %d: chunk %d: %w", r.height, index, ErrChunk)
	}
	err = s.log.guard(func() error { return r.apply(chunk) })
	if err == nil && r.next == len(r.chunks) {
		err = s.log.guard(r.finish)
		done = err == nil
	}
	if err != nil {
		err = fmt.Errorf("restore height %d: chunk %d: %w", r.height, index, err)
		return false, errors.Join(err, r.end())
	}
	return done, nil
}

func (r *Restore) apply(chunk []byte) error {
	s := r.store
	changes, err := decodeChunk(chunk, r.last)
	if err != nil {
		return err
	}
	batch := s.db.NewBatch()
	u := &update{batch: batch, sum: &r.sum, undo: &undo{}, read: func(key []byte) ([]byte, error) {
		if key[0] == tableFlat {
			return nil, nil // keys ascend: it is new
		}
		return s.log.get(s.db, key)
	}}
	if err = u.changes(changes); err == nil {
		r.root, err = u.tree()
	}
	if err == nil {
		// The fsync is that of the end: until then a crash wipes it all.
		err = s.log.io("write", batch.Commit(pebble.NoSync))
	}
	if err = errors.Join(err, batch.Close()); err != nil {
		return err
	}
	if len(changes) > 0 {
		r.last = bytes.Clone(changes[len(changes)-1].Key)
	}
	r.next++
	return nil
}

// finish commits the state if it is the right one.
func (r *Restore) finish() error {
	h := head{committed: true, height: r.height, oldest: r.height, root: r.root, flat: r.sum.hash()}
	if got := h.appHash(); got != r.want {
		return fmt.Errorf("the snapshot has app hash %s, the ledger has %s", got.Short(), r.want.Short())
	}
	s := r.store
	err := s.write(func(b *pebble.Batch) error {
		return errors.Join(b.Delete(keyRestore, nil), b.Set(keyHead, h.encode(&r.sum), nil))
	})
	if err != nil {
		return err
	}
	s.cache.clear()
	s.head, s.restore, r.ended = h, nil, true
	return nil
}

// Abort drops what was taken in; after the end it does nothing.
func (r *Restore) Abort() error {
	s := r.store
	if !s.calls.enter() {
		return ErrClosed
	}
	defer s.calls.leave()
	s.mu.Lock()
	defer s.mu.Unlock()
	return r.end()
}

func (r *Restore) end() error {
	if r.ended {
		return nil
	}
	r.ended, r.store.restore = true, nil
	return r.store.wipe(func(*pebble.Batch) error { return nil })
}
