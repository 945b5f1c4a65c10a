package receipts

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// Due is a final receipt that an escrow pays: all of it that a settlement needs, so that
// it is settled although the receipt itself had to make room. Of a host's own it is what
// it settles, of other hosts' what no voucher of this node is for yet.
type Due struct {
	Part   Part
	Host   mesh.Address
	Epoch  mesh.Epoch
	Escrow mesh.Hash
	Price  mesh.Amount
	Hash   mesh.Hash // of the signed body
	Whole  bool      // vouchers count it; see inference.Receipt
}

// Part is what a host is paid for once: request, choice and first token of a receipt.
type Part [32 + 4 + 4]byte

// PartOf returns what a receipt is for.
func PartOf(r *inference.Receipt) Part { return Part(key(r)) }

const (
	ledgerLen  = 32 + 8      // of a ledgerKey
	dueLen     = 32 + 8 + 32 // of a value: escrow, price, hash; one byte more where it is not whole
	accountLen = ledgerLen + 32
	voucherLen = accountLen + 8
)

// keptVouchers is how many vouchers of an account are kept, those with the most receipts:
// a host that lost its last receipts in a crash settles with one from before. They are more
// than a payer may have answers running, or vouchers for those would drive out all that a
// settlement can use.
const keptVouchers = 129

// errLess is a voucher that takes back what one before it promised.
var errLess = errors.New("a voucher before it says more")

// ledgerKey begins the keys of what belongs to a host's settlement of an epoch.
func ledgerKey(host mesh.Address, epoch mesh.Epoch) []byte {
	return append(slices.Clone(host[:]), be64(uint64(epoch))...)
}

// owe notes a receipt that an escrow pays, unless its epoch is sealed.
func owe(tx *bbolt.Tx, r *inference.Receipt, key []byte) error {
	if r.Finish == inference.FinishOpen || len(r.Pb.GetEscrow()) != 32 || r.Pb.GetPrice() == 0 {
		return nil
	}
	account := ledgerKey(r.Host, mesh.Epoch(r.Pb.GetEpoch()))
	if tx.Bucket(bucketSealed).Get(account) != nil {
		return nil
	}
	hash := mesh.HashOf(r.Signed.GetBody())
	value := slices.Concat(r.Pb.GetEscrow(), be64(r.Pb.GetPrice()), hash[:])
	if !r.Whole() {
		value = append(value, 1)
	}
	return tx.Bucket(bucketDue).Put(append(account, key...), value)
}

// Due returns what escrows pay a host for in an epoch, in the order of the receipts'
// keys: always the same one.
func (s *Store) Due(host mesh.Address, epoch mesh.Epoch) ([]Due, error) {
	var out []Due
	err := s.due(ledgerKey(host, epoch), func(d Due) { out = append(out, d) })
	return out, err
}

// AllDue calls fn with what escrows pay all hosts for, in all epochs that are kept.
func (s *Store) AllDue(fn func(Due)) error { return s.due(nil, fn) }

func (s *Store) due(prefix []byte, fn func(Due)) error {
	err := s.view(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketDue).Cursor()
		for k, v := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
			if len(k) != ledgerLen+keyLen || len(v) != dueLen && len(v) != dueLen+1 {
				continue // damaged: the others are still due
			}
			fn(Due{Part: Part(k[ledgerLen:]), Host: mesh.AddressOf(k[:32]), Epoch: mesh.Epoch(number(k[32:40])),
				Escrow: mesh.Hash(v[:32]), Price: mesh.Amount(number(v[32:40])), Hash: mesh.Hash(v[40:dueLen]), Whole: len(v) == dueLen})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read what is due: %w", err)
	}
	return nil
}

// Seal fixes what a host settles of an epoch: of what is due now the escrows that keep
// names, and nothing that comes later. It notes what trust the payers have from then on.
// To seal once more changes nothing.
func (s *Store) Seal(host mesh.Address, epoch mesh.Epoch, keep func(escrow mesh.Hash) bool, trust map[mesh.Hash]int64) error {
	prefix := ledgerKey(host, epoch)
	err := s.update(func(tx *bbolt.Tx) error {
		sealed, due := tx.Bucket(bucketSealed), tx.Bucket(bucketDue)
		if sealed.Get(prefix) != nil {
			return nil
		}
		var drop [][]byte
		c := due.Cursor()
		for k, v := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
			if len(v) < dueLen || !keep(mesh.Hash(v[:32])) {
				drop = append(drop, slices.Clone(k))
			}
		}
		for _, k := range drop {
			if err := due.Delete(k); err != nil {
				return err
			}
		}
		for escrow, n := range trust {
			if err := tx.Bucket(bucketTrust).Put(escrow[:], append(be64(uint64(epoch)), be64(uint64(n))...)); err != nil {
				return err
			}
		}
		return sealed.Put(prefix, []byte{1})
	})
	if err != nil {
		return fmt.Errorf("seal epoch %d: %w", epoch, err)
	}
	return nil
}

// Sealed returns the epochs of a host that are sealed, of those that are kept.
func (s *Store) Sealed(host mesh.Address) (map[mesh.Epoch]bool, error) {
	out := make(map[mesh.Epoch]bool)
	err := s.view(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketSealed).Cursor()
		for k, _ := c.Seek(host[:]); len(k) == ledgerLen && bytes.HasPrefix(k, host[:]); k, _ = c.Next() {
			out[mesh.Epoch(number(k[32:]))] = true
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read which epochs are sealed: %w", err)
	}
	return out, nil
}

