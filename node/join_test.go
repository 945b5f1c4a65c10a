package node

import (
	"crypto/ed25519"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus"
	"github.com/gonka-mesh/mesh/internal/keyfile"
	"github.com/gonka-mesh/mesh/node/api"
)

// newSyncNet makes a network of one validator, which began some time ago. home is the validator's.
func newSyncNet(t *testing.T, ago time.Duration) (s *syncNet, home string) {
	t.Helper()
	home = t.TempDir()
	account, err := keyfile.LoadOrCreate(filepath.Join(home, "node.key"), "")
	if err != nil {
		t.Fatal(err)
	}
	key, err := consensus.LoadKey(home, "")
	if err != nil {
		t.Fatal(err)
	}
	self := mesh.AddressOf(account.Public().(ed25519.PublicKey))
	doc, err := NewDevGenesis(time.Now().Add(-ago), DevNetwork{
		Hosts: []DevHost{{Address: self, Key: key}}, Client: mesh.Address{9}, EpochBlocks: 60, Block: 250 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	s = &syncNet{t: t, every: 20, genesis: filepath.Join(t.TempDir(), "genesis.json")}
	if err := os.WriteFile(s.genesis, doc, 0o600); err != nil {
		t.Fatal(err)
	}
	return s, home
}

// at60 makes the validator's first 60 blocks quickly, and then goes on at a pace at which a
// snapshot stays for some seconds.
func (s *syncNet) at60(home string) (*Node, api.Ready) {
	s.t.Helper()
	fast, _, stop := s.run(home, 20)
	s.reach(fast, 60)
	stop()
	first, ready, _ := s.run(home, 250)
	s.reach(first, 61)
	return first, ready
}

// until waits for what a node says of its ledger.
func (s *syncNet) until(n *Node, what string) {
	s.t.Helper()
	var said string
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		now, err := n.LedgerStatus(s.t.Context())
		if said = fmt.Sprint(now.Doing, now.Error, err); strings.Contains(said, what) {
			return
		}
	}
	s.t.Fatalf("the node says %q, and not %q", said, what)
}

// TestJoinWithoutSnapshots: a node that is far behind finds no snapshot and tries the blocks,
// from the first on.
func TestJoinWithoutSnapshots(t *testing.T) {
	t.Parallel()
	s, home := newSyncNet(t, 24*time.Hour)
	s.every = 1 << 40 // of the validator: none
	first, ready, _ := s.run(home, 20)
	s.reach(first, 60)
	s.every, s.patience = 20, 8*time.Second
	late, _, stop := s.run(t.TempDir(), 250, ready.Addrs...)
	s.until(late, "asking peers for a snapshot")
	s.reach(late, 70)
	full, err := late.chain.running()
	if err != nil {
		t.Fatal(err)
	}
	if now, err := full.Status(); err != nil || now.Oldest != 1 {
		t.Errorf("its oldest block is %d, %v", now.Oldest, err)
	}
	stop()
}

// TestJoinWaits: a new node that knows nobody says so and waits, rather than that it goes on
// from blocks that nobody verified; it follows when peers come.
func TestJoinWaits(t *testing.T) {
	t.Parallel()
	s, home := newSyncNet(t, 24*time.Hour)
	first, ready := s.at60(home)
	late, _, stop := s.run(t.TempDir(), 250)
	s.until(late, "waiting for a peer that shows how far the ledger is")
	if _, err := late.core.Net.Connect(t.Context(), ready.Addrs[0]); err != nil {
		t.Fatal(err)
	}
	head, err := first.LedgerStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.reach(late, head.Height)
	stop()
}

// TestOldGenesis: a node that joins a network older than its trusting period says that it
// needs a block to trust, and follows with one; with a false one it does not.
func TestOldGenesis(t *testing.T) {
	t.Parallel()
	s, home := newSyncNet(t, devTrust+24*time.Hour)
	first, ready := s.at60(home)
	plain, _, stop := s.run(t.TempDir(), 250, ready.Addrs...)
	s.until(plain, "give a newer checkpoint with --trust HEIGHT:HASH")
	stop()
	full, err := first.chain.running()
	if err != nil {
		t.Fatal(err)
	}
	b, err := full.Block(50)
	if err != nil {
		t.Fatal(err)
	}
	s.trust = "50:" + mesh.Hash(b.Hash()).String()
	trusting := t.TempDir()
	joined, _, stop := s.run(trusting, 250, ready.Addrs...)
	s.reach(joined, 60)
	stop()
	s.trust = "50:" + mesh.Hash{1}.String()
	other, _, stop := s.run(t.TempDir(), 250, ready.Addrs...)
	s.until(other, "than the checkpoint that was given")
	stop()
	s.trust = "61:" + mesh.Hash{1}.String()
	again, _, stop := s.run(trusting, 250, ready.Addrs...)
	s.until(again, "the checkpoint that is trusted: this is not the same ledger")
	stop()
}
