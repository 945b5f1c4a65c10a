package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh"
)

// offClock is a clock that a test sets off.
type offClock struct{ by atomic.Int64 }

func (o *offClock) now() time.Time           { return time.Now().Add(time.Duration(o.by.Load())) }
func (o *offClock) set(d time.Duration)      { o.by.Store(int64(d)) }
func (node *toyNode) problem() (text string) { s, _ := node.Status(); return s.Problem }

// votes reports whether a node's vote is in the commit of the block before the last.
func (n *toyNet) votes(of, seenBy *toyNode) bool {
	commit, err := seenBy.Commit(seenBy.height() - 1)
	if err != nil {
		return false
	}
	for _, s := range commit.Signatures {
		if string(s.ValidatorAddress) == string(of.self) {
			return true
		}
	}
	return false
}

// TestClockOff: a validator whose clock is off by an hour casts no vote and says why;
// the others go on; with the clock set right it votes again.
func TestClockOff(t *testing.T) {
	for name, off := range map[string]time.Duration{"ahead": time.Hour, "behind": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			clock := &offClock{}
			clock.set(off)
			n := newToyNet(t, 4, 0, func(i int, cfg *Config) {
				if i == 3 {
					cfg.now = clock.now
				}
			})
			n.genesis.GenesisTime = time.Now().Add(-2 * time.Hour)
			n.start()
			late := n.nodes[3]
			n.reach(4, n.nodes[:3]...)
			eventually(t, "the node says that its clock is off", func() bool { return strings.Contains(late.problem(), ErrClock.Error()) })
			at := n.nodes[0].height()
			n.reach(at+3, n.nodes[:3]...)
			for h := at + 1; h < at+3; h++ {
				commit, err := n.nodes[0].Commit(h)
				if err != nil {
					t.Fatal(err)
				}
				for _, s := range commit.Signatures {
					if string(s.ValidatorAddress) == string(late.self) {
						t.Errorf("a vote of %s is in block %d", s.Timestamp, h)
					}
				}
			}
			for _, node := range n.nodes[:3] {
				if p := node.problem(); p != "" {
					t.Errorf("node %d, whose clock is right: %s", node.i, p)
				}
			}
			clock.set(0)
			eventually(t, "the node votes again", func() bool { return n.votes(late, n.nodes[0]) })
		})
	}
}

