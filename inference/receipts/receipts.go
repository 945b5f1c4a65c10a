// Package receipts keeps signed receipts on disk: those that a node's host signed
// and those that its router was given. It is one bbolt file. Put returns when the
// receipt is on disk; receipts that come at the same time share one commit. What a full
// disk does not take is held in memory, and written when there is room: up to 16,384
// receipts, of which the oldest go first. Payers' vouchers take the same way, and of those
// of an account the one for most is always held.
package receipts

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// version is of the file's layout. A file of a newer one is refused.
const version = 1

// Config describes a store. The zero value of a field is its default.
type Config struct {
	Network  mesh.NetworkID
	Path     string // of the file; its folder exists
	MaxCount int    // receipts; the oldest go first; default 200,000
	MaxBytes int64  // of receipts; default 128 MiB
}

// Store is an open file of receipts. Its methods are safe for concurrent use.
type Store struct {
	cfg   Config
	db    *bbolt.DB
	puts  chan *put
	stop  chan struct{} // closed by Close
	once  sync.Once
	ended chan struct{} // closed when the writer has ended
	lost  error         // what the writer could not write, or hold; read after ended

	maxHeld int // receipts; the writer's

	broken atomic.Pointer[error] // by which damage a transaction that writes has ended
}

// put is a receipt or a voucher on its way to the disk.
type put struct {
	receipt *inference.Receipt
	voucher *voucherPut
	err     error      // why it alone is not taken; the writer uses it
	done    chan error // of one place
}

// The buckets. A receipt's key is request, choice, first token and host, so that of
// the many receipts of a segment one is kept; order has the keys by arrival.
var (
	bucketMeta     = []byte("meta")
	bucketReceipts = []byte("receipts") // key -> order, bytes of the Signed
	bucketOrder    = []byte("order")    // order -> arrival in Unix ms, key
	bucketDue      = []byte("due")      // host, epoch, key -> escrow, price, hash: receipts that an escrow pays
	bucketSealed   = []byte("sealed")   // host, epoch -> 1: nothing of it becomes due any more
	bucketVouchers = []byte("vouchers") // host, epoch, escrow, receipts -> amount, bytes of the Signed
	bucketTaken    = []byte("taken")    // host, epoch, escrow -> amount of the last voucher that the host took
	bucketTrust    = []byte("trust")    // escrow -> epoch, trust: what its payer left unpaid here

	metaVersion = []byte("version")
	metaNetwork = []byte("network")
	metaCount   = []byte("count")
	metaBytes   = []byte("bytes")
)

const keyLen = 32 + 4 + 4 + 32

const (
	maxBatch   = 256             // puts that share a commit
	maxHeld    = 16 << 10        // receipts that wait until the disk takes them
	retryEvery = 5 * time.Second // while some wait
)

var errClosed = errors.New("the store of receipts is closed")

const lockWait = 5 * time.Second

// Open opens or makes a store.
func Open(cfg Config) (*Store, error) {
	if cfg.MaxCount <= 0 {
		cfg.MaxCount = 200_000
	}
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = 128 << 20
	}
	s := &Store{cfg: cfg, puts: make(chan *put), stop: make(chan struct{}), ended: make(chan struct{}), maxHeld: maxHeld}
	if err := s.openFile(); err != nil {
		return nil, fmt.Errorf("open %w", err)
	}
	go s.write()
	return s, nil
}

func (s *Store) prepare(tx *bbolt.Tx) error {
	for _, b := range [][]byte{bucketMeta, bucketReceipts, bucketOrder, bucketDue, bucketSealed, bucketVouchers, bucketTaken, bucketTrust} {
		if _, err := tx.CreateBucketIfNotExists(b); err != nil {
			return err
		}
	}
	meta := tx.Bucket(bucketMeta)
	if v := number(meta.Get(metaVersion)); v > version {
		return fmt.Errorf("its version is %d, and this software knows up to %d", v, version)
	}
	if n := meta.Get(metaNetwork); n != nil && string(n) != string(s.cfg.Network) {
		return fmt.Errorf("it belongs to network %s, not %s", n, s.cfg.Network)
	}
	if err := meta.Put(metaNetwork, []byte(s.cfg.Network)); err != nil {
		return err
	}
	return meta.Put(metaVersion, be64(version))
}

// Close ends the store, and says what is lost with it. A Put that is waiting fails.
func (s *Store) Close() error {
	s.once.Do(func() { close(s.stop) })
	<-s.ended
	return errors.Join(s.lost, s.closeFile())
}

