package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/cockroachdb/pebble/v2"
	dbm "github.com/cometbft/cometbft-db"
)

var (
	errEmptyKey    = errors.New("database key is empty")
	errNilValue    = errors.New("database value is nil")
	errClosedBatch = errors.New("the batch was written or closed")
)

// CometDB returns the part of the database that CometBFT keeps under a name: its
// blocks, its own state, evidence. Closing it does nothing: the Store owns the files.
// Names have no zero byte.
func (s *Store) CometDB(name string) dbm.DB {
	return &cometDB{store: s, prefix: append(append([]byte{tableComet}, name...), 0)}
}

type cometDB struct {
	store  *Store
	prefix []byte
}

func (d *cometDB) key(key []byte) []byte {
	return append(append(make([]byte, 0, len(d.prefix)+len(key)), d.prefix...), key...)
}

func (d *cometDB) Get(key []byte) ([]byte, error) {
	if len(key) == 0 {
		return nil, errEmptyKey
	}
	if !d.store.calls.enter() {
		return nil, ErrClosed
	}
	defer d.store.calls.leave()
	return d.store.log.get(d.store.db, d.key(key))
}

func (d *cometDB) Has(key []byte) (bool, error) {
	v, err := d.Get(key)
	return v != nil, err
}

func (d *cometDB) Set(key, value []byte) error     { return d.put(key, value, pebble.NoSync) }
func (d *cometDB) SetSync(key, value []byte) error { return d.put(key, value, pebble.Sync) }
func (d *cometDB) Delete(key []byte) error         { return d.drop(key, pebble.NoSync) }
func (d *cometDB) DeleteSync(key []byte) error     { return d.drop(key, pebble.Sync) }

func (d *cometDB) put(key, value []byte, how *pebble.WriteOptions) error {
	b := d.batch()
	err := b.Set(key, value)
	if err == nil {
		err = b.write(how)
	}
	return errors.Join(err, b.Close())
}

func (d *cometDB) drop(key []byte, how *pebble.WriteOptions) error {
	b := d.batch()
	err := b.Delete(key)
	if err == nil {
		err = b.write(how)
	}
	return errors.Join(err, b.Close())
}

func (d *cometDB) Close() error { return nil }

func (d *cometDB) NewBatch() dbm.Batch { return d.batch() }

func (d *cometDB) batch() *cometBatch { return &cometBatch{db: d, batch: d.store.db.NewBatch()} }

func (d *cometDB) Print() error {
	it, err := d.Iterator(nil, nil)
	if err != nil {
		return err
	}
	for ; it.Valid(); it.Next() {
		fmt.Printf("[%X]:\t[%X]\n", it.Key(), it.Value())
	}
	return errors.Join(it.Error(), it.Close())
}

// Stats returns figures of the whole database.
func (d *cometDB) Stats() map[string]string {
	if !d.store.calls.enter() {
		return nil
	}
	defer d.store.calls.leave()
	m := d.store.db.Metrics()
	return map[string]string{
		"disk.bytes":     strconv.FormatUint(m.DiskSpaceUsage(), 10),
		"memtable.bytes": strconv.FormatUint(m.MemTable.Size, 10),
		"cache.bytes":    strconv.FormatInt(m.BlockCache.Size, 10),
	}
}

// Compact rewrites a range of keys; nil bounds are those of this part.
func (d *cometDB) Compact(start, end []byte) error {
	low, high, err := d.bounds(start, end)
	if err != nil {
		return err
	}
	if !d.store.calls.enter() {
		return ErrClosed
	}
	defer d.store.calls.leave()
	return d.store.log.guard(func() error {
		return d.store.log.io("compact", d.store.db.Compact(context.Background(), low, high, false))
	})
}

// bounds returns the range of the database that is a range of this part.
func (d *cometDB) bounds(start, end []byte) (low, high []byte, err error) {
	if start != nil && len(start) == 0 || end != nil && len(end) == 0 {
		return nil, nil, errEmptyKey
	}
	low, high = d.key(start), after(d.prefix)
	if end != nil {
		high = d.key(end)
	}
	return low, high, nil
}

func (d *cometDB) Iterator(start, end []byte) (dbm.Iterator, error) {
	return d.iterate(start, end, (*pebble.Iterator).First, (*pebble.Iterator).Next)
}

