package ledger

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/internal/bls"
)

// world is a network with real keys, proofs, signatures and beacons, from its genesis
// on. It keeps the validator sets as CometBFT does and checks the state after each block.
type world struct {
	t      testing.TB
	m      *Machine
	state  *memState
	height mesh.Height
	hosts  map[string]mesh.Address
	names  []string
	keys   map[ConsensusAddress]*hostKeys // that are registered, as the nodes have them
	bls    map[string]*bls.SecretKey      // by public key
	work   workTable
	sets   map[mesh.Height]cometSet // by the height of which they are the validators
	out    *Outcome                 // of the last block

	sleeps   map[string]int // blocks that a host does not sign yet
	evidence []Evidence     // of the next block
}

// cometSet is a validator set of CometBFT: power by consensus key.
type cometSet map[string]int64

// update does what CometBFT does, and refuses what it refuses.
func (s cometSet) update(updates []ValidatorUpdate) (cometSet, error) {
	next, seen, total := maps.Clone(s), make(map[string]bool), int64(0)
	for _, u := range updates {
		k := string(u.ConsensusKey)
		_, known := s[k]
		switch {
		case len(k) != ed25519.PublicKeySize || u.Power < 0:
			return nil, fmt.Errorf("key %x with power %d", k, u.Power)
		case seen[k]:
			return nil, fmt.Errorf("key %x is there twice", k)
		case u.Power == 0 && !known:
			return nil, fmt.Errorf("key %x is removed and not in the set", k)
		}
		seen[k] = true
		if next[k] = u.Power; u.Power == 0 {
			delete(next, k)
		}
	}
	for _, power := range next {
		total += power
	}
	if len(next) == 0 || total > (1<<63-1)/8 {
		return nil, fmt.Errorf("%d validators with power %d", len(next), total)
	}
	return next, nil
}

// hostKeys are a host's keys of one registration.
type hostKeys struct {
	host      string
	consensus ed25519.PrivateKey
	bls       *bls.SecretKey
}

func (k *hostKeys) public() []byte            { return k.consensus.Public().(ed25519.PublicKey) }
func (k *hostKeys) address() ConsensusAddress { return ConsensusAddressOf(k.public()) }

// workTable is what hosts work in each epoch.
type workTable map[mesh.Address]uint64

func (w workTable) Weights(Reader, mesh.Epoch) (out []Weight) {
	for _, a := range slices.SortedFunc(maps.Keys(w), func(a, b mesh.Address) int { return bytes.Compare(a[:], b[:]) }) {
		if w[a] > 0 {
			out = append(out, Weight{a, w[a]})
		}
	}
	return out
}

func (w workTable) ByModel(Reader, mesh.Epoch, mesh.Address) []ModelWeight { return nil }

// worldParams turn an epoch in 6 blocks.
func worldParams() map[string]uint64 {
	return map[string]uint64{
		"epoch_blocks": 6, "settle_blocks": 2, "fee_per_byte": 10, "register_fee": 1e9, "collateral_per_weight": 1e9,
		"unbonding_epochs": 2, "vesting_epochs": 4, "keep_epochs": 3, "downtime_window": 8, "downtime_max_missed": 3, "jail_epochs": 1,
		"cap_percent": 40,
	}
}

