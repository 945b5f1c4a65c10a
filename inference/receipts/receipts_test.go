package receipts

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

const network = mesh.NetworkID("dev00000000")

func testKey(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, 32))
}

func receipt(t testing.TB, host byte, request mesh.Hash, choice, first, end uint32, finish inference.FinishReason) *inferencepb.Signed {
	t.Helper()
	h := mesh.HashOf([]byte("h"))
	s, err := inference.SignReceipt(network, testKey(host), &inferencepb.Receipt{
		Request: request[:], Model: h[:], Choice: choice, First: first, End: end, OutputTokens: end - first,
		ChainBefore: h[:], ChainAfter: h[:], Finish: string(finish),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func open(t testing.TB, cfg Config) *Store {
	t.Helper()
	cfg.Network = network
	if cfg.Path == "" {
		cfg.Path = filepath.Join(t.TempDir(), "receipts.db")
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func describe(list []*inference.Receipt) string {
	var parts []string
	for _, r := range list {
		parts = append(parts, fmt.Sprintf("%d:%d-%d/%s", r.Pb.GetChoice(), r.Before.Next, r.After.Next, r.Finish))
	}
	return strings.Join(parts, " ")
}

func TestPutGetList(t *testing.T) {
	s := open(t, Config{})
	a, b := mesh.HashOf([]byte("a")), mesh.HashOf([]byte("b"))
	for _, p := range []struct {
		request mesh.Hash
		signed  *inferencepb.Signed
	}{
		{a, receipt(t, 1, a, 0, 0, 5, "")},
		{a, receipt(t, 2, a, 0, 9, 20, "eos")},
		{b, receipt(t, 1, b, 0, 0, 3, "stop")},
		{a, receipt(t, 1, a, 0, 0, 9, "")},
		{a, receipt(t, 1, a, 1, 0, 2, "length")},
		{a, receipt(t, 1, a, 0, 0, 9, "aborted")}, // as long, with a finish
		{a, receipt(t, 1, a, 0, 0, 7, "eos")},     // shorter: it is late
		{a, receipt(t, 1, a, 0, 0, 9, "")},        // it is late too
	} {
		if err := s.Put(p.request, p.signed); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Get(a)
	if err != nil {
		t.Fatal(err)
	}
	if want := "0:0-9/aborted 0:9-20/eos 1:0-2/length"; describe(got) != want {
		t.Errorf("got %s, want %s", describe(got), want)
	}
	list, err := s.List(10)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || list[0].Request != a || list[1].Request != b || len(list[0].Receipts) != 3 {
		t.Errorf("list %v", list)
	}
	if list, _ = s.List(1); len(list) != 1 {
		t.Errorf("a list of one has %d", len(list))
	}
	if got, err := s.Get(mesh.HashOf([]byte("c"))); err != nil || len(got) != 0 {
		t.Errorf("an unknown request: %v, %v", got, err)
	}
}

func TestPutRefusesForgery(t *testing.T) {
	s := open(t, Config{})
	a := mesh.HashOf([]byte("a"))
	signed := receipt(t, 1, a, 0, 0, 5, "eos")
	if err := s.Put(mesh.HashOf([]byte("b")), signed); err == nil {
		t.Error("a receipt was kept under another request")
	}
	signed.Signature[3] ^= 1
	if err := s.Put(a, signed); err == nil {
		t.Error("a receipt with a broken signature was kept")
	}
}

func TestRetention(t *testing.T) {
	one := receipt(t, 1, mesh.HashOf([]byte{0}), 0, 0, 5, "eos")
	for _, tt := range []struct {
		name string
		cfg  Config
	}{
		{"count", Config{MaxCount: 10}},
		{"bytes", Config{MaxBytes: int64(10*(len(one.Body)+len(one.Signature)+5) + 20)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, tt.cfg)
			for i := range 25 {
				r := mesh.HashOf([]byte{byte(i)})
				if err := s.Put(r, receipt(t, 1, r, 0, 0, 5, "eos")); err != nil {
					t.Fatal(err)
				}
			}
			list, err := s.List(100)
			if err != nil {
				t.Fatal(err)
			}
			if len(list) != 10 || list[0].Request != mesh.HashOf([]byte{24}) || list[9].Request != mesh.HashOf([]byte{15}) {
				t.Errorf("%d are left", len(list))
			}
		})
	}
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "receipts.db")
	s := open(t, Config{Path: path})
	a := mesh.HashOf([]byte("a"))
	if err := s.Put(a, receipt(t, 1, a, 0, 0, 5, "eos")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(a, receipt(t, 2, a, 0, 0, 5, "eos")); err == nil {
		t.Error("a closed store took a receipt")
	}
	if _, err := Open(Config{Network: "main00000000", Path: path}); err == nil {
		t.Error("the store of another network was opened")
	}
	s = open(t, Config{Path: path})
	if got, _ := s.Get(a); len(got) != 1 {
		t.Errorf("%d receipts after reopening", len(got))
	}
	s.Close()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(metaVersion, be64(version+1)) }); err != nil {
		t.Fatal(err)
	}
	db.Close()
	if _, err := Open(Config{Network: network, Path: path}); err == nil {
		t.Error("a store of a newer version was opened")
	}
}

func TestConcurrentPuts(t *testing.T) {
	s := open(t, Config{})
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			r := mesh.HashOf([]byte{byte(i)})
			if err := s.Put(r, receipt(t, 1, r, 0, 0, 5, "eos")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if list, _ := s.List(1000); len(list) != 200 {
		t.Errorf("%d of 200 were kept", len(list))
	}
}

// TestKilled starts a process that keeps receipts and says so, kills it, and looks
// for all that it had said.
func TestKilled(t *testing.T) {
	if path := os.Getenv("RECEIPTS_CHILD"); path != "" {
		s, err := Open(Config{Network: network, Path: path, MaxCount: 1000})
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; ; i++ {
			r := mesh.HashOf(fmt.Append(nil, i))
			if err := s.Put(r, receipt(t, 1, r, 0, 0, 5, "eos")); err != nil {
				t.Fatal(err)
			}
			fmt.Printf("kept %d\n", i)
		}
	}
	path := filepath.Join(t.TempDir(), "receipts.db")
	for round := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), "RECEIPTS_CHILD="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		last := -1
		for lines := bufio.NewScanner(out); last < 20+7*round && lines.Scan(); {
			fmt.Sscanf(lines.Text(), "kept %d", &last)
		}
		cmd.Process.Kill()
		cmd.Wait()
		s, err := Open(Config{Network: network, Path: path})
		if err != nil {
			t.Fatal(err)
		}
		for i := range last + 1 {
			if got, err := s.Get(mesh.HashOf(fmt.Append(nil, i))); err != nil || len(got) != 1 {
				t.Fatalf("receipt %d after the kill: %v, %v", i, got, err)
			}
		}
		s.Close()
	}
}

// TestFind finds requests by how their IDs begin.
func TestFind(t *testing.T) {
	s := open(t, Config{})
	a, b, c := mesh.Hash{0xab, 0xcd, 0x10}, mesh.Hash{0xab, 0xcd, 0x1f}, mesh.Hash{0xab, 0xce}
	for _, id := range []mesh.Hash{a, b, c} {
		for choice := range uint32(2) {
			if err := s.Put(id, receipt(t, 1, id, choice, 0, 5, "eos")); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		prefix string
		want   []mesh.Hash
	}{
		{"abcd10", []mesh.Hash{a}}, {"abcd1", []mesh.Hash{a, b}}, {"abc", []mesh.Hash{a, b}}, {"abce", []mesh.Hash{c}},
		{c.String(), []mesh.Hash{c}}, {"abd", nil}, {"ff", nil}, {"00", nil},
	} {
		if got, err := s.Find(tt.prefix, 2); err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, %v, want %v", tt.prefix, got, err, tt.want)
		}
	}
	for _, bad := range []string{"xyz", "../..", c.String() + "00"} {
		if got, err := s.Find(bad, 2); len(got) > 0 {
			t.Errorf("%s: %v, %v", bad, got, err)
		}
	}
}
