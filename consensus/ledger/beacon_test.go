package ledger

import (
	"bytes"
	"slices"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

func randOf(w *world) []byte { return bytes.Clone(w.epoch().GetRand()) }

// TestBeaconIsTheProposers: of all beacons that could be in a block, one is accepted.
func TestBeaconIsTheProposers(t *testing.T) {
	w := newWorld(t, worldParams(), []string{"ann", "bob", "cat"}, "dan")
	w.blocks(3)
	good := w.next()
	k := w.keys[good.Proposer]
	var other *hostKeys
	for _, o := range w.keys {
		if o.host != k.host {
			other = o
			break
		}
	}
	make := func(change func(b *ledgerpb.Beacon)) []byte {
		pb := new(ledgerpb.Beacon)
		if err := decode(good.Txs[0][1:], pb); err != nil {
			t.Fatal(err)
		}
		change(pb)
		raw, err := encode(pb)
		if err != nil {
			t.Fatal(err)
		}
		return append([]byte{0}, raw...)
	}
	sign := func(k *hostKeys, message []byte) []byte {
		s, err := k.bls.Sign(message)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	infinity := append([]byte{0xc0}, bytes.Repeat([]byte{0}, 95)...)
	for _, test := range []struct {
		name, words string
		beacon      []byte
	}{
		{"of another height", "of height 5", make(func(b *ledgerpb.Beacon) { b.Height = 5 })},
		{"of another host", "not the proposer's", make(func(b *ledgerpb.Beacon) { a := w.address(other.host); b.Host = a[:] })},
		{"of no host", "not the proposer's", make(func(b *ledgerpb.Beacon) { b.Host = nil })},
		{"without a signature", "does not verify", make(func(b *ledgerpb.Beacon) { b.Signature = nil })},
		{"with a part of it", "does not verify", make(func(b *ledgerpb.Beacon) { b.Signature = b.Signature[:95] })},
		{"with more", "does not verify", make(func(b *ledgerpb.Beacon) { b.Signature = append(b.Signature, 0) })},
		{"of the identity", "does not verify", make(func(b *ledgerpb.Beacon) { b.Signature = infinity })},
		{"negated", "does not verify", make(func(b *ledgerpb.Beacon) { b.Signature[0] ^= 0x20 })},
		{"of another key", "does not verify", make(func(b *ledgerpb.Beacon) { b.Signature = sign(other, BeaconMessage(testNetwork, 4)) })},
		{"of another message", "does not verify", make(func(b *ledgerpb.Beacon) { b.Signature = sign(k, BeaconMessage(testNetwork, 5)) })},
		{"of another network", "does not verify", make(func(b *ledgerpb.Beacon) { b.Signature = sign(k, BeaconMessage("dev00000001", 4)) })},
		{"that is a proof", "does not verify", make(func(b *ledgerpb.Beacon) {
			b.Signature, _ = k.bls.Prove(BeaconMessage(testNetwork, 4))
		})},
		{"with a field of a later version", "not in canonical encoding", append(slices.Clone(good.Txs[0]), 0x38, 1)},
		{"with a zero written out", "not in canonical encoding", append(slices.Clone(good.Txs[0]), 0x08, 4)},
		{"of one byte", "of height 0", []byte{0}},
		{"without its first byte", "without the proposer's beacon", good.Txs[0][1:]},
		{"of nothing", "without the proposer's beacon", []byte{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := good
			b.Txs = [][]byte{test.beacon}
			_, err := w.m.Accepts(w.state, b)
			refusedWith(t, err, test.words)
			// Were it decided, everybody would have the same randomness, from the height alone.
			out, err := w.m.Apply(w.state, b)
			if err != nil {
				t.Fatal(err)
			}
			s := w.state.clone()
			s.write(t, out.Changes)
			e, err := NewView(s).Epoch()
			if err != nil {
				t.Fatal(err)
			}
			want := domainRand.Hash(testNetwork, append(randOf(w), be64(4)...))
			if !bytes.Equal(e.GetRand(), want[:]) {
				t.Error("a beacon that is not the proposer's chooses the randomness")
			}
		})
	}
	for name, txs := range map[string][][]byte{
		"no transactions": nil,
		"two beacons":     {good.Txs[0], good.Txs[0]},
		"a beacon second": {w.tx("dan", nil, unjailTx()), good.Txs[0]},
	} {
		b := good
		b.Txs = txs
		if _, err := w.m.Accepts(w.state, b); err == nil {
			t.Errorf("a block with %s is accepted", name)
		}
	}
	b := good
	b.Proposer = ConsensusAddress{1}
	_, err := w.m.Accepts(w.state, b)
	refusedWith(t, err, "the proposer is no host")
	w.apply(good)
}

func unjailTx() *ledgerpb.Tx {
	return &ledgerpb.Tx{Action: &ledgerpb.Tx_Unjail{Unjail: &ledgerpb.Unjail{}}}
}

// TestRandomnessMovesOn: no two blocks have the same, whatever is in them it depends on
// the proposers' signatures alone, and an epoch's seed is that of its first block.
func TestRandomnessMovesOn(t *testing.T) {
	w := newWorld(t, worldParams(), []string{"ann", "bob", "cat"}, "dan")
	plain := newWorld(t, worldParams(), []string{"ann", "bob", "cat"}, "dan")
	seen := map[string]bool{string(randOf(w)): true}
	for w.height < 30 {
		var txs [][]byte
		if w.height%2 == 0 {
			txs = append(txs, w.tx("dan", nil, unjailTx()))
		}
		w.block(txs...)
		plain.block()
		if seen[string(randOf(w))] {
			t.Fatalf("block %d has the randomness of one before", w.height)
		}
		seen[string(randOf(w))] = true
		if !bytes.Equal(randOf(w), randOf(plain)) {
			t.Fatalf("block %d: transactions change the randomness", w.height)
		}
		if e := w.epoch(); e.GetEpoch() > 0 && e.GetStart() == uint64(w.height) && !bytes.Equal(e.GetSeed(), e.GetRand()) {
			t.Errorf("epoch %d has another seed than its first block's randomness", e.GetEpoch())
		}
	}
}

// TestProposerHasNoChoice: whatever a proposer registers just before its block, the
// block's randomness is the one, or the other that comes of having registered at all.
// Without that, it could make keys until it likes what comes of them.
func TestProposerHasNoChoice(t *testing.T) {
	w := newWorld(t, worldParams(), []string{"ann"})
	kept := w.state.clone()
	results := make(map[string]bool)
	for n := 1; n <= 6; n++ {
		w.state = kept.clone()
		w.height = 0
		w.keys = map[ConsensusAddress]*hostKeys{w.newKeys("ann", 0).address(): w.newKeys("ann", 0)}
		// New keys of both kinds, or a new BLS key alone; the host proposes all blocks.
		k := w.newKeys("ann", n)
		if n%2 == 0 {
			k = &hostKeys{"ann", w.newKeys("ann", 0).consensus, k.bls}
		}
		w.block(w.tx("ann", nil, &ledgerpb.Tx{Action: &ledgerpb.Tx_RegisterHost{RegisterHost: w.registration(testNetwork, k)}}))
		w.done()
		w.blocks(11) // to after the epoch's end, when the keys count
		results[string(randOf(w))] = true
	}
	// With a new consensus key the old pair signs one block more than with the old one,
	// which has a BLS key that is new then.
	if len(results) != 2 {
		t.Errorf("one proposer, 6 registrations: %d values", len(results))
	}
}

// TestNewKeyMixesLater: a key that was registered makes randomness from 64 blocks on,
// from the genesis on if it was in it.
func TestNewKeyMixesLater(t *testing.T) {
	w := newWorld(t, worldParams(), []string{"ann"})
	mixes := func() bool {
		before := randOf(w)
		w.block()
		alone := domainRand.Hash(testNetwork, append(before, be64(uint64(w.height))...))
		return !bytes.Equal(randOf(w), alone[:])
	}
	if !mixes() {
		t.Error("the key of the genesis does not make randomness")
	}
	w.block(w.tx("ann", nil, &ledgerpb.Tx{Action: &ledgerpb.Tx_RegisterHost{RegisterHost: w.registration(testNetwork, w.newKeys("ann", 1))}}))
	w.done()
	const counts = 7 // the first block of the next epoch
	from := mesh.Height(counts + freshBlocks)
	for w.height < counts+1 {
		if !mixes() {
			t.Errorf("the old keys, which propose up to block %d, make no randomness at height %d", counts+1, w.height)
		}
	}
	for w.height+1 < from {
		if mixes() {
			t.Fatalf("the new key makes randomness at height %d, and counts since %d", w.height, counts)
		}
	}
	if !mixes() {
		t.Errorf("the new key makes no randomness at height %d, and counts since %d", w.height, counts)
	}
	// To register the same again, for another owner, changes nothing.
	again := w.registration(testNetwork, w.newKeys("ann", 1))
	again.Owner = addressBytes(w.address("eve"))
	w.block(w.tx("ann", nil, &ledgerpb.Tx{Action: &ledgerpb.Tx_RegisterHost{RegisterHost: again}}))
	w.done()
	if !mixes() {
		t.Error("a key is new again when it is registered again")
	}
}

// TestRegistrationsOfABlock: a proposer takes 64, the others wait for the next block; a
// block with more is refused.
func TestRegistrationsOfABlock(t *testing.T) {
	w := newWorld(t, worldParams(), []string{"ann"}, "dan")
	a := w.address("ann")
	var waiting [][]byte
	for range maxRegistrations + 5 {
		waiting = append(waiting, w.tx("dan", waiting, &ledgerpb.Tx{Action: &ledgerpb.Tx_RegisterHost{RegisterHost: &ledgerpb.RegisterHost{Host: a[:]}}}))
	}
	b := w.next()
	picked, err := w.m.Pick(w.state, b, waiting, 1<<20)
	if err != nil || len(picked) != 1+maxRegistrations {
		t.Fatalf("%d are picked: %v", len(picked), err)
	}
	b.Txs = append(picked, waiting[maxRegistrations])
	_, err = w.m.Accepts(w.state, b)
	refusedWith(t, err, "more than 64 registrations")
	b.Txs = picked
	w.apply(b)
	b = w.next()
	if b.Txs, err = w.m.Pick(w.state, b, waiting, 1<<20); err != nil || len(b.Txs) != 1+5 {
		t.Fatalf("%d are picked of the rest: %v", len(b.Txs), err)
	}
	w.apply(b)
}

// TestBeaconBytes: what is encoded as a beacon is taken for one, and for no transaction.
func TestBeaconBytes(t *testing.T) {
	raw, err := EncodeBeacon(7, mesh.Address{1}, []byte{2})
	if err != nil || !isBeacon(raw) {
		t.Fatalf("%x: %v", raw, err)
	}
	if _, err := ParseTx(testNetwork, raw); err == nil {
		t.Error("a beacon is a transaction")
	}
}