// Put keeps a receipt. Of two for the same segment the longer one stays, and of two
// as long the one with a finish. A receipt that does not verify is refused.
func (s *Store) Put(request mesh.Hash, signed *inferencepb.Signed) error {
	receipt, err := inference.ParseReceipt(s.cfg.Network, signed)
	if err != nil {
		return fmt.Errorf("keep receipt: %w", err)
	}
	if receipt.Request != request {
		return errors.New("keep receipt: it is of another request")
	}
	return s.put(&put{receipt: receipt})
}

func (s *Store) put(p *put) error {
	p.done = make(chan error, 1)
	select {
	case s.puts <- p:
	case <-s.ended:
		return errClosed
	}
	return <-p.done
}

// write is the only writer: it commits what waits, all at once and in the order in which
// it came.
func (s *Store) write() {
	defer close(s.ended)
	retry := time.NewTicker(retryEvery)
	defer retry.Stop()
	var held []*put // that found no room, the newest last
	lost := 0       // receipts that were held, and had to make room
	for {
		var batch []*put
		select {
		case p := <-s.puts:
			batch = append(batch, p)
		case <-retry.C:
			if len(held) == 0 {
				continue
			}
		case <-s.stop:
			err := s.commit(held) // the last attempt; each Put has told of the first
			if err != nil {
				lost += len(held)
			}
			if lost > 0 {
				s.lost = errors.Join(fmt.Errorf("%d receipts and vouchers that found no room on the disk are lost", lost), err)
			}
			return
		}
		for more := len(batch) > 0; more && len(batch) < maxBatch; {
			select {
			case p := <-s.puts:
				batch = append(batch, p)
			default:
				more = false
			}
		}
		all := slices.Concat(held, batch)
		err := s.commit(all)
		held = nil
		if err != nil {
			var dropped int
			held, dropped = worthHolding(all, s.maxHeld)
			lost += dropped
			err = fmt.Errorf("write receipts %s: %w; %w", s.cfg.Path, err, inference.ErrHeld)
		}
		for _, p := range batch {
			p.done <- cmp.Or(p.err, err)
		}
	}
}

// worthHolding returns what waits for the disk: of the vouchers of an account the one for
// most, and of the receipts the newest, up to so many. lost is how many receipts it drops.
func worthHolding(all []*put, receipts int) (held []*put, lost int) {
	most := make(map[string]*put)
	for _, p := range all {
		switch {
		case p.err != nil: // it was refused
		case p.voucher == nil:
			receipts--
		default:
			account := p.voucher.account()
			was := most[account]
			if was == nil || was.voucher.Amount <= p.voucher.Amount {
				most[account] = p
			}
			if was != nil { // what the other one is for is not due again
				covers := slices.Concat(was.voucher.covers, p.voucher.covers)
				slices.SortFunc(covers, func(a, b Part) int { return bytes.Compare(a[:], b[:]) })
				most[account].voucher.covers = slices.Compact(covers)
			}
		}
	}
	for _, p := range all {
		switch {
		case p.err != nil:
		case p.voucher != nil:
			if most[p.voucher.account()] == p {
				held = append(held, p)
			}
		case receipts < 0: // one of the oldest
			receipts++
			lost++
		default:
			held = append(held, p)
		}
	}
	return held, lost
}

func (s *Store) commit(all []*put) error {
	if len(all) == 0 {
		return nil
	}
	return s.update(func(tx *bbolt.Tx) error {
		for _, p := range all {
			var err error
			if p.voucher != nil {
				err = p.voucher.insert(tx)
			} else {
				err = s.insert(tx, p.receipt)
			}
			if p.err = nil; errors.Is(err, errLess) {
				p.err = err
			} else if err != nil {
				return err
			}
		}
		return s.trim(tx)
	})
}

func key(r *inference.Receipt) []byte {
	k := slices.Clone(r.Request[:])
	k = binary.BigEndian.AppendUint32(k, r.Pb.GetChoice())
	k = binary.BigEndian.AppendUint32(k, r.Before.Next)
	return append(k, r.Host[:]...)
}

func (s *Store) insert(tx *bbolt.Tx, r *inference.Receipt) error {
	all, order, k := tx.Bucket(bucketReceipts), tx.Bucket(bucketOrder), key(r)
	if old := all.Get(k); old != nil {
		was, err := s.parse(old)
		if err == nil && (was.After.Next > r.After.Next ||
			was.After.Next == r.After.Next && (was.Finish != inference.FinishOpen || r.Finish == inference.FinishOpen)) {
			return nil
		}
		if err := s.remove(tx, old[:8], k); err != nil {
			return err
		}
	}
	if err := owe(tx, r, k); err != nil {
		return err
	}
	body, err := proto.Marshal(r.Signed)
	if err != nil {
		return err
	}
	n, err := order.NextSequence()
	if err != nil {
		return err
	}
	if err := order.Put(be64(n), append(be64(uint64(time.Now().UnixMilli())), k...)); err != nil {
		return err
	}
	if err := all.Put(k, append(be64(n), body...)); err != nil {
		return err
	}
	return s.count(tx, 1, len(body))
}

