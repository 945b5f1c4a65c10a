package ledger

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// memState is a state in memory: a map, and its keys in order.
type memState struct {
	records map[string][]byte
	keys    []string
}

func newMemState() *memState { return &memState{records: make(map[string][]byte)} }

func (s *memState) Get(key []byte) []byte { return s.records[string(key)] }

func (s *memState) Iterate(prefix []byte, fn func(key, value []byte) bool) {
	for _, k := range s.under(prefix) {
		if !fn([]byte(k), s.records[k]) {
			return
		}
	}
}

// under returns the keys with a prefix.
func (s *memState) under(prefix []byte) []string {
	from, _ := slices.BinarySearch(s.keys, string(prefix))
	n := 0
	for from+n < len(s.keys) && strings.HasPrefix(s.keys[from+n], string(prefix)) {
		n++
	}
	return s.keys[from : from+n]
}

// write takes the changes of a block over, which come sorted.
func (s *memState) write(t testing.TB, changes []Change) {
	t.Helper()
	merged := make([]string, 0, len(s.keys)+len(changes))
	rest := s.keys
	for i, c := range changes {
		k := string(c.Key)
		if i > 0 && string(changes[i-1].Key) >= k {
			t.Fatalf("changes are not in order: %q before %q", changes[i-1].Key, k)
		}
		n, found := slices.BinarySearch(rest, k)
		merged = append(merged, rest[:n]...)
		rest = rest[n:]
		if found {
			rest = rest[1:]
		}
		if c.Value == nil {
			delete(s.records, k)
			continue
		}
		merged = append(merged, k)
		s.records[k] = bytes.Clone(c.Value)
	}
	s.keys = append(merged, rest...)
}

// clone returns a copy that changes by itself.
func (s *memState) clone() *memState {
	c := &memState{records: make(map[string][]byte, len(s.records)), keys: slices.Clone(s.keys)}
	for k, v := range s.records {
		c.records[k] = v
	}
	return c
}

const testNetwork mesh.NetworkID = "dev00000000"

// testKey is the key of the n-th account of a test.
func testKey(n int) ed25519.PrivateKey {
	seed := mesh.HashOf([]byte("account of a test"), be64(uint64(n)))
	return ed25519.NewKeyFromSeed(seed[:])
}

func addressOf(key ed25519.PrivateKey) mesh.Address {
	return mesh.AddressOf(key.Public().(ed25519.PublicKey))
}

// testModel is the n-th model of a test.
func testModel(n int) mesh.ModelID { return mesh.HashOf([]byte("model of a test"), be64(uint64(n))) }

// quickParams turn an epoch in 20 blocks.
func quickParams() *ledgerpb.Params {
	p := DefaultParams()
	p.EpochBlocks, p.SettleBlocks, p.FeePerByte = 20, 8, 10
	p.UnbondingEpochs, p.VestingEpochs, p.KeepEpochs, p.CloseEpochs = 2, 5, 3, 2
	p.DowntimeWindow, p.DowntimeMaxMissed = 10, 5
	p.CollateralPerWeight, p.EscrowMin, p.RegisterFee = 1e6, 1e6, 1e9
	p.DepositMin, p.VoteBlocks = 10e9, 12
	return p
}

// hostOfTest is a host that stands in a prepared state.
type hostOfTest struct {
	address mesh.Address
	work    []GenesisWork
}

func consensusKeyOf(a mesh.Address) []byte {
	h := mesh.HashOf([]byte("consensus key of a test"), a[:])
	return h[:]
}

// prepare writes a state of height 0: hosts with collateral, power and work, accounts
// with money, two models.
func prepare(t testing.TB, p *ledgerpb.Params, hosts []hostOfTest, accounts []mesh.Address) *memState {
	t.Helper()
	o := newOverlay(empty{})
	o.save(key(tableParams), p)
	left := uint64(mesh.MaxSupply)
	take := func(n uint64) uint64 { left -= n; return n }
	for _, a := range accounts {
		o.credit(a, take(1_000_000e9))
	}
	for n, coefficient := range []uint64{1000, 500} {
		o.save(modelKey(testModel(n)), &ledgerpb.Model{Name: "model", Coefficient: coefficient})
	}
	chosen := new(ledgerpb.Validators)
	for i, h := range hosts {
		power := uint64((i+1)*totalPower/len(hosts) - i*totalPower/len(hosts))
		chosen.Validators = append(chosen.Validators, &ledgerpb.Validator{Host: h.address[:], Power: power})
		o.credit(h.address, take(1_000_000e9))
		consensusKey := consensusKeyOf(h.address)
		consensus := ConsensusAddressOf(consensusKey)
		blsKey := make([]byte, 48)
		copy(blsKey, h.address[:])
		o.save(hostKey(h.address), &ledgerpb.Host{
			Owner: h.address[:], ConsensusKey: consensusKey, BlsKey: blsKey, Collateral: take(50_000e9), Power: power,
		})
		o.save(consensusIndex(consensus), &ledgerpb.ConsensusKey{Host: h.address[:], BlsKey: blsKey})
		o.save(blsIndex(blsKey), &ledgerpb.ConsensusKey{Host: h.address[:]})
		o.totals(func(t *ledgerpb.Totals) { t.Collateral += 50_000e9 })
		work := new(ledgerpb.CommitWork)
		for _, w := range h.work {
			work.Work = append(work.Work, &ledgerpb.Work{Model: w.Model[:], Count: w.Count})
		}
		o.save(key(tableWork, h.address[:]), work)
	}
	slices.SortFunc(chosen.Validators, func(a, b *ledgerpb.Validator) int { return bytes.Compare(a.GetHost(), b.GetHost()) })
	o.save(miscKey(miscChosen), chosen)
	o.totals(func(t *ledgerpb.Totals) { t.Community = take(1_000_000e9); t.Unemitted = left })
	rand := mesh.HashOf([]byte("genesis of a test"))
	o.save(miscKey(miscEpoch), &ledgerpb.EpochState{Start: 1, Rand: rand[:], Seed: rand[:]})
	o.set(miscKey(miscHeight), be64(0))
	if *o.err != nil {
		t.Fatal(*o.err)
	}
	s := newMemState()
	s.write(t, o.changes())
	if err := CheckInvariants(s); err != nil {
		t.Fatal(err)
	}
	return s
}

