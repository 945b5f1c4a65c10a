package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/gonka-mesh/mesh"
)

// The database holds the last state as it is, and beside it, for as many heights as
// can be proven, what each block replaced: a key at height h has the value that the
// first block after h replaced, or else the one it has now. Notes lie in buckets of
// heights, so that forgetting is one range deletion and costs a block nothing.

const bucketOf = 64 // heights

// undo notes what a block replaces.
type undo struct {
	batch  *pebble.Batch
	height mesh.Height
	on     bool // off where there is no state before
}

// Kinds of notes, by their first byte.
const (
	wasAbsent = iota
	wasWhole  // the bytes before follow
	wasPart   // of a page: which slots changed, 16 bits, and a page with those before
)

// note keeps the value that a key had before this block, nil when it was absent.
func (u *undo) note(key, old []byte) error {
	if !u.on {
		return nil
	}
	if old == nil {
		return u.batch.Set(undoKey(u.height, key), []byte{wasAbsent}, nil)
	}
	value := append(make([]byte, 0, 1+len(old)), wasWhole)
	return u.batch.Set(undoKey(u.height, key), append(value, old...), nil)
}

// notePage keeps the slots of a page that this block changes, which is most often one
// of 16. was is nil for a new page.
func (u *undo) notePage(key []byte, was, now *page, deleted bool) error {
	switch {
	case !u.on:
		return nil
	case was == nil:
		return u.note(key, nil)
	case deleted:
		return u.note(key, was.encode())
	}
	var mask uint16
	var part page
	for i := range was {
		if was[i].kind != now[i].kind || was[i].hash != now[i].hash {
			mask |= 1 << i
			part[i] = was[i]
		}
	}
	value := binary.BigEndian.AppendUint16([]byte{wasPart}, mask)
	return u.batch.Set(undoKey(u.height, key), append(value, part.encode()...), nil)
}

// undoKey sorts by bucket, key and height. The length of the key stands before it, so
// that no key's notes lie between another's.
func undoKey(height mesh.Height, key []byte) []byte {
	out := make([]byte, 0, 1+8+2+len(key)+8)
	out = append(out, tableUndo)
	out = binary.BigEndian.AppendUint64(out, uint64(height)/bucketOf)
	out = binary.BigEndian.AppendUint16(out, uint16(len(key)))
	out = append(out, key...)
	return binary.BigEndian.AppendUint64(out, uint64(height))
}

// forget drops the buckets that lie keep heights before this one, and returns the
// oldest height that can be proven then.
func forget(b *pebble.Batch, height, oldest mesh.Height, keep uint64) (mesh.Height, error) {
	if uint64(height) < keep {
		return oldest, nil
	}
	first := (uint64(height) - keep + 1) / bucketOf // the first bucket that is needed
	if first == 0 || first*bucketOf <= uint64(oldest)+1 {
		return oldest, nil
	}
	var end [9]byte
	end[0] = tableUndo
	binary.BigEndian.PutUint64(end[1:], first)
	// A note of height g gives the values at g-1.
	return mesh.Height(first*bucketOf - 1), b.DeleteRange([]byte{tableUndo}, end[:], nil)
}

// past reads the database as it was at a height.
type past struct {
	log    *databaseLog
	snap   *pebble.Snapshot
	it     *pebble.Iterator
	height mesh.Height
	head   head
}

// at opens the database as it was at a height.
func (s *Store) at(height mesh.Height) (*past, error) {
	p := &past{log: s.log, snap: s.db.NewSnapshot(), height: height}
	var err error
	if p.head, _, err = s.log.readHead(p.snap); err != nil {
		return nil, errors.Join(err, p.close())
	}
	if !p.head.committed || height < p.head.oldest || height > p.head.height {
		return nil, errors.Join(fmt.Errorf("no state of height %d: there are %d to %d", height, p.head.oldest, p.head.height), p.close())
	}
	p.it, err = p.snap.NewIter(&pebble.IterOptions{LowerBound: []byte{tableUndo}, UpperBound: []byte{tableUndo + 1}})
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *past) close() error {
	var err error
	if p.it != nil {
		err = p.it.Close()
	}
	return errors.Join(err, p.snap.Close())
}

// notes calls fn with what each block after the height replaced of a key, in order,
// until fn is done.
func (p *past) notes(key []byte, fn func(kind byte, old []byte) (done bool, err error)) error {
	for from := p.height + 1; from <= p.head.height; from = (from/bucketOf + 1) * bucketOf {
		want := undoKey(from, key)
		same := len(want) - 8
		for ok := p.it.SeekGE(want); ok; ok = p.it.Next() {
			if got := p.it.Key(); len(got) != len(want) || !bytes.Equal(got[:same], want[:same]) {
				break
			}
			v, err := p.it.ValueAndErr()
			if err != nil {
				return p.log.io("read", err)
			}
			if len(v) == 0 {
				return errNote
			}
			if done, err := fn(v[0], v[1:]); done || err != nil {
				return err
			}
		}
		if err := p.it.Error(); err != nil {
			return p.log.io("read", err)
		}
	}
	return nil
}

var errNote = errors.New("ledger database: a note of the past is damaged")

// get returns the value of a key of the database at the height, nil when absent. For
// pages there is page.
func (p *past) get(key []byte) ([]byte, error) {
	v, found, err := p.replaced(key)
	if err != nil || found {
		return v, err
	}
	return p.log.get(p.snap, key)
}

// replaced returns what the first block after the height replaced, if one did.
func (p *past) replaced(key []byte) (value []byte, found bool, err error) {
	err = p.notes(key, func(kind byte, old []byte) (bool, error) {
		found = true
		switch kind {
		case wasAbsent:
		case wasWhole:
			value = append(make([]byte, 0, len(old)), old...)
		default:
			return true, errNote
		}
		return true, nil
	})
	return value, found, err
}

// page returns a page of the tree at the height, with no slots when there was none.
func (p *past) page(at prefix) (*page, error) {
	out, key := &page{}, at.key()
	var known uint16
	fill := func(mask uint16, from *page) {
		for i := range out {
			if mask&^known>>i&1 == 1 {
				out[i] = from[i]
			}
		}
		known |= mask
	}
	err := p.notes(key, func(kind byte, old []byte) (bool, error) {
		mask := ^uint16(0)
		if kind == wasPart && len(old) >= 2 {
			mask, old = binary.BigEndian.Uint16(old), old[2:]
		} else if kind == wasAbsent {
			known = mask
			return true, nil
		} else if kind != wasWhole {
			return true, errNote
		}
		from, err := decodePage(bytes.Clone(old))
		if err != nil {
			return true, err
		}
		fill(mask, from)
		return known == ^uint16(0), nil
	})
	if err != nil || known == ^uint16(0) {
		return out, err
	}
	now, err := p.log.get(p.snap, key)
	if err != nil || now == nil {
		return out, err
	}
	from, err := decodePage(now)
	if err != nil {
		return nil, err
	}
	fill(^uint16(0), from)
	return out, nil
}

// flat returns the hash of the entries outside the tree at the height.
func (p *past) flat() (mesh.Hash, error) {
	v, found, err := p.replaced(nil)
	if err != nil || !found {
		return p.head.flat, err
	}
	return mesh.HashFromBytes(v)
}