// remove deletes a receipt by its order and key.
func (s *Store) remove(tx *bbolt.Tx, order, k []byte) error {
	order = slices.Clone(order) // it may lie in a page that changes
	size := max(0, len(tx.Bucket(bucketReceipts).Get(k))-8)
	if err := tx.Bucket(bucketOrder).Delete(order); err != nil {
		return err
	}
	if err := tx.Bucket(bucketReceipts).Delete(k); err != nil {
		return err
	}
	return s.count(tx, -1, -size)
}

func (s *Store) count(tx *bbolt.Tx, receipts, size int) error {
	meta := tx.Bucket(bucketMeta)
	if err := meta.Put(metaCount, be64(number(meta.Get(metaCount))+uint64(receipts))); err != nil {
		return err
	}
	return meta.Put(metaBytes, be64(number(meta.Get(metaBytes))+uint64(size)))
}

// trim forgets the oldest receipts that are over the limits.
func (s *Store) trim(tx *bbolt.Tx) error {
	meta := tx.Bucket(bucketMeta)
	for number(meta.Get(metaCount)) > uint64(s.cfg.MaxCount) || number(meta.Get(metaBytes)) > uint64(s.cfg.MaxBytes) {
		n, v := tx.Bucket(bucketOrder).Cursor().First()
		if n == nil {
			return nil
		}
		if len(v) != 8+keyLen {
			return errors.New("the order of receipts is damaged")
		}
		if err := s.remove(tx, n, slices.Clone(v[8:])); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) parse(v []byte) (*inference.Receipt, error) {
	if len(v) < 8 {
		return nil, errors.New("a kept receipt is damaged")
	}
	signed := new(inferencepb.Signed)
	if err := proto.Unmarshal(v[8:], signed); err != nil {
		return nil, fmt.Errorf("a kept receipt is damaged: %w", err)
	}
	return inference.ParseReceipt(s.cfg.Network, signed)
}

// Get returns the receipts of a request in the order of choices and tokens; none is
// no error.
func (s *Store) Get(request mesh.Hash) ([]*inference.Receipt, error) {
	var out []*inference.Receipt
	err := s.view(func(tx *bbolt.Tx) error {
		var err error
		out, err = s.of(tx, request)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read receipts of %s: %w", request, err)
	}
	return out, nil
}

func (s *Store) of(tx *bbolt.Tx, request mesh.Hash) ([]*inference.Receipt, error) {
	var out []*inference.Receipt
	c := tx.Bucket(bucketReceipts).Cursor()
	for k, v := c.Seek(request[:]); bytes.HasPrefix(k, request[:]); k, v = c.Next() {
		r, err := s.parse(v)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// Find returns up to n requests whose IDs begin so in hex.
func (s *Store) Find(prefix string, n int) ([]mesh.Hash, error) {
	from, err := hex.DecodeString(prefix + strings.Repeat("0", len(prefix)%2))
	if err != nil {
		return nil, fmt.Errorf("find receipts %.70q: %w", prefix, err)
	}
	var out []mesh.Hash
	err = s.view(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketReceipts).Cursor()
		for k, _ := c.Seek(from); len(k) == keyLen && len(out) < n; k, _ = c.Next() {
			request := mesh.Hash(k[:len(mesh.Hash{})])
			if !strings.HasPrefix(request.String(), prefix) {
				break
			}
			if len(out) == 0 || out[len(out)-1] != request {
				out = append(out, request)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find receipts %s: %w", prefix, err)
	}
	return out, nil
}

// Entry is one request with its receipts.
type Entry struct {
	Request  mesh.Hash
	Kept     time.Time // when its newest receipt came
	Receipts []*inference.Receipt
}

// List returns up to n requests, those with the newest receipts first.
func (s *Store) List(n int) ([]Entry, error) {
	var out []Entry
	err := s.view(func(tx *bbolt.Tx) error {
		seen := make(map[mesh.Hash]bool)
		c := tx.Bucket(bucketOrder).Cursor()
		for k, v := c.Last(); k != nil && len(out) < n; k, v = c.Prev() {
			if len(v) != 8+keyLen {
				return errors.New("the order of receipts is damaged")
			}
			request := mesh.Hash(v[8:40])
			if seen[request] {
				continue
			}
			seen[request] = true
			all, err := s.of(tx, request)
			if err != nil {
				return err
			}
			out = append(out, Entry{Request: request, Kept: time.UnixMilli(int64(number(v[:8]))), Receipts: all})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list receipts: %w", err)
	}
	return out, nil
}

func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func number(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}
