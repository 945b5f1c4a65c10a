package receipts

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"syscall"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// errDamaged is a file that does not hold what was written to it.
var errDamaged = errors.New("the file is damaged")

// walkBytes is how large a file may be whose receipts are all walked through at the start,
// which then takes a fraction of a second. What is due and what pays it, the vouchers, is
// little and always walked through.
const walkBytes = 64 << 20

// guard turns what bbolt does on a damaged page, a panic or a fault of the mapped
// memory, into an error.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errDamaged, r)
		}
	}()
	return f()
}

// openFile opens the file and looks whether it is whole.
func (s *Store) openFile() error {
	err := guard(func() error {
		var err error
		if s.db, err = bbolt.Open(s.cfg.Path, 0o600, &bbolt.Options{Timeout: lockWait, FreelistType: bbolt.FreelistMapType}); err != nil {
			return asDamage(err)
		}
		if err := s.db.View(s.walk); err != nil { // before anything is written
			return err
		}
		return s.db.Update(s.prepare)
	})
	if err != nil && s.db != nil && !errors.Is(err, errDamaged) { // a damaged one may keep its locks
		s.db.Close()
	}
	if err != nil {
		return s.told(err)
	}
	return nil
}

// told adds the file, and the way out where it is damaged.
func (s *Store) told(err error) error {
	if errors.Is(err, errDamaged) {
		err = fmt.Errorf("%w; move it away and start again: what is due of epochs that are not settled, and their vouchers, is lost with it", err)
	}
	return fmt.Errorf("receipts %s: %w", s.cfg.Path, err)
}

// asDamage tells what bbolt says of the bytes of a file from what the system says of it.
func asDamage(err error) error {
	var path *fs.PathError
	var system syscall.Errno
	if errors.Is(err, berrors.ErrTimeout) || errors.As(err, &path) || errors.As(err, &system) {
		return err
	}
	return fmt.Errorf("%w: %w", errDamaged, err)
}

// walk reads the pages of the file.
func (s *Store) walk(tx *bbolt.Tx) error {
	info, err := os.Stat(s.cfg.Path)
	if err != nil {
		return err
	}
	if info.Size() < tx.Size() {
		return fmt.Errorf("%w: it has %d bytes of %d", errDamaged, info.Size(), tx.Size())
	}
	return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
		bulk := bytes.Equal(name, bucketReceipts) || bytes.Equal(name, bucketOrder)
		if bulk && tx.Size() > walkBytes {
			return nil
		}
		var last []byte
		c := b.Cursor()
		for k, _ := c.First(); k != nil; k, _ = c.Next() {
			if last != nil && bytes.Compare(last, k) >= 0 {
				return fmt.Errorf("%w: the keys of %q are in disorder", errDamaged, name)
			}
			last = k
		}
		return nil
	})
}

// view and update are bbolt's, with damage as an error. A transaction that bbolt does not
// get to begin for damage, or that writes and meets damage, is the last: bbolt may hold
// its locks for ever.
func (s *Store) view(f func(tx *bbolt.Tx) error) error {
	return s.guarded(s.db.View, f, false)
}

func (s *Store) update(f func(tx *bbolt.Tx) error) error {
	return s.guarded(s.db.Update, f, true)
}

func (s *Store) guarded(transact func(func(*bbolt.Tx) error) error, f func(tx *bbolt.Tx) error, writes bool) error {
	if broken := s.broken.Load(); broken != nil {
		return *broken
	}
	last := true
	err := guard(func() error {
		return transact(func(tx *bbolt.Tx) error {
			last = writes
			return f(tx)
		})
	})
	if !errors.Is(err, errDamaged) {
		return err
	}
	err = s.told(err)
	if last {
		s.broken.CompareAndSwap(nil, &err)
	}
	return err
}

// closeFile leaves a file that a broken transaction holds to the end of the process.
func (s *Store) closeFile() error {
	if s.broken.Load() != nil {
		return nil
	}
	return guard(s.db.Close)
}
