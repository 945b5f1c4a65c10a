package receipts

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
)

// filled makes a file with some hundred receipts and returns its bytes.
func filled(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "receipts.db")
	s := open(t, Config{Path: path})
	for i := range 300 {
		r := mesh.HashOf([]byte{byte(i), byte(i >> 8)})
		if err := s.Put(r, receipt(t, 1, r, 0, 0, 5, "eos")); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// use does what a node does with a store. That it returns is what counts.
func use(t *testing.T, s *Store) (errs error) {
	_, err := s.List(1000)
	errs = errors.Join(errs, err)
	errs = errors.Join(errs, s.AllDue(func(Due) {}), s.Vouchers(func(inference.SignedVoucher) {}), s.Trust(func(mesh.Hash, int64) {}))
	for i := range 3 {
		r := mesh.HashOf([]byte{byte(i), 200})
		errs = errors.Join(errs, s.Put(r, receipt(t, 1, r, 0, 0, 5, "eos")))
	}
	return errors.Join(errs, s.Close())
}

func wantDamage(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, errDamaged) || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("want damage and what to do, got: %v", err)
	}
}

// TestCutFile: a file that was cut is not opened, and no part of it ends the process.
func TestCutFile(t *testing.T) {
	whole := filled(t)
	for _, n := range []int{1, 100, 4096, 8192, 12288, 16384, 20000, 32768} {
		path := filepath.Join(t.TempDir(), "receipts.db")
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(Config{Network: network, Path: path})
		wantDamage(t, err)
	}
}

// TestGarbledFile: pages of rubbish, or of zeros, end neither the start nor what comes
// after it.
func TestGarbledFile(t *testing.T) {
	whole := filled(t)
	refused := 0
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 1))
		b := append([]byte(nil), whole...)
		from := rng.IntN(len(b))
		for i := from; i < min(len(b), from+len(b)/20); i++ {
			if b[i] = 0; seed%2 == 0 {
				b[i] = byte(rng.Uint32())
			}
		}
		path := filepath.Join(t.TempDir(), "receipts.db")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(Config{Network: network, Path: path})
		if err != nil {
			refused++
			wantDamage(t, err)
			continue
		}
		if err := use(t, s); err != nil {
			t.Logf("seed %d: %v", seed, err)
		}
	}
	if refused == 0 {
		t.Error("no damage was found at the start")
	}
}

// TestDamagedWhileOpen: a file that goes bad under a node is an error of what it does then.
func TestDamagedWhileOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "receipts.db")
	if err := os.WriteFile(path, filled(t), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Config{Network: network, Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 8192); err != nil {
		t.Fatal(err)
	}
	_, err = s.List(10)
	wantDamage(t, err)
	wantDamage(t, use(t, s))
}