// TestSkew has the cases of the decision.
func TestSkew(t *testing.T) {
	base := time.Now()
	// Peers 0 to 3 are validators, 0 of a tenth of the power, the others and this one of
	// less than a quarter. Those after them are none.
	power := []uint64{10, 22, 23, 22}
	for _, c := range []struct {
		name  string
		block time.Duration // of the last block, against this clock
		peers []time.Duration
		off   bool
	}{
		{"live chain", -time.Second, nil, false},
		{"live chain, lying peers", -time.Second, []time.Duration{time.Hour, time.Hour, time.Hour}, false},
		{"block in the future", time.Minute, nil, true},
		{"block in the future, peers agree with this clock", time.Minute, []time.Duration{0, 0, 0}, true},
		{"block a little in the future", 20 * time.Second, nil, false},
		{"chain stood still", -time.Hour, []time.Duration{0, time.Second, -time.Second}, false},
		{"chain stood still, nobody answers", -time.Hour, nil, false},
		{"clock ahead", -time.Hour, []time.Duration{-time.Hour, -time.Hour, -time.Hour}, true},
		{"one of three peers is off", -time.Hour, []time.Duration{0, 0, time.Hour}, false},
		{"one of two peers is off", -time.Hour, []time.Duration{0, time.Hour}, false},
		{"one peer decides nothing", -time.Hour, []time.Duration{time.Hour}, false},
		{"two validators with a third of the power are off", -time.Hour, []time.Duration{time.Hour, time.Hour, 0, 0}, false},
		{"two with more of it", -time.Hour, []time.Duration{0, time.Hour, time.Hour, 0}, true},
		{"two to different sides", -time.Hour, []time.Duration{0, time.Hour, -time.Hour, 0}, false},
		{"any number of peers that are no validators", -time.Hour, []time.Duration{0, 0, 0, 0, time.Hour, time.Hour, time.Hour, time.Hour, time.Hour, time.Hour}, false},
	} {
		n := newToyNet(t, 1, 0, nil)
		cfg := n.config(n.nodes[0])
		cfg.Transport, cfg.Comet = TransportComet, &Comet{}
		cfg.now = func() time.Time { return base }
		chain, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		chain.skew.saw(base.Add(c.block))
		for i, d := range c.peers {
			chain.skew.said[[32]byte{byte(i)}] = answer{d, time.Now(), true}
		}
		chain.skew.power = map[mesh.Address]uint64{{255}: 23}
		for i, p := range power {
			chain.skew.power[[32]byte{byte(i)}] = p
		}
		if err := chain.skew.check(); errors.Is(err, ErrClock) != c.off {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestAsksValidators: a full node that is no validator is not asked for the time.
func TestAsksValidators(t *testing.T) {
	n := newToyNet(t, 3, 1, nil)
	n.start()
	n.reach(2, n.nodes...)
	asked := func(of *toyNode) []mesh.Address {
		s := of.skew
		s.mu.Lock()
		defer s.mu.Unlock()
		return slices.Collect(maps.Keys(s.said))
	}
	eventually(t, "the validators are asked", func() bool { return len(asked(n.nodes[0])) == 2 && len(asked(n.nodes[3])) == 3 })
	if slices.Contains(asked(n.nodes[0]), n.nodes[3].host.Address()) {
		t.Error("one that does not validate was asked")
	}
}

// TestSkewFollowsBlocks: where blocks are slow, a last block that is as old as the next
// one may be late is no sign of a wrong clock.
func TestSkewFollowsBlocks(t *testing.T) {
	for commit, want := range map[time.Duration]time.Duration{0: 30 * time.Second, 5 * time.Second: 30 * time.Second, time.Minute: 4 * time.Minute} {
		n := newToyNet(t, 1, 0, func(_ int, cfg *Config) { cfg.Commit = commit })
		cfg := n.config(n.nodes[0])
		cfg.Transport, cfg.Comet = TransportComet, &Comet{}
		if err := cfg.complete(); err != nil || cfg.clockSkew() != want {
			t.Errorf("a block each %s: a clock may be off by %s, want %s: %v", commit, cfg.clockSkew(), want, err)
		}
	}
}

// TestStartsBehindItsOwnBlocks: a clock that was set back shows at the start.
func TestStartsBehindItsOwnBlocks(t *testing.T) {
	clock := &offClock{}
	n := newToyNet(t, 1, 0, func(i int, cfg *Config) { cfg.now = clock.now })
	n.genesis.GenesisTime = time.Now().Add(-2 * time.Hour)
	n.start()
	n.reach(2, n.nodes[0])
	n.nodes[0].Stop()
	clock.set(-time.Hour)
	c, err := New(n.config(n.nodes[0]))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); !errors.Is(err, ErrClock) {
		t.Errorf("started with a clock an hour behind: %v", err)
		c.Stop()
	}
}

// TestDiskFull: below the floor the node stops voting, below half of it the chain ends
// with an error; and it does not start with a full disk.
func TestDiskFull(t *testing.T) {
	var free atomic.Uint64
	free.Store(1 << 30)
	n := newToyNet(t, 4, 0, func(i int, cfg *Config) {
		if i == 3 {
			cfg.DiskFloor = 256 << 20
			cfg.free = func(string) (uint64, error) { return free.Load(), nil }
		}
	})
	n.start()
	n.reach(2, n.nodes...)
	full := n.nodes[3]
	eventually(t, "it votes", func() bool { return n.votes(full, n.nodes[0]) })
	free.Store(200 << 20)
	eventually(t, "it does not vote", func() bool { return !n.votes(full, n.nodes[0]) })
	if p := full.problem(); !strings.Contains(p, ErrDisk.Error()) {
		t.Errorf("problem %q", p)
	}
	n.reach(n.nodes[0].height()+2, n.nodes...)
	free.Store(100 << 20)
	select {
	case err := <-full.Err():
		if !errors.Is(err, ErrDisk) {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the chain goes on with a full disk")
	}
	eventually(t, "it has stopped", func() bool { _, err := full.Status(); return errors.Is(err, ErrNotRunning) })
	c, err := New(n.config(full))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); !errors.Is(err, ErrDisk) || !strings.Contains(err.Error(), "make room and start again") {
		t.Errorf("started with a full disk: %v", err)
	}
	free.Store(1 << 30)
	n.startChain(full)
	eventually(t, "it votes again", func() bool { return n.votes(full, n.nodes[0]) })
}

// TestConsensusFailure: a panic in consensus is reported although the process lives.
func TestConsensusFailure(t *testing.T) {
	n := newToyNet(t, 1, 0, func(_ int, cfg *Config) { cfg.Log = nil })
	n.nodes[0].app.panicAt = 3
	n.startHost(n.nodes[0])
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := New(n.config(n.nodes[0]))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(ctx); err == nil || !strings.Contains(err.Error(), "consensus failed") {
		t.Errorf("run over a failing application: %v", err)
	}
	n.nodes[0].app.panicAt = 0
	n.startChain(n.nodes[0])
	n.reach(4, n.nodes[0])
}

// TestDamage: databases that contradict themselves are an error at the start that says
// what to do.
func TestDamage(t *testing.T) {
	for name, damage := range map[string]func(*toyNode){
		"block missing": func(node *toyNode) {
			deletePrefix(node.dbs[StoreBlocks], "P:")
		},
		"state garbled": func(node *toyNode) { node.dbs[StoreState].Set([]byte("stateKey"), []byte("rubbish")) },
		"blocks lost":   func(node *toyNode) { node.dbs[StoreBlocks] = dbm.NewMemDB() },
		"block store garbled": func(node *toyNode) {
			node.dbs[StoreBlocks].Set([]byte("blockStore"), []byte("rubbish"))
		},
		"database does not open": func(node *toyNode) { node.dbs = nil },
	} {
		t.Run(name, func(t *testing.T) {
			n := newToyNet(t, 1, 0, nil)
			n.start()
			node := n.nodes[0]
			n.reach(3, node)
			node.Stop()
			damage(node)
			cfg := n.config(node)
			if node.dbs == nil {
				cfg.Open = func(name string) (dbm.DB, error) { return nil, errors.New("checksum mismatch") }
			}
			c, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			var damaged *DamagedError
			if err := c.Start(t.Context()); !errors.As(err, &damaged) || !strings.Contains(err.Error(), "move its databases away") {
				t.Errorf("start: %v", err)
				c.Stop()
			}
		})
	}
}

func deletePrefix(db dbm.DB, prefix string) {
	it, err := dbm.IteratePrefix(db, []byte(prefix))
	if err != nil {
		panic(err)
	}
	var keys [][]byte
	for ; it.Valid(); it.Next() {
		keys = append(keys, append([]byte(nil), it.Key()...))
	}
	it.Close()
	for _, k := range keys {
		db.Delete(k)
	}
}

func TestLoadKey(t *testing.T) {
	dir := t.TempDir()
	key, state := filepath.Join(dir, keyFile), filepath.Join(dir, recordFile)
	first, err := LoadKey(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadKey(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	a, _ := first.Signer().GetPubKey()
	b, _ := again.Signer().GetPubKey()
	if !a.Equals(b) || !bytes.Equal(first.bls.Public().Bytes(), again.bls.Public().Bytes()) {
		t.Error("the key changed")
	}
	goodKey, _ := os.ReadFile(key)
	goodState := []byte(`{"height":"5","round":0,"step":3}`)
	for name, c := range map[string]struct {
		key, state []byte // nil removes the file
		want       string // empty: it is read
	}{
		"both":                     {goodKey, goodState, ""},
		"a crash before the key":   {nil, []byte(`{"height":"0","round":0,"step":0}`), ""},
		"no record":                {goodKey, nil, "is missing"},
		"no key":                   {nil, goodState, "is missing"},
		"key not PEM":              {[]byte("{"), goodState, "damaged"},
		"key empty":                {[]byte{}, goodState, "damaged"},
		"record not JSON":          {goodKey, []byte("}"), "damaged"},
		"record of half a vote":    {goodKey, []byte(`{"height":"5","round":0,"step":2,"signbytes":"AA"}`), "contradicts itself"},
		"record of a height below": {goodKey, []byte(`{"height":"-5","round":0,"step":2}`), "contradicts itself"},
	} {
		for path, b := range map[string][]byte{key: c.key, state: c.state} {
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if b != nil {
				if err := os.WriteFile(path, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		k, err := LoadKey(dir, "")
		switch {
		case err != nil && strings.Contains(err.Error(), "record") && (strings.Contains(err.Error(), "restore it") || !strings.Contains(err.Error(), "register it")):
			t.Errorf("%s: the error names an old record as the way out, or not the right one: %v", name, err)
		case c.want == "" && err != nil, c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v", name, err)
		case name == "both" && k.signer.LastSignState.Height != 5:
			t.Errorf("what was signed last is forgotten: height %d", k.signer.LastSignState.Height)
		}
	}
}

// TestRecordBeforeSignature: a signature leaves when the name of its record is on the
// disk, and not where that failed.
func TestRecordBeforeSignature(t *testing.T) {
	home := t.TempDir()
	key, err := LoadKey(home, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := key.Signer().(*recorded).sync(); err != nil {
		t.Errorf("the folder does not sync: %v", err)
	}
	failing := errors.New("no disk")
	var synced []int64 // heights of the record when the folder was synced
	var answer error
	signer := &recorded{key.signer, func() error {
		state, err := readRecord(filepath.Join(home, recordFile))
		synced = append(synced, state.Height)
		return errors.Join(err, answer)
	}}
	vote := func(h int64) *cmtproto.Vote {
		return &cmtproto.Vote{Type: cmtproto.PrevoteType, Height: h, Timestamp: time.Unix(h, 0)}
	}
	proposal := func(h int64) *cmtproto.Proposal {
		return &cmtproto.Proposal{Type: cmtproto.ProposalType, Height: h, Timestamp: time.Unix(h, 0)}
	}
	p, v := proposal(1), vote(1)
	if err := signer.SignProposal("x", p); err != nil || len(p.Signature) == 0 {
		t.Fatalf("%x %v", p.Signature, err)
	}
	if err := signer.SignVote("x", v); err != nil || len(v.Signature) == 0 {
		t.Fatalf("%x %v", v.Signature, err)
	}
	answer = failing
	p, v = proposal(2), vote(2)
	if err := signer.SignProposal("x", p); !errors.Is(err, failing) || len(p.Signature) != 0 {
		t.Errorf("the record is not safe, and a proposal is signed %x: %v", p.Signature, err)
	}
	if err := signer.SignVote("x", v); !errors.Is(err, failing) || len(v.Signature) != 0 {
		t.Errorf("the record is not safe, and a vote is signed %x: %v", v.Signature, err)
	}
	if want := []int64{1, 1, 2, 2}; !slices.Equal(synced, want) {
		t.Errorf("synced with records of %v, want %v", synced, want)
	}
	// Signed again at once, as it would be after the disk is mended.
	answer = nil
	if err := signer.SignVote("x", v); err != nil || len(v.Signature) == 0 {
		t.Errorf("%x %v", v.Signature, err)
	}
}

// TestPruning: blocks that the application no longer wants go, and their states.
func TestPruning(t *testing.T) {
	n := newToyNet(t, 1, 0, func(_ int, cfg *Config) { cfg.Commit = 20 * time.Millisecond })
	n.genesis.ConsensusParams.Evidence = types.EvidenceParams{MaxAgeNumBlocks: 2, MaxAgeDuration: time.Millisecond, MaxBytes: 1000}
	n.nodes[0].app.retain = 5
	n.start()
	n.reach(15, n.nodes[0])
	eventually(t, "old blocks are gone", func() bool {
		s, err := n.nodes[0].Status()
		return err == nil && s.Oldest >= s.Height-6 && s.Oldest > 5
	})
	for _, get := range []func() error{
		func() error { _, err := n.nodes[0].Block(2); return err },
		func() error { _, err := n.nodes[0].Commit(2); return err },
		func() error { _, err := n.nodes[0].Results(2); return err },
	} {
		if err := get(); !errors.Is(err, ErrNoBlock) {
			t.Errorf("of block 2: %v", err)
		}
	}
}

// TestSweep: headers and commits of blocks that were pruned stay while evidence about them
// counts, and go after that.
func TestSweep(t *testing.T) {
	n := newToyNet(t, 1, 0, func(_ int, cfg *Config) { cfg.Commit, cfg.sweepEvery = 20*time.Millisecond, 20*time.Millisecond })
	n.genesis.ConsensusParams.Evidence = types.EvidenceParams{MaxAgeNumBlocks: 12, MaxAgeDuration: time.Millisecond, MaxBytes: 1000}
	node := n.nodes[0]
	node.app.retain = 3
	n.start()
	gone := func(h mesh.Height) bool {
		_, err := node.Header(h)
		return errors.Is(err, ErrNoBlock)
	}
	eventually(t, "the header of block 8 is gone", func() bool { return gone(8) })
	at := node.height()
	for h := at - 10; h < at; h++ { // more come meanwhile, and two blocks are no longer than the pruning takes
		if gone(h) && node.height() < h+12 {
			t.Errorf("the header of block %d is gone at height %d", h, node.height())
		}
	}
	if _, err := node.Block(at - 8); !errors.Is(err, ErrNoBlock) && node.height() > at {
		t.Errorf("block %d was not pruned: %v", at-8, err)
	}
	node.Stop()
	for prefix, db := range map[string]dbm.DB{"H:": node.dbs[StoreBlocks], "C:": node.dbs[StoreBlocks], "validatorsKey:": node.dbs[StoreState]} {
		for h := 4; h <= 8; h++ { // 1 and 2 have the validators that the others point to
			if b, err := db.Get(fmt.Appendf(nil, "%s%d", prefix, h)); err != nil || len(b) > 0 {
				t.Errorf("%s%d is still there (%v)", prefix, h, err)
			}
		}
	}
	// It starts again, and goes on from where it was.
	n.startChain(node)
	n.reach(at+5, node)
}
