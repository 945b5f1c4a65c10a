package ledger

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"slices"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/internal/bls"
)

// genesis is that of the network of a test: all of the groups' coins are with the
// people, some of them over time, and the first of the people are hosts.
func (g *generator) genesis() *Genesis {
	out := &Genesis{Params: make(map[string]uint64)}
	quick, defaults := quickParams().ProtoReflect(), DefaultParams().ProtoReflect()
	for i := range quick.Descriptor().Fields().Len() {
		f := quick.Descriptor().Fields().Get(i)
		if v := quick.Get(f).Uint(); v != defaults.Get(f).Uint() {
			out.Params[string(f.Name())] = v
		}
	}
	for i, a := range g.people {
		out.Allocations = append(out.Allocations, Allocation{Address: a, Amount: "2500000", Group: GroupEarly})
		if i < 15 {
			out.Allocations = append(out.Allocations, Allocation{Address: a, Amount: "10000000", Group: GroupTeam, VestStart: uint64(i % 3), VestEpochs: 40})
			out.Allocations = append(out.Allocations, Allocation{Address: a, Amount: "10000000", Group: GroupLiquidity})
		}
	}
	for n, coefficient := range []uint64{1000, 500} {
		out.Models = append(out.Models, GenesisModel{testModel(n), "model", coefficient})
	}
	for n := range testHosts {
		r := g.keysOf(GenesisNetwork("dev"), g.people[n], n)
		h := GenesisHost{
			Address: g.people[n], ConsensusKey: hex.EncodeToString(r.GetConsensusKey()), ConsensusProof: hex.EncodeToString(r.GetConsensusProof()),
			BLSKey: hex.EncodeToString(r.GetBlsKey()), BLSProof: hex.EncodeToString(r.GetBlsProof()), Collateral: "50000",
			Work: []GenesisWork{{testModel(0), uint64(1000 * (n + 1))}},
		}
		if n%2 == 0 {
			h.Work = append(h.Work, GenesisWork{testModel(1), 5000})
		}
		if n%3 == 0 {
			h.Owner = g.people[testHosts+n]
		}
		out.Hosts = append(out.Hosts, h)
	}
	return out
}

// keysOf makes the n-th keys of a test, for a host.
func (g *generator) keysOf(network mesh.NetworkID, host mesh.Address, n int) *ledgerpb.RegisterHost {
	consensus := testKey(1000 + n)
	seed := mesh.HashOf([]byte("BLS key of a test"), be64(uint64(n)))
	secret, err := bls.NewSecretKey(seed[:])
	if err != nil {
		g.t.Fatal(err)
	}
	t := &ledgerpb.RegisterHost{ConsensusKey: consensus.Public().(ed25519.PublicKey), BlsKey: secret.Public().Bytes()}
	proof := HostProof(network, host, t.BlsKey)
	t.ConsensusProof = ed25519.Sign(consensus, proof)
	if t.BlsProof, err = secret.Prove(proof); err != nil {
		g.t.Fatal(err)
	}
	return t
}

// registration makes the keys of a host. Good ones take milliseconds to make and to
// verify, so most are not.
func (g *generator) registration(sender mesh.Address) *ledgerpb.RegisterHost {
	switch g.rng.IntN(12) {
	case 0, 1, 2:
		t := g.keysOf(testNetwork, sender, testHosts+g.rng.IntN(400))
		if g.rng.IntN(3) == 0 {
			t.Owner = g.someone()
		}
		if g.rng.IntN(6) == 0 {
			t.BlsProof = g.bytes(96)
		}
		return t
	case 3, 4, 5:
		return &ledgerpb.RegisterHost{Host: g.some(tableHost), Owner: sender[:]}
	}
	return &ledgerpb.RegisterHost{
		Owner: sender[:], ConsensusKey: g.bytes(32), ConsensusProof: g.bytes(64), BlsKey: g.bytes(48), BlsProof: g.bytes(96),
	}
}

// settlement makes a host's lines for an epoch out of escrows that have something for
// it, with vouchers of their owners: mostly for less than there is.
func (g *generator) settlement(host mesh.Address, epoch uint64) *ledgerpb.Settle {
	t := &ledgerpb.Settle{Epoch: epoch}
	ids := g.state.under(key(tableEscrow))
	from := g.rng.IntN(len(ids) + 1)
	for _, k := range ids[from:min(len(ids), from+1+g.rng.IntN(4))] {
		id := mesh.Hash([]byte(k[1:]))
		escrow, _ := load[ledgerpb.Escrow](newOverlay(g.state), []byte(k))
		lane, err := LaneOf(testNetwork, NewView(g.state), id, host, mesh.Epoch(epoch))
		if err != nil && g.rng.IntN(10) > 0 {
			continue
		}
		left := uint64(lane.Left())
		amount := g.rng.Uint64N(left/3 + 1)
		if g.rng.IntN(30) == 0 {
			amount = g.amount(left)
		}
		line := &ledgerpb.SettleLine{
			Escrow: id[:], Amount: amount, Receipts: 1 + g.rng.Uint64N(100), Total: amount, Root: g.bytes(32), Voucher: amount, Acknowledged: 1,
		}
		if g.rng.IntN(50) == 0 {
			line.Voucher = g.amount(amount)
		}
		if owner := g.keys[mesh.AddressOf(escrow.GetOwner())]; owner != nil {
			voucher, err := inference.SignVoucher(testNetwork, owner, &inference.Voucher{
				Escrow: id, Host: host, Epoch: mesh.Epoch(epoch), Amount: mesh.Amount(line.GetVoucher()), Receipts: line.GetAcknowledged(),
			})
			if err != nil {
				g.t.Fatal(err)
			}
			line.Signature = voucher.Signature
		}
		t.Lines = append(t.Lines, line)
	}
	slices.SortFunc(t.Lines, func(a, b *ledgerpb.SettleLine) int { return bytes.Compare(a.Escrow, b.Escrow) })
	return t
}
