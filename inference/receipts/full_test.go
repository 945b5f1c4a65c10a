package receipts

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
)

// limitFiles bounds the size of files that this process writes, as a full disk does.
func limitFiles(t *testing.T, size uint64) (lift func()) {
	t.Helper()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	limit := old
	limit.Cur = size
	set := func(l syscall.Rlimit) {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &l); err != nil {
			t.Fatal(err)
		}
	}
	emptyTestLog()
	set(limit)
	return func() { set(old) }
}

// emptyTestLog has the testing package write what it notes of the environment and of
// files, for its cache, which would not find room under a limit.
func emptyTestLog() {
	log := flag.Lookup("test.testlogfile").Value.String()
	size := func() int64 {
		info, err := os.Stat(log)
		if err != nil {
			return -1
		}
		return info.Size()
	}
	for was := size(); was >= 0 && size() == was; {
		os.Getenv("a name that takes some room in the log of this test")
	}
}

// TestFullDisk fills the disk: Put says so, what was kept can be read, and nothing is
// lost when there is room again.
func TestFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "receipts.db")
	s := open(t, Config{Path: path})
	id := func(i int) mesh.Hash { return mesh.HashOf(binary.BigEndian.AppendUint32(nil, uint32(i))) }
	put := func(i int) error {
		return s.Put(id(i), receipt(t, 1, id(i), 0, 0, 1, inference.FinishEOS))
	}
	check := func(n int) {
		t.Helper()
		for i := range n {
			if got, err := s.Get(id(i)); err != nil || len(got) != 1 {
				t.Fatalf("receipt %d of %d: %d found, %v", i, n, len(got), err)
			}
		}
	}
	const before = 300 // so that the file is larger than the log of this test, which grows under the limit
	for i := range before {
		if err := put(i); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	lift := limitFiles(t, uint64(info.Size()))
	kept, failed := before, 0
	for i := before; failed < 20 && i < 2000; i++ {
		switch err := put(i); {
		case err != nil && !errors.Is(err, inference.ErrHeld):
			lift()
			t.Fatal(err)
		case err != nil:
			failed++
		case failed > 0:
			lift()
			t.Fatal("a receipt was kept on a full disk")
		default:
			kept++
		}
	}
	check(kept)
	lift()
	if failed != 20 {
		t.Fatalf("the disk was never full: %d kept", kept)
	}
	if err := put(kept + failed); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	check(kept + failed + 1)

	// Vouchers wait too, and of those of an account the one for most.
	host := hostOf(t, receipt(t, 1, id(0), 0, 0, 1, inference.FinishEOS))
	lift = limitFiles(t, 1)
	for i, c := range []struct {
		amount mesh.Amount
		want   error
	}{{10, inference.ErrHeld}, {20, inference.ErrHeld}, {5, errLess}} {
		if err := voucher(t, s, host, 7, "e", c.amount, uint64(i+1)); !errors.Is(err, c.want) {
			lift()
			t.Fatalf("voucher %d on a full disk: %v, want %v", i, err, c.want)
		}
	}
	lift()
	if err := voucher(t, s, host, 7, "f", 1, 1); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	said := ""
	if err := s.VouchersFor(host, 7, func(v inference.SignedVoucher) { said += fmt.Sprintf("%d/%d ", v.Amount, v.Receipts) }); err != nil {
		t.Fatal(err)
	}
	if said != "20/2 1/1 " && said != "1/1 20/2 " {
		t.Errorf("vouchers: %s", said)
	}

	// Those that still wait at the end are written then.
	lift = limitFiles(t, 1)
	if err := put(kept + failed + 1); err == nil {
		t.Error("a receipt was kept on a full disk")
	}
	lift()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Path: path})
	check(kept + failed + 2)

	// What is lost in the end is told.
	lift = limitFiles(t, 1)
	if err := s.Put(id(kept+failed+2), receipt(t, 1, id(kept+failed+2), 0, 0, 1, inference.FinishEOS)); !errors.Is(err, inference.ErrHeld) {
		t.Errorf("a receipt on a full disk: %v", err)
	}
	err = s.Close()
	lift()
	if err == nil || !strings.Contains(err.Error(), "1 receipts and vouchers") {
		t.Errorf("closed on a full disk: %v", err)
	}
}

// TestHeldForLong: of more than the memory holds the oldest receipts go, no voucher, and what
// went is told in the end.
func TestHeldForLong(t *testing.T) {
	path := filepath.Join(t.TempDir(), "receipts.db")
	s := open(t, Config{Path: path})
	s.maxHeld = 3
	id := func(i int) mesh.Hash { return mesh.HashOf([]byte{byte(i)}) }
	host := hostOf(t, receipt(t, 1, id(0), 0, 0, 1, inference.FinishEOS))
	lift := limitFiles(t, 1)
	for _, account := range []string{"e", "f"} {
		if err := voucher(t, s, host, 7, account, 1, 1); !errors.Is(err, inference.ErrHeld) {
			lift()
			t.Fatalf("a voucher on a full disk: %v", err)
		}
	}
	for i := range 5 {
		if err := s.Put(id(i), receipt(t, 1, id(i), 0, 0, 1, inference.FinishEOS)); !errors.Is(err, inference.ErrHeld) {
			lift()
			t.Fatalf("a receipt on a full disk: %v", err)
		}
	}
	lift()
	if err := s.Close(); err == nil || !strings.HasPrefix(err.Error(), "2 receipts and vouchers") {
		t.Errorf("closed: %v", err)
	}
	s = open(t, Config{Path: path})
	kept := ""
	for i := range 5 {
		got, err := s.Get(id(i))
		if err != nil {
			t.Fatal(err)
		}
		kept += fmt.Sprint(len(got))
	}
	vouchers := 0
	if err := s.VouchersFor(host, 7, func(inference.SignedVoucher) { vouchers++ }); err != nil {
		t.Fatal(err)
	}
	if kept != "00111" || vouchers != 2 {
		t.Errorf("receipts %s and %d vouchers are kept", kept, vouchers)
	}
}

// TestHeldCovers: a voucher in the place of another one that waited is for its receipts, too.
func TestHeldCovers(t *testing.T) {
	of := func(amount mesh.Amount, part byte) *put {
		return &put{voucher: &voucherPut{inference.Voucher{Amount: amount}, nil, []Part{{part}}}}
	}
	for _, amounts := range [][2]mesh.Amount{{1, 2}, {2, 1}} {
		held, lost := worthHolding([]*put{of(amounts[0], 1), of(amounts[1], 2)}, 0)
		if len(held) != 1 || lost != 0 || held[0].voucher.Amount != 2 || len(held[0].voucher.covers) != 2 {
			t.Errorf("%v: %d held, %d lost", amounts, len(held), lost)
		}
	}
}
