package receipts

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

var payer = testKey(200)

func paid(t testing.TB, host byte, epoch uint64, escrow, request string, price uint64, finish inference.FinishReason) (mesh.Hash, *inferencepb.Signed) {
	t.Helper()
	h, e, r := mesh.HashOf([]byte("h")), mesh.HashOf([]byte(escrow)), mesh.HashOf([]byte(request))
	s, err := inference.SignReceipt(network, testKey(host), &inferencepb.Receipt{
		Request: r[:], Model: h[:], End: 5, OutputTokens: 5, ChainBefore: h[:], ChainAfter: h[:],
		Finish: string(finish), Escrow: e[:], Epoch: epoch, Price: price,
	})
	if err != nil {
		t.Fatal(err)
	}
	return r, s
}

func hostOf(t testing.TB, s *inferencepb.Signed) mesh.Address {
	t.Helper()
	r, err := inference.ParseReceipt(network, s)
	if err != nil {
		t.Fatal(err)
	}
	return r.Host
}

func voucher(t testing.TB, s *Store, host mesh.Address, epoch mesh.Epoch, escrow string, amount mesh.Amount, receipts uint64) error {
	t.Helper()
	v := &inference.Voucher{Escrow: mesh.HashOf([]byte(escrow)), Host: host, Epoch: epoch, Amount: amount, Receipts: receipts}
	signed, err := inference.SignVoucher(network, payer, v)
	if err != nil {
		t.Fatal(err)
	}
	return s.PutVoucher(v, signed)
}

// TestDueOutlivesReceipts: what an escrow pays is due although receipts make room, after a
// restart too, and once for each part of an answer.
func TestDueOutlivesReceipts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "receipts.db")
	s := open(t, Config{Path: path, MaxCount: 2})
	var host mesh.Address
	for i := range 5 {
		r, signed := paid(t, 1, 7, "e", fmt.Sprint("r", i), uint64(10+i), "eos")
		host = hostOf(t, signed)
		if err := s.Put(r, signed); err != nil {
			t.Fatal(err)
		}
		if err := s.Put(r, signed); err != nil { // the same again
			t.Fatal(err)
		}
	}
	for _, other := range []*inferencepb.Signed{
		second(paid(t, 1, 8, "e", "next epoch", 1, "eos")), second(paid(t, 2, 7, "e", "other host", 1, "eos")),
		second(paid(t, 1, 7, "e", "open", 1, "")), second(paid(t, 1, 7, "e", "free", 0, "eos")),
	} {
		parsed, err := inference.ParseReceipt(network, other)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Put(parsed.Request, other); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Path: path, MaxCount: 2})
	due, err := s.Due(host, 7)
	if err != nil {
		t.Fatal(err)
	}
	sum := mesh.Amount(0)
	for _, d := range due {
		sum += d.Price
		if d.Host != host || d.Epoch != 7 || d.Escrow != mesh.HashOf([]byte("e")) || d.Hash.IsZero() {
			t.Errorf("due: %+v", d)
		}
	}
	if len(due) != 5 || sum != 60 {
		t.Errorf("%d are due, for %d; want 5 for 60", len(due), sum)
	}
	all := 0
	if err := s.AllDue(func(Due) { all++ }); err != nil || all != 7 {
		t.Errorf("%d are due in all, %v; want 7", all, err)
	}
}

func second(_ mesh.Hash, s *inferencepb.Signed) *inferencepb.Signed { return s }

// TestSeal: what is sealed stays as it is.
func TestSeal(t *testing.T) {
	s := open(t, Config{})
	put := func(escrow, request string) mesh.Address {
		r, signed := paid(t, 1, 7, escrow, request, 10, "eos")
		if err := s.Put(r, signed); err != nil {
			t.Fatal(err)
		}
		return hostOf(t, signed)
	}
	host := put("good", "1")
	put("bad", "2")
	good := mesh.HashOf([]byte("good"))
	if err := s.Seal(host, 7, func(e mesh.Hash) bool { return e == good }, map[mesh.Hash]int64{good: 5, mesh.HashOf([]byte("bad")): -7}); err != nil {
		t.Fatal(err)
	}
	if sealed, err := s.Sealed(host); err != nil || len(sealed) != 1 || !sealed[7] {
		t.Errorf("sealed: %v, %v", sealed, err)
	}
	put("good", "3") // late
	if err := s.Seal(host, 7, func(mesh.Hash) bool { return false }, map[mesh.Hash]int64{good: 6}); err != nil {
		t.Fatal(err)
	}
	if due, err := s.Due(host, 7); err != nil || len(due) != 1 || due[0].Escrow != good {
		t.Errorf("due: %+v, %v", due, err)
	}
	trust := func() (out string) {
		err := s.Trust(func(e mesh.Hash, n int64) { out += fmt.Sprint(e == good, n, " ") })
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if err := s.Forget(8); err != nil {
		t.Fatal(err)
	}
	if due, err := s.Due(host, 7); err != nil || len(due) != 0 {
		t.Errorf("after it is forgotten: %+v, %v", due, err)
	}
	if got := trust(); got != "true 5 false -7 " && got != "false -7 true 5 " {
		t.Errorf("trust: %s", got)
	}
	if err := s.Forget(8 + trustKept); err != nil {
		t.Fatal(err)
	}
	if got := trust(); got != "" {
		t.Errorf("trust long after: %s", got)
	}
}

// TestCovered: what another host is due is what no voucher is for, whatever the disk does
// meanwhile; what this host is due stays.
func TestCovered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "receipts.db")
	s := open(t, Config{Path: path})
	var host mesh.Address
	part := make(map[string]Part)
	for name, finish := range map[string]inference.FinishReason{"1": "eos", "2": "aborted", "3": "cancelled", "4": "length"} {
		r, signed := paid(t, 1, 7, "e", name, 10, finish)
		if err := s.Put(r, signed); err != nil {
			t.Fatal(err)
		}
		parsed, err := inference.ParseReceipt(network, signed)
		if err != nil {
			t.Fatal(err)
		}
		host, part[name] = parsed.Host, PartOf(parsed)
	}
	v := &inference.Voucher{Escrow: mesh.HashOf([]byte("e")), Host: host, Epoch: 7, Amount: 20, Receipts: 1}
	signed, err := inference.SignVoucher(network, payer, v)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.PutVoucher(v, signed, part["1"], part["2"]); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.PutTaken([]inference.Voucher{*v}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Path: path})
	due, err := s.Due(host, 7)
	if err != nil || len(due) != 2 {
		t.Fatalf("due: %+v, %v", due, err)
	}
	for _, d := range due {
		if d.Whole != (d.Part == part["4"]) || d.Part != part["3"] && d.Part != part["4"] {
			t.Errorf("due: %+v", d)
		}
	}
	taken := 0
	err = s.Taken(func(got inference.Voucher) {
		taken++
		if got.Escrow != v.Escrow || got.Host != v.Host || got.Epoch != v.Epoch || got.Amount != v.Amount {
			t.Errorf("taken: %+v", got)
		}
	})
	if err != nil || taken != 1 {
		t.Errorf("%d were taken, %v", taken, err)
	}
}

