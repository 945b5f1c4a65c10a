package state

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/state/proof"
)

// staged is a block's state before it is committed.
type staged struct {
	batch  *pebble.Batch
	head   head
	writes map[string][]byte // for the cache
}

// Stage works out the state after a block and returns its app hash; Commit makes it
// the committed one. Heights follow each other; the first may be any, and height 0,
// the genesis, may be staged and committed again until there is a block. A height may
// be staged again, with other changes, until it is committed.
//
// Changes are as package ledger orders them. Keys have up to proof.MaxKey bytes and
// values up to proof.MaxValue; a proven value is not empty, as ICS-23 wants.
func (s *Store) Stage(height mesh.Height, changes []ledger.Change) (mesh.Hash, error) {
	if !s.calls.enter() {
		return mesh.Hash{}, ErrClosed
	}
	defer s.calls.leave()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.log.err(); err != nil {
		return mesh.Hash{}, fmt.Errorf("stage height %d: %w", height, err)
	}
	if s.restore != nil {
		return mesh.Hash{}, fmt.Errorf("stage height %d: a snapshot is being restored", height)
	}
	if s.head.committed && height != s.head.height+1 && (height != 0 || s.head.height != 0) {
		return mesh.Hash{}, fmt.Errorf("stage height %d on top of height %d", height, s.head.height)
	}
	var next *staged
	err := s.log.guard(func() (err error) {
		if err = s.dropStaged(); err == nil {
			next, err = s.stage(height, changes)
		}
		return err
	})
	if err != nil {
		return mesh.Hash{}, fmt.Errorf("stage height %d: %w", height, err)
	}
	s.staged = next
	return next.head.appHash(), nil
}

func (s *Store) dropStaged() error {
	if s.staged == nil {
		return nil
	}
	old := s.staged
	s.staged = nil
	return old.batch.Close()
}

func (s *Store) stage(height mesh.Height, changes []ledger.Change) (_ *staged, err error) {
	_, sum, err := s.log.readHead(s.db)
	if err != nil {
		return nil, err
	}
	batch := s.db.NewBatch()
	defer func() {
		if err != nil {
			err = errors.Join(err, batch.Close())
		}
	}()
	next := head{committed: true, height: height, oldest: s.head.oldest}
	past := &undo{batch: batch, height: height, on: s.head.committed}
	if !s.head.committed {
		next.oldest = height
	}
	if err := past.note(nil, s.head.flat[:]); err != nil {
		return nil, err
	}
	u := &update{batch: batch, sum: sum, undo: past, read: s.read, fresh: make(map[string][]byte, 2*len(changes))}
	if err := u.changes(changes); err != nil {
		return nil, err
	}
	if next.root, err = u.tree(); err != nil {
		return nil, err
	}
	next.flat = sum.hash()
	if next.oldest, err = forget(batch, height, next.oldest, s.cfg.Keep); err != nil {
		return nil, err
	}
	return &staged{batch: batch, head: next, writes: u.fresh}, batch.Set(keyHead, next.encode(sum), nil)
}

// update collects in a batch what a list of changes does to the database.
type update struct {
	batch  *pebble.Batch
	sum    *lattice
	undo   *undo
	read   func(key []byte) ([]byte, error) // of the state before
	writes []write                          // for the tree
	fresh  map[string][]byte                // all of the new values, for the cache
}

// set writes a key of the database, or deletes it.
func (u *update) set(key, value []byte) error {
	if u.fresh != nil {
		u.fresh[string(key)] = value
	}
	if value == nil {
		return u.batch.Delete(key, nil)
	}
	return u.batch.Set(key, value, nil)
}

// changes writes the flat entries and the lattice, and notes what the tree must learn.
func (u *update) changes(changes []ledger.Change) error {
	for i, c := range changes {
		if len(c.Key) == 0 || len(c.Key) > proof.MaxKey || len(c.Value) > proof.MaxValue {
			return fmt.Errorf("change %d has a key of %d bytes and a value of %d", i, len(c.Key), len(c.Value))
		}
		if i > 0 && bytes.Compare(changes[i-1].Key, c.Key) >= 0 {
			return fmt.Errorf("changes are not sorted at %d", i)
		}
		if err := u.change(c); err != nil {
			return err
		}
	}
	return nil
}

func (u *update) change(c ledger.Change) error {
	at := flatKey(c.Key)
	old, err := u.read(at)
	if err != nil {
		return err
	}
	if (old == nil) == (c.Value == nil) && bytes.Equal(old, c.Value) {
		return nil
	}
	switch {
	case !ledger.Proven(c.Key):
		if old != nil {
			u.sum.remove(c.Key, old)
		}
		if c.Value != nil {
			u.sum.add(c.Key, c.Value)
		}
	case c.Value != nil && len(c.Value) == 0:
		return fmt.Errorf("proven key %x has an empty value", c.Key)
	default:
		w := write{path: proof.Path(c.Key), key: c.Key, remove: c.Value == nil}
		if !w.remove {
			w.leaf = proof.Leaf(w.path, c.Value)
		}
		u.writes = append(u.writes, w)
		if err := u.undo.note(at, old); err != nil {
			return err
		}
	}
	if c.Value == nil {
		return u.set(at, nil)
	}
	return u.set(at, append(make([]byte, 0, len(c.Value)), c.Value...))
}

// tree brings the tree up to date and returns its root.
func (u *update) tree() (mesh.Hash, error) {
	t := treeUpdate{load: u.read, path: proof.Path, save: func(key, value []byte, was, now *page) error {
		if err := u.undo.notePage(key, was, now, value == nil); err != nil {
			return err
		}
		return u.set(key, value)
	}}
	return t.apply(u.writes)
}

// Commit makes what was staged last durable, with one fsync, and the committed state.
func (s *Store) Commit() error {
	if !s.calls.enter() {
		return ErrClosed
	}
	defer s.calls.leave()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.staged == nil {
		return errors.New("commit the ledger's state: nothing is staged")
	}
	next := s.staged.head
	if err := s.log.err(); err != nil {
		return fmt.Errorf("commit height %d: %w", next.height, err)
	}
	err := s.cache.change(s.staged.writes, func() error {
		return s.log.guard(func() error { return s.log.io("write", s.staged.batch.Commit(pebble.Sync)) })
	})
	if err != nil {
		return fmt.Errorf("commit height %d: %w", next.height, err)
	}
	s.head = next
	if err := s.dropStaged(); err != nil {
		return fmt.Errorf("commit height %d: %w", next.height, err)
	}
	s.snapshotWhenDue()
	return nil
}