// newWorld begins a network of these hosts, each with work and collateral of 100 and
// 1,000 GNK besides. Other names have accounts with 10,000 GNK.
func newWorld(t testing.TB, params map[string]uint64, hosts []string, others ...string) *world {
	t.Helper()
	w := &world{
		t: t, state: newMemState(), hosts: make(map[string]mesh.Address), keys: make(map[ConsensusAddress]*hostKeys),
		bls: make(map[string]*bls.SecretKey), work: make(workTable), sets: make(map[mesh.Height]cometSet), sleeps: make(map[string]int),
	}
	verified := make(map[mesh.Hash]bool)
	w.m = New(Config{Network: testNetwork, Work: w.work, VerifyBeacon: func(blsKey, signature []byte, height mesh.Height) bool {
		k := mesh.HashOf(blsKey, signature, be64(uint64(height)))
		if !verified[k] {
			verified[k] = VerifyBeacon(testNetwork, blsKey, signature, height)
		}
		return verified[k]
	}})
	g := &Genesis{Params: params}
	rest := map[string]mesh.Amount{GroupTeam: Share(GroupTeam), GroupEarly: Share(GroupEarly), GroupLiquidity: Share(GroupLiquidity)}
	give := func(a mesh.Address, amount mesh.Amount) {
		g.Allocations = append(g.Allocations, Allocation{Address: a, Amount: amount.String(), Group: GroupTeam})
		rest[GroupTeam] -= amount
	}
	for _, name := range hosts {
		a := w.address(name)
		give(a, 1100*mesh.GNK)
		k := w.newKeys(name, 0)
		w.keys[k.address()] = k
		r := w.registration(GenesisNetwork("dev"), k)
		g.Hosts = append(g.Hosts, GenesisHost{
			Address: a, Collateral: "100",
			ConsensusKey: hex.EncodeToString(r.GetConsensusKey()), ConsensusProof: hex.EncodeToString(r.GetConsensusProof()),
			BLSKey: hex.EncodeToString(r.GetBlsKey()), BLSProof: hex.EncodeToString(r.GetBlsProof()),
		})
		w.work[a] = 100
	}
	for _, name := range others {
		give(w.address(name), 10_000*mesh.GNK)
	}
	for _, group := range []string{GroupTeam, GroupEarly, GroupLiquidity} {
		g.Allocations = append(g.Allocations, Allocation{Address: w.address("treasury"), Amount: rest[group].String(), Group: group})
	}
	first, err := w.m.Genesis(g)
	if err != nil {
		t.Fatal(err)
	}
	w.state.write(t, first.Changes)
	set, err := cometSet{}.update(first.Validators)
	if err != nil {
		t.Fatalf("the first validators: %v", err)
	}
	w.sets[0], w.sets[1], w.sets[2] = cometSet{}, set, set
	w.check()
	return w
}