// TestVouchers: no voucher takes back what another promised, whatever the order in which
// they come, and the last ones are kept.
func TestVouchers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "receipts.db")
	s := open(t, Config{Path: path})
	host := mesh.AddressOf(testKey(1).Public().(ed25519.PublicKey))
	for _, c := range []struct {
		amount   mesh.Amount
		receipts uint64
		want     error
	}{
		{10, 1, nil}, {30, 3, nil}, {20, 2, nil}, // one was late
		{5, 4, errLess}, {29, 4, errLess},
		{31, 2, nil}, {31, 3, nil}, // recounted: more for fewer
		{35, 3, nil}, {31, 3, nil}, // the part of a host that was lost, and what came before it
		{35, 4, nil},
	} {
		if err := voucher(t, s, host, 7, "e", c.amount, c.receipts); !errors.Is(err, c.want) {
			t.Errorf("%d for %d: %v, want %v", c.amount, c.receipts, err, c.want)
		}
	}
	if err := voucher(t, s, host, 8, "e", 1, 1); err != nil {
		t.Errorf("another epoch: %v", err)
	}
	said := func() (out string) {
		if err := s.VouchersFor(host, 7, func(v inference.SignedVoucher) { out += fmt.Sprintf("%d/%d ", v.Amount, v.Receipts) }); err != nil {
			t.Fatal(err)
		}
		return out
	}
	if got := said(); got != "10/1 31/2 35/3 35/4 " {
		t.Errorf("kept: %s", got)
	}
	for i := uint64(5); i < 5+keptVouchers; i++ {
		if err := voucher(t, s, host, 7, "e", mesh.Amount(i*10), i); err != nil {
			t.Fatal(err)
		}
	}
	if err := voucher(t, s, host, 7, "e", 11, 1); err != nil { // long superseded
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Path: path})
	count, last := 0, inference.SignedVoucher{}
	if err := s.VouchersFor(host, 7, func(v inference.SignedVoucher) { count, last = count+1, v }); err != nil {
		t.Fatal(err)
	}
	if count != keptVouchers || last.Receipts != 4+keptVouchers {
		t.Errorf("%d are kept, the last for %d receipts", count, last.Receipts)
	}
	if got, err := inference.ParseVoucher(network, mesh.AddressOf(payer.Public().(ed25519.PublicKey)), last.Signed); err != nil || *got != last.Voucher {
		t.Errorf("read back %+v, %v", got, err)
	}
}

// TestOpenOld opens a file from before there were escrows.
func TestOpenOld(t *testing.T) {
	path := filepath.Join(t.TempDir(), "receipts.db")
	s := open(t, Config{Path: path})
	r, signed := paid(t, 1, 7, "e", "1", 10, "eos")
	if err := s.Put(r, signed); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return errors.Join(tx.DeleteBucket(bucketTaken), tx.DeleteBucket(bucketTrust), tx.DeleteBucket(bucketDue), tx.DeleteBucket(bucketSealed), tx.DeleteBucket(bucketVouchers))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Path: path})
	if got, err := s.Get(r); err != nil || len(got) != 1 {
		t.Errorf("receipts: %v, %v", got, err)
	}
	r, signed = paid(t, 1, 7, "e", "2", 10, "eos")
	if err := s.Put(r, signed); err != nil {
		t.Fatal(err)
	}
	if due, err := s.Due(hostOf(t, signed), 7); err != nil || len(due) != 1 {
		t.Errorf("due: %+v, %v", due, err)
	}
}