func (d *cometDB) ReverseIterator(start, end []byte) (dbm.Iterator, error) {
	return d.iterate(start, end, (*pebble.Iterator).Last, (*pebble.Iterator).Prev)
}

func (d *cometDB) iterate(start, end []byte, first, next func(*pebble.Iterator) bool) (dbm.Iterator, error) {
	low, high, err := d.bounds(start, end)
	if err != nil {
		return nil, err
	}
	if !d.store.calls.enter() {
		return nil, ErrClosed
	}
	it := &cometIterator{db: d, start: start, end: end, next: next}
	err = d.store.log.guard(func() error {
		src, err := d.store.db.NewIter(&pebble.IterOptions{LowerBound: low, UpperBound: high})
		if err != nil {
			return d.store.log.io("read", err)
		}
		it.src = src
		it.at(first(src))
		return nil
	})
	if err != nil {
		d.store.calls.leave()
		return nil, err
	}
	return it, nil // the call ends when the iterator is closed
}

// cometIterator holds the store open until it is closed.
type cometIterator struct {
	db         *cometDB
	src        *pebble.Iterator
	next       func(*pebble.Iterator) bool
	start, end []byte
	key, value []byte // nil key: no longer valid
	err        error
}

// at keeps the entry that the iterator stands on: callers may keep its slices.
func (it *cometIterator) at(ok bool) {
	it.key, it.value = nil, nil
	if !ok {
		it.err = it.db.store.log.io("read", it.src.Error())
		return
	}
	v, err := it.src.ValueAndErr()
	if err != nil {
		it.err = it.db.store.log.io("read", err)
		return
	}
	it.key = bytes.Clone(it.src.Key()[len(it.db.prefix):])
	it.value = append(make([]byte, 0, len(v)), v...)
}

func (it *cometIterator) Domain() (start, end []byte) { return it.start, it.end }
func (it *cometIterator) Valid() bool                 { return it.key != nil }
func (it *cometIterator) Error() error                { return it.err }

func (it *cometIterator) Next() {
	it.assertValid()
	if err := it.db.store.log.guard(func() error { it.at(it.next(it.src)); return nil }); err != nil {
		it.key, it.value, it.err = nil, nil, err
	}
}

func (it *cometIterator) Key() []byte {
	it.assertValid()
	return it.key
}

func (it *cometIterator) Value() []byte {
	it.assertValid()
	return it.value
}

// assertValid panics as the interface's contract says.
func (it *cometIterator) assertValid() {
	if !it.Valid() {
		panic("the iterator is not valid")
	}
}

func (it *cometIterator) Close() error {
	if it.src == nil {
		return nil
	}
	src := it.src
	it.src, it.key, it.value = nil, nil, nil
	defer it.db.store.calls.leave()
	return it.db.store.log.guard(func() error { return it.db.store.log.io("read", src.Close()) })
}

type cometBatch struct {
	db    *cometDB
	batch *pebble.Batch // nil once written or closed
}

func (b *cometBatch) Set(key, value []byte) error {
	switch {
	case len(key) == 0:
		return errEmptyKey
	case value == nil:
		return errNilValue
	case b.batch == nil:
		return errClosedBatch
	}
	return b.batch.Set(b.db.key(key), value, nil)
}

func (b *cometBatch) Delete(key []byte) error {
	switch {
	case len(key) == 0:
		return errEmptyKey
	case b.batch == nil:
		return errClosedBatch
	}
	return b.batch.Delete(b.db.key(key), nil)
}

func (b *cometBatch) Write() error     { return b.write(pebble.NoSync) }
func (b *cometBatch) WriteSync() error { return b.write(pebble.Sync) }

func (b *cometBatch) write(how *pebble.WriteOptions) error {
	if b.batch == nil {
		return errClosedBatch
	}
	store := b.db.store
	if !store.calls.enter() {
		return ErrClosed
	}
	defer store.calls.leave()
	if err := store.log.err(); err != nil {
		return fmt.Errorf("write ledger database: %w", err)
	}
	if err := store.log.guard(func() error { return store.log.io("write", b.batch.Commit(how)) }); err != nil {
		return err
	}
	return b.Close()
}

func (b *cometBatch) Close() error {
	if b.batch == nil {
		return nil
	}
	batch := b.batch
	b.batch = nil
	return batch.Close()
}