// secret is the account key of a name.
func secret(name string) ed25519.PrivateKey {
	seed := mesh.HashOf([]byte("account of "), []byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func (w *world) address(name string) mesh.Address {
	a, ok := w.hosts[name]
	if !ok {
		a = addressOf(secret(name))
		w.hosts[name] = a
		w.names = append(w.names, name)
	}
	return a
}

// newKeys makes the n-th keys of a host.
func (w *world) newKeys(name string, n int) *hostKeys {
	seed := mesh.HashOf([]byte("keys of "), []byte(name), be64(uint64(n)))
	secret, err := bls.NewSecretKey(seed[:])
	if err != nil {
		w.t.Fatal(err)
	}
	w.bls[string(secret.Public().Bytes())] = secret
	return &hostKeys{name, ed25519.NewKeyFromSeed(seed[:]), secret}
}

// registration of keys, with good proofs.
func (w *world) registration(network mesh.NetworkID, k *hostKeys) *ledgerpb.RegisterHost {
	t := &ledgerpb.RegisterHost{ConsensusKey: k.public(), BlsKey: k.bls.Public().Bytes()}
	proof := HostProof(network, w.address(k.host), t.BlsKey)
	t.ConsensusProof = ed25519.Sign(k.consensus, proof)
	var err error
	if t.BlsProof, err = k.bls.Prove(proof); err != nil {
		w.t.Fatal(err)
	}
	return t
}

// tx signs a transaction of a name, its next after those of the block before it.
func (w *world) tx(name string, block [][]byte, tx *ledgerpb.Tx) []byte {
	w.t.Helper()
	sender := w.address(name)
	tx.Nonce = w.account(name).GetNonce()
	for _, raw := range block {
		if before, err := ParseTx(testNetwork, raw); err == nil && before.Sender == sender {
			tx.Nonce++
		}
	}
	p, err := NewView(w.state).Params()
	if err != nil {
		w.t.Fatal(err)
	}
	fee, err := FeeOf(p, tx)
	if err != nil {
		w.t.Fatal(err)
	}
	tx.Fee = uint64(fee)
	raw, err := SignTx(testNetwork, secret(name), tx)
	if err != nil {
		w.t.Fatal(err)
	}
	return raw
}

func (w *world) account(name string) *ledgerpb.Account {
	return newOverlay(w.state).account(w.address(name))
}

func (w *world) record(name string) *ledgerpb.Host {
	h, err := NewView(w.state).Host(w.address(name))
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

// proposer is whose turn it is: the validators take turns by key.
func (w *world) proposer(height mesh.Height) *hostKeys {
	all := slices.Sorted(maps.Keys(w.sets[height]))
	k := w.keys[ConsensusAddressOf([]byte(all[int(height)%len(all)]))]
	// It signs with the BLS key that counts with that consensus key.
	index, _ := load[ledgerpb.ConsensusKey](newOverlay(w.state), consensusIndex(k.address()))
	return &hostKeys{k.host, k.consensus, w.bls[string(index.GetBlsKey())]}
}

func (w *world) beacon(k *hostKeys, height mesh.Height) []byte {
	signature, err := k.bls.Sign(BeaconMessage(testNetwork, height))
	if err != nil {
		w.t.Fatal(err)
	}
	raw, err := EncodeBeacon(height, w.address(k.host), signature)
	if err != nil {
		w.t.Fatal(err)
	}
	return raw
}

// next is the next block, with these transactions.
func (w *world) next(txs ...[]byte) Block {
	b := Block{Height: w.height + 1, Evidence: w.evidence}
	k := w.proposer(b.Height)
	b.Proposer = k.address()
	b.Txs = append([][]byte{w.beacon(k, b.Height)}, txs...)
	for _, key := range slices.Sorted(maps.Keys(w.sets[w.height])) {
		a := ConsensusAddressOf([]byte(key))
		if name := w.keys[a].host; w.sleeps[name] > 0 {
			b.Missed = append(b.Missed, a)
			w.sleeps[name]--
		} else {
			b.Signed = append(b.Signed, a)
		}
	}
	return b
}

// block makes and applies the next block. All validators accept it.
func (w *world) block(txs ...[]byte) *Outcome {
	w.t.Helper()
	return w.apply(w.next(txs...))
}

func (w *world) apply(b Block) *Outcome {
	w.t.Helper()
	judged, err := w.m.Accepts(w.state, b)
	if err != nil {
		w.t.Fatalf("block %d is not accepted: %v", b.Height, err)
	}
	out, err := w.m.Apply(w.state, b)
	if err != nil {
		w.t.Fatalf("block %d: %v", b.Height, err)
	}
	if digest(mesh.Hash{}, judged) != digest(mesh.Hash{}, out) {
		w.t.Fatalf("block %d: what was accepted is not what is applied", b.Height)
	}
	w.state.write(w.t, out.Changes)
	if w.sets[b.Height+2], err = w.sets[b.Height+1].update(out.Validators); err != nil {
		w.t.Fatalf("block %d: CometBFT stops: %v", b.Height, err)
	}
	for i, r := range out.Results[1:] {
		if r.Err == nil && r.Kind == kindRegistration {
			w.registered(b.Txs[i+1])
		}
	}
	w.height, w.out, w.evidence = b.Height, out, nil
	w.check()
	return out
}

// registered notes what keys a host has now.
func (w *world) registered(raw []byte) {
	tx, err := ParseTx(testNetwork, raw)
	if err != nil {
		w.t.Fatal(err)
	}
	r := tx.Pb.GetRegisterHost()
	secret := w.bls[string(r.GetBlsKey())]
	if secret == nil { // another owner, no keys
		return
	}
	for _, name := range w.names {
		for n := 0; w.hosts[name] == tx.Sender && n < 20; n++ {
			if k := w.newKeys(name, n); bytes.Equal(k.public(), r.GetConsensusKey()) {
				w.keys[k.address()] = &hostKeys{name, k.consensus, secret}
			}
		}
	}
}

// check compares what consensus was told with the state, and all that must hold.
func (w *world) check() {
	w.t.Helper()
	if err := CheckInvariants(w.state); err != nil {
		w.t.Fatal(err)
	}
	hosts, err := NewView(w.state).Hosts()
	if err != nil {
		w.t.Fatal(err)
	}
	have := make(cometSet)
	for _, h := range hosts {
		if h.Record.GetPower() > 0 {
			have[string(h.Record.GetConsensusKey())] = int64(h.Record.GetPower())
		}
	}
	if told := w.sets[w.height+2]; !maps.Equal(have, told) {
		w.t.Fatalf("block %d: the state has %d validators, consensus %d, and they differ", w.height, len(have), len(told))
	}
}

func (w *world) epoch() *ledgerpb.EpochState {
	e, err := NewView(w.state).Epoch()
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}

// blocks makes empty blocks.
func (w *world) blocks(n int) {
	w.t.Helper()
	for range n {
		w.block()
	}
}

// closed goes on to the block in which the next epoch is closed.
func (w *world) closed() {
	w.t.Helper()
	for range 1000 {
		w.block()
		for _, e := range w.out.Events {
			if e.Kind == "epoch" && e.Attrs[0][0] == "closed" {
				return
			}
		}
	}
	w.t.Fatal("no epoch is closed")
}

// done fails unless all transactions of the last block were carried out.
func (w *world) done() {
	w.t.Helper()
	for i, r := range w.out.Results {
		if r.Err != nil {
			w.t.Fatalf("block %d: transaction %d: %v", w.height, i, r.Err)
		}
	}
}