// Trust calls fn with what Seal noted last of each escrow.
func (s *Store) Trust(fn func(escrow mesh.Hash, trust int64)) error {
	err := s.view(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketTrust).ForEach(func(k, v []byte) error {
			if len(k) == 32 && len(v) == 16 {
				fn(mesh.Hash(k), int64(number(v[8:])))
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("read what payers are trusted with: %w", err)
	}
	return nil
}

// PutVoucher keeps a voucher, which the caller has verified. One for less than another
// that acknowledges no more receipts is refused with errLess; one that is for as much or
// more, and acknowledges fewer, takes its place. covers are the receipts of another host
// that it is the first of this node's vouchers to be for.
func (s *Store) PutVoucher(v *inference.Voucher, signed *inferencepb.Signed, covers ...Part) error {
	body, err := proto.Marshal(signed)
	if err == nil {
		err = s.put(&put{voucher: &voucherPut{*v, body, covers}})
	}
	if err != nil {
		return fmt.Errorf("keep voucher: %w", err)
	}
	return nil
}

// voucherPut is a voucher on its way to the disk.
type voucherPut struct {
	inference.Voucher
	body   []byte // of the Signed
	covers []Part
}

func (p *voucherPut) account() string { return string(accountKey(&p.Voucher)) }

func accountKey(v *inference.Voucher) []byte {
	return append(ledgerKey(v.Host, v.Epoch), v.Escrow[:]...)
}

func (p *voucherPut) insert(tx *bbolt.Tx) error {
	b, account := tx.Bucket(bucketVouchers), accountKey(&p.Voucher)
	var kept, drop [][]byte
	known := false
	c := b.Cursor()
	for k, old := c.Seek(account); k != nil && bytes.HasPrefix(k, account); k, old = c.Next() {
		if len(k) != voucherLen || len(old) < 8 {
			continue
		}
		switch receipts, amount := number(k[accountLen:]), number(old[:8]); {
		case receipts < p.Receipts && amount > uint64(p.Amount):
			return errLess
		case receipts == p.Receipts && amount >= uint64(p.Amount):
			known = true // or one that came later says more
		case receipts >= p.Receipts && amount <= uint64(p.Amount):
			drop = append(drop, slices.Clone(k))
		default:
			kept = append(kept, slices.Clone(k))
		}
	}
	for _, part := range p.covers {
		if err := tx.Bucket(bucketDue).Delete(slices.Concat(ledgerKey(p.Host, p.Epoch), part[:], p.Host[:])); err != nil {
			return err
		}
	}
	key := append(account, be64(p.Receipts)...)
	if known || len(kept) >= keptVouchers && bytes.Compare(key, kept[0]) < 0 {
		return nil
	}
	if len(kept) >= keptVouchers {
		drop = append(drop, kept[0])
	}
	for _, k := range drop {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return b.Put(key, append(be64(uint64(p.Amount)), p.body...))
}

// PutTaken notes vouchers that their hosts took.
func (s *Store) PutTaken(all []inference.Voucher) error {
	err := s.update(func(tx *bbolt.Tx) error {
		for _, v := range all {
			if err := tx.Bucket(bucketTaken).Put(accountKey(&v), be64(uint64(v.Amount))); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("note which vouchers were taken: %w", err)
	}
	return nil
}

// Taken calls fn with the accounts of which hosts took vouchers, up to these amounts.
func (s *Store) Taken(fn func(v inference.Voucher)) error {
	err := s.view(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketTaken).ForEach(func(k, v []byte) error {
			if len(k) == accountLen && len(v) == 8 {
				fn(inference.Voucher{Host: mesh.AddressOf(k[:32]), Epoch: mesh.Epoch(number(k[32:40])), Escrow: mesh.Hash(k[40:]),
					Amount: mesh.Amount(number(v))})
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("read which vouchers were taken: %w", err)
	}
	return nil
}

// Vouchers calls fn with the vouchers that are kept, of all hosts and epochs; those of an
// account come with ascending receipts.
func (s *Store) Vouchers(fn func(v inference.SignedVoucher)) error { return s.vouchers(nil, fn) }

// VouchersFor does the same for one host and epoch.
func (s *Store) VouchersFor(host mesh.Address, epoch mesh.Epoch, fn func(v inference.SignedVoucher)) error {
	return s.vouchers(ledgerKey(host, epoch), fn)
}

func (s *Store) vouchers(prefix []byte, fn func(v inference.SignedVoucher)) error {
	err := s.view(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketVouchers).Cursor()
		for k, value := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, value = c.Next() {
			v := inference.SignedVoucher{Signed: new(inferencepb.Signed)}
			if len(k) != voucherLen || len(value) < 8 || proto.Unmarshal(value[8:], v.Signed) != nil {
				continue // damaged: the others still count
			}
			v.Host, v.Epoch, v.Escrow = mesh.AddressOf(k[:32]), mesh.Epoch(number(k[32:40])), mesh.Hash(k[40:accountLen])
			v.Amount, v.Receipts = mesh.Amount(number(value[:8])), number(k[accountLen:])
			fn(v)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read vouchers: %w", err)
	}
	return nil
}

// trustKept is for how many epochs more it is remembered what a payer left unpaid.
const trustKept = 100

// Forget drops vouchers and what was due of epochs before this one; the receipts stay.
func (s *Store) Forget(before mesh.Epoch) error {
	err := s.update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketDue, bucketVouchers, bucketTaken, bucketSealed, bucketTrust} {
			b := tx.Bucket(name)
			var old [][]byte
			c := b.Cursor()
			for k, v := c.First(); k != nil; k, v = c.Next() {
				switch {
				case len(k) >= ledgerLen && mesh.Epoch(number(k[32:40])) < before,
					len(k) < ledgerLen && len(v) == 16 && mesh.Epoch(number(v[:8]))+trustKept < before:
					old = append(old, slices.Clone(k))
				}
			}
			for _, k := range old {
				if err := b.Delete(k); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("forget settled epochs: %w", err)
	}
	return nil
}
