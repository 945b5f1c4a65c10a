package state

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Tables of the database, by the first byte of a key.
const (
	tableComet = 'c' // name ‖ 0 ‖ CometBFT's key
	tableFlat  = 'f' // the ledger's key: all of the state
	tableMeta  = 'm' // version, the committed state, a restore in progress
	tableTree  = 't' // depth ‖ nibbles of the path: the pages of the tree
	tableUndo  = 'u' // bucket ‖ key ‖ height: what a block replaced
)

// What the two caches hold at most. Entries and pages of the tree come to about 300
// bytes an account; that of the files' blocks serves the rest, and has no filters
// beside it: most reads are of what exists, and filters would drive the blocks out.
const (
	entryCache = 16 << 20
	blockCache = 8 << 20
)

// openPebble returns the database in dir. Sizes are modest: a host that only follows the
// ledger has 90 MB for everything.
func openPebble(dir string, fs vfs.FS, log *databaseLog) (*pebble.DB, error) {
	opts := &pebble.Options{
		FS:                          dirSyncs{fs, log},
		Logger:                      log,
		CacheSize:                   blockCache,
		MemTableSize:                4 << 20,
		MemTableStopWritesThreshold: 3,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       24,
		LBaseMaxBytes:               16 << 20,
		MaxOpenFiles:                256,
		FormatMajorVersion:          pebble.FormatNewest,
		// Blocks of a validator come every few seconds: one compaction at a time keeps up,
		// and leaves the other cores to the engine.
		CompactionConcurrencyRange: func() (int, int) { return 1, 1 },
	}
	opts.EventListener = &pebble.EventListener{BackgroundError: func(err error) { _ = log.io("keep", err) }}
	type result struct {
		db  *pebble.DB
		err error
	}
	opened, gone := make(chan result), make(chan struct{})
	go func() {
		var r result
		r.err = log.guard(func() (err error) {
			r.db, err = pebble.Open(dir, opts)
			return err
		})
		select {
		case opened <- r:
		case <-gone:
			if r.err == nil {
				_ = closePebble(r.db, log)
			}
		}
	}()
	// A database that fails in the background while it opens makes pebble wait for
	// work that never ends.
	select {
	case r := <-opened:
		if r.err != nil {
			return nil, fmt.Errorf("open ledger database %s: %w", dir, r.err)
		}
		return r.db, nil
	case <-log.failed:
		close(gone)
		return nil, fmt.Errorf("open ledger database %s: %w", dir, log.err())
	}
}

// closePebble closes the database. One that failed may wait for itself for ever; its
// last state is on disk, so it is not waited for.
func closePebble(db *pebble.DB, log *databaseLog) error {
	done := make(chan error, 1)
	go func() { done <- log.guard(db.Close) }()
	select {
	case err := <-done:
		return err
	case <-log.failed:
	}
	select {
	case err := <-done:
		return err
	case <-time.After(time.Second):
		return fmt.Errorf("close ledger database: %w", log.err())
	}
}

// databaseLog receives what pebble says, and keeps the first error of the database.
type databaseLog struct {
	log    *slog.Logger
	failed chan struct{} // closed with the first error
	mu     sync.Mutex
	first  error
}

func newDatabaseLog(log *slog.Logger) *databaseLog {
	return &databaseLog{log: log, failed: make(chan struct{})}
}

// fail notes an error. The first one stays: after it nothing is committed any more.
func (l *databaseLog) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first == nil {
		l.first = err
		close(l.failed)
	}
}

func (l *databaseLog) err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first
}

// Infof drops pebble's account of each flush and compaction.
func (l *databaseLog) Infof(string, ...any) {}

func (l *databaseLog) Errorf(format string, args ...any) {
	l.log.Warn("ledger database", "error", fmt.Sprintf(format, args...))
}

// fatal carries a fatal error of pebble through its own frames up to guard.
type fatal struct{ err error }

// Fatalf may not return: pebble goes on from it as if the process had ended. Where one
// of our calls is on the stack it unwinds to guard, which returns the error; a
// goroutine of pebble's own ends here. Either way the process lives, and no block is
// committed after this.
func (l *databaseLog) Fatalf(format string, args ...any) {
	l.die(fmt.Errorf(format, args...))
}

func (l *databaseLog) die(err error) {
	l.fail(err)
	l.log.Error("ledger database failed", "error", err)
	if guarded() {
		panic(fatal{err})
	}
	runtime.Goexit()
}

func guarded() bool {
	pc := make([]uintptr, 64)
	frames := runtime.CallersFrames(pc[:runtime.Callers(2, pc)])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, "(*databaseLog).guard") {
			return true
		}
		if !more {
			return false
		}
	}
}

// guard calls fn and turns a panic, of pebble's over a damaged file or of Fatalf, into
// an error, which sticks. The error is for people; where a panic came from is logged.
func (l *databaseLog) guard(fn func() error) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
			return
		case fatal:
			err = r.err
		default:
			err = fmt.Errorf("ledger database panicked: %v", r)
			l.log.Error("ledger database panicked", "panic", r, "stack", string(debug.Stack()))
		}
		l.fail(err)
	}()
	return fn()
}

// io says what an error of pebble's was about, and makes it stick.
func (l *databaseLog) io(what string, err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s ledger database: %w", what, err)
	l.fail(err)
	return err
}

// reader is what a DB and a snapshot have in common.
type reader = pebble.Reader

// get copies the value of a key, or returns nil when there is none.
func (l *databaseLog) get(r reader, key []byte) (value []byte, err error) {
	err = l.guard(func() error {
		v, closer, err := r.Get(key)
		if errors.Is(err, pebble.ErrNotFound) {
			return nil
		}
		if err != nil {
			return l.io("read", err)
		}
		value = append(make([]byte, 0, len(v)), v...)
		return l.io("read", closer.Close())
	})
	return value, err
}

// scan calls fn for each key from low up to, not including, high, with slices that are
// valid during the call, until fn returns false.
func (l *databaseLog) scan(r reader, low, high []byte, fn func(key, value []byte) (bool, error)) error {
	return l.guard(func() (err error) {
		it, err := r.NewIter(&pebble.IterOptions{LowerBound: low, UpperBound: high})
		if err != nil {
			return l.io("read", err)
		}
		defer func() {
			if e := l.io("read", it.Close()); err == nil {
				err = e
			}
		}()
		for ok := it.First(); ok; ok = it.Next() {
			value, err := it.ValueAndErr()
			if err != nil {
				return l.io("read", err)
			}
			more, err := fn(it.Key(), value)
			if err != nil || !more {
				return err
			}
		}
		return l.io("read", it.Error())
	})
}

// after returns the first key that does not start with prefix, or nil when there is none.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}