// beaconTx is a beacon in form; machines of tests do not verify it.
func beaconTx(t testing.TB, height mesh.Height, host mesh.Address) []byte {
	t.Helper()
	signature := make([]byte, 96)
	digest := mesh.HashOf([]byte("beacon of a test"), be64(uint64(height)), host[:])
	copy(signature, digest[:])
	b, err := encode(&ledgerpb.Beacon{Height: uint64(height), Host: host[:], Signature: signature})
	if err != nil {
		t.Fatal(err)
	}
	return append([]byte{0}, b...)
}

// fakeSign signs in a microsecond; verifyFake is what a machine then verifies with.
func fakeSign(t testing.TB, tx *ledgerpb.Tx) []byte {
	t.Helper()
	body, err := encode(tx)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := encode(&ledgerpb.SignedTx{Body: body, Signature: fakeSignature(body)})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func fakeSignature(body []byte) []byte {
	a := mesh.HashOf([]byte("signature of a test"), body)
	return append(a[:], a[:]...)
}

func verifyFake(tx *Tx) bool { return bytes.Equal(tx.signature, fakeSignature(tx.body)) }

// testMachine verifies fake signatures and any beacon, and knows upgrades v1 to v9.
func testMachine() *Machine {
	upgrades := make(map[string]Migration)
	for n := byte('1'); n <= '9'; n++ {
		upgrades["v"+string(n)] = nil
	}
	return New(Config{
		Network: testNetwork, Verify: verifyFake, Upgrades: upgrades,
		VerifyBeacon: func(_, _ []byte, _ mesh.Height) bool { return true },
	})
}

// recordOf returns an empty record of the kind that lies at a key, nil for those that
// are plain bytes.
func recordOf(k []byte) proto.Message {
	switch k[0] {
	case tableAccount:
		return new(ledgerpb.Account)
	case tableEpoch:
		return new(ledgerpb.EpochResult)
	case tableHost:
		return new(ledgerpb.Host)
	case tableModel:
		return new(ledgerpb.Model)
	case tableParams, tablePending:
		return new(ledgerpb.Params)
	case tableRun:
		return new(ledgerpb.Run)
	case tableSettlement:
		return new(ledgerpb.Settlement)
	case tableUpgrade:
		return new(ledgerpb.Upgrade)
	case tableProposal:
		return new(ledgerpb.Proposal)
	case tableEscrow:
		return new(ledgerpb.Escrow)
	case tableBallot:
		return new(ledgerpb.Ballot)
	case tableCommitted, tableWork:
		return new(ledgerpb.CommitWork)
	case tableDelegation:
		return new(ledgerpb.Delegation)
	case tableKey:
		return new(ledgerpb.ConsensusKey)
	case tableRotation:
		return new(ledgerpb.RegisterHost)
	case tableLane:
		return new(ledgerpb.LaneState)
	case tableLines:
		return new(ledgerpb.Settle)
	case tableMember:
		return new(ledgerpb.Member)
	case tableRewards:
		return new(ledgerpb.Rewards)
	case tableSettling:
		return new(ledgerpb.Settling)
	case tableSigning:
		return new(ledgerpb.Signing)
	case tableTrace:
		return new(ledgerpb.CommitTrace)
	case tableUnbonding:
		return new(ledgerpb.Unbonding)
	case tableVesting:
		return new(ledgerpb.Vesting)
	case tableMisc:
		switch string(k[1:]) {
		case miscEpoch:
			return new(ledgerpb.EpochState)
		case miscTotals:
			return new(ledgerpb.Totals)
		case miscSet, miscChosen:
			return new(ledgerpb.Validators)
		case miscEnded:
			return new(ledgerpb.EpochResult)
		}
	}
	return nil
}

// digest adds an outcome to a running hash of all that replicas must agree on.
func digest(before mesh.Hash, out *Outcome) mesh.Hash {
	parts := [][]byte{before[:]}
	add := func(b []byte) { parts = append(parts, binary.BigEndian.AppendUint64(nil, uint64(len(b))), b) }
	for _, c := range out.Changes {
		add(c.Key)
		if c.Value == nil {
			parts = append(parts, []byte("deleted"))
		} else {
			add(c.Value)
		}
	}
	for _, r := range out.Results {
		add(r.ID[:])
		if r.Err != nil {
			add([]byte(r.Err.Error()))
		}
	}
	for _, v := range out.Validators {
		add(v.ConsensusKey)
		add(be64(uint64(v.Power)))
	}
	for _, e := range out.Events {
		add([]byte(e.Kind))
		for _, a := range e.Attrs {
			add([]byte(a[0]))
			add([]byte(a[1]))
		}
	}
	return mesh.HashOf(parts...)
}
