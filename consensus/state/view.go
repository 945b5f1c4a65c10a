package state

import (
	"bytes"

	"github.com/cockroachdb/pebble/v2"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
)

var _ ledger.Reader = (*View)(nil)

// View is the committed state at one height, for queries and the mempool: blocks that
// are committed meanwhile do not show. It is for one goroutine, and is to be closed soon:
// what it sees stays on disk, and the store closes only after it.
type View struct {
	store *Store
	snap  *pebble.Snapshot
	head  head
	err   error
}

// View returns the committed state as it is now. On a store that failed or is closed
// the view is empty and has an error.
func (s *Store) View() *View {
	v := &View{store: s}
	if !s.calls.enter() {
		v.err = ErrClosed
		return v
	}
	v.err = s.log.guard(func() error {
		v.snap = s.db.NewSnapshot()
		var err error
		v.head, _, err = s.log.readHead(v.snap)
		return err
	})
	if v.snap == nil {
		s.calls.leave() // else with Close
	}
	return v
}

// open reports whether the view may be read: it is not closed, and its store is not
// about to be.
func (v *View) open() bool {
	switch {
	case v.err != nil:
		return false
	case v.snap == nil || !v.store.calls.open():
		v.err = ErrClosed
		return false
	}
	return true
}

// Get implements ledger.Reader.
func (v *View) Get(key []byte) []byte {
	if !v.open() {
		return nil
	}
	return v.store.log.entry(v.snap, key)
}

// Iterate implements ledger.Reader.
func (v *View) Iterate(prefix []byte, fn func(key, value []byte) bool) {
	if !v.open() {
		return
	}
	v.store.log.entries(v.snap, prefix, fn)
}

// IterateAfter is Iterate for the keys after one that has the prefix: pages of a long
// table cost what they have, not what comes before them.
func (v *View) IterateAfter(prefix, last []byte, fn func(key, value []byte) bool) {
	if !bytes.HasPrefix(last, prefix) {
		v.Iterate(prefix, fn)
		return
	}
	if !v.open() {
		return
	}
	v.store.log.entriesFrom(v.snap, prefix, append(bytes.Clone(last), 0), fn)
}

// Height returns the height of the view.
func (v *View) Height() mesh.Height { return v.head.height }

// AppHash returns the app hash of the view.
func (v *View) AppHash() mesh.Hash { return v.head.appHash() }

// Err returns the error of the view, or of the database under it.
func (v *View) Err() error {
	if v.err != nil {
		return v.err
	}
	return v.store.Err()
}

// Close lets go of the view; reads after it find nothing.
func (v *View) Close() error {
	if v.snap == nil {
		return nil
	}
	defer v.store.calls.leave()
	snap := v.snap
	v.snap = nil
	return snap.Close()
}
