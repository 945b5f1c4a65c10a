package ledger

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"maps"
	"math/big"
	"os"
	"slices"
	"testing"

	curve "github.com/consensys/gnark-crypto/ecc/bls12-381"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/internal/bls"
	"github.com/gonka-mesh/mesh/internal/merkle"
)

var updateVectors = flag.Bool("update-vectors", false, "write testdata/vectors.json anew: a changed line splits the network")

// The inputs of the vectors. vectorScalar is the secret BLS key that vectorSeed gives.
const (
	vectorNetwork = "test0a1b2c3d"
	vectorScalar  = "50968865815318378628028168261588860769015941426407526984331236103143107580130"
)

func vectorSeed(n byte) []byte { return bytes.Repeat([]byte{n}, 32) }

// TestVectors pins the bytes that every implementation has to make, once as this one
// makes them and once by hand, as docs/protocol.md says.
func TestVectors(t *testing.T) {
	made, byHand := vectorsMade(t), vectorsByHand(t)
	for _, name := range slices.Sorted(maps.Keys(made)) {
		if made[name] != byHand[name] {
			t.Errorf("%s: made %s, by hand %s", name, made[name], byHand[name])
		}
	}
	if len(made) != len(byHand) {
		t.Errorf("%d vectors made, %d by hand", len(made), len(byHand))
	}
	const file = "testdata/vectors.json"
	raw, err := json.MarshalIndent(made, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	raw = append(raw, '\n')
	if *updateVectors {
		if err := os.WriteFile(file, raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	pinned, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(raw, pinned) {
		t.Errorf("%s has other bytes than are made:\n%s", file, raw)
	}
}

// vectorsMade are what this implementation makes.
func vectorsMade(t *testing.T) map[string]string {
	t.Helper()
	out := make(map[string]string)
	put := func(name string, b []byte) { out[name] = hex.EncodeToString(b) }
	key := ed25519.NewKeyFromSeed(vectorSeed(1))
	sender := addressOf(key)
	sign := func(name string, tx *ledgerpb.Tx) {
		raw, err := SignTx(vectorNetwork, key, tx)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := ParseTx(vectorNetwork, raw)
		if err != nil || !parsed.Verify(vectorNetwork) {
			t.Fatalf("%s: %v", name, err)
		}
		put(name+"_signed", raw)
		put(name+"_id", parsed.ID[:])
	}
	out["network"] = vectorNetwork
	put("sender_seed", vectorSeed(1))
	put("sender", sender[:])

	// Transactions: the fields of each kind of encoding, and what the first number leaves out.
	sign("transfer", &ledgerpb.Tx{Nonce: 300, Fee: 40_000,
		Action: &ledgerpb.Tx_Transfer{Transfer: &ledgerpb.Transfer{To: vectorSeed(0x22), Amount: 1_500_000_000, Memo: "rent"}}})
	sign("unjail", &ledgerpb.Tx{Fee: 1, Action: &ledgerpb.Tx_Unjail{Unjail: &ledgerpb.Unjail{}}})
	sign("open_escrow", &ledgerpb.Tx{Nonce: 301, Fee: 40_000, Action: &ledgerpb.Tx_OpenEscrow{OpenEscrow: &ledgerpb.OpenEscrow{Amount: 9,
		Lanes: []*ledgerpb.Lane{{Host: vectorSeed(0x22), Cap: 1}, {Host: vectorSeed(0x33), Cap: 2}}}}})
	escrow, run := EscrowID(vectorNetwork, sender, 301), RunID(vectorNetwork, sender, 302)
	put("escrow_301", escrow[:])
	put("run_302", run[:])

	// Keys of a host, on this network and in a genesis document of its name.
	consensus := ed25519.NewKeyFromSeed(vectorSeed(2))
	secret, err := bls.NewSecretKey(vectorSeed(3))
	if err != nil {
		t.Fatal(err)
	}
	put("consensus_seed", vectorSeed(2))
	put("bls_seed", vectorSeed(3))
	put("bls_key", secret.Public().Bytes())
	for name, network := range map[string]mesh.NetworkID{"host": vectorNetwork, "genesis_host": GenesisNetwork("test")} {
		p := HostProof(network, sender, secret.Public().Bytes())
		r := &ledgerpb.RegisterHost{ConsensusKey: consensus.Public().(ed25519.PublicKey), ConsensusProof: ed25519.Sign(consensus, p), BlsKey: secret.Public().Bytes()}
		if r.BlsProof, err = secret.Prove(p); err != nil {
			t.Fatal(err)
		}
		if err := testMachine().checkKeys(network, sender, r); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		put(name+"_consensus_proof", r.ConsensusProof)
		put(name+"_bls_proof", r.BlsProof)
	}

	// A beacon alone, and the randomness of the first blocks of a network with one host.
	signature, err := secret.Sign(BeaconMessage(vectorNetwork, 300))
	if err != nil {
		t.Fatal(err)
	}
	beacon, err := EncodeBeacon(300, sender, signature)
	if err != nil || !VerifyBeacon(vectorNetwork, secret.Public().Bytes(), signature, 300) {
		t.Fatal("the beacon does not verify", err)
	}
	put("beacon_300", beacon)
	w := newWorld(t, worldParams(), []string{"ann"})
	out["rand_network"] = string(testNetwork)
	put("rand_0", randOf(w))
	for _, n := range []string{"1", "2"} {
		b := w.next()
		put("rand_beacon_"+n, b.Txs[0])
		w.apply(b)
		put("rand_"+n, randOf(w))
	}

	// Three hosts' parts of an epoch.
	var leaves []mesh.Hash
	for i, r := range []*ledgerpb.Reward{
		{Host: vectorSeed(0x22), Weight: 5, Power: 1_000_000, Reward: 190_000_000_000_000, Paid: 7},
		{Host: vectorSeed(0x33), Weight: 1},
		{Host: vectorSeed(0x44), Paid: 300},
	} {
		leaf := RewardLeaf(r)
		put("reward_leaf_"+string(rune('1'+i)), leaf[:])
		leaves = append(leaves, leaf)
	}
	root := merkle.Root(leaves)
	put("rewards_root", root[:])
	return out
}

// vectorsByHand are the same from the text of the protocol: no message, domain or tree of
// this implementation is used. Of the beacons of the world's host only what is done with
// them is by hand.
func vectorsByHand(t *testing.T) map[string]string {
	t.Helper()
	out := make(map[string]string)
	put := func(name string, b []byte) { out[name] = hex.EncodeToString(b) }
	number := func(field int, n uint64) []byte {
		if n == 0 {
			return nil
		}
		return binary.AppendUvarint(binary.AppendUvarint(nil, uint64(field)<<3), n)
	}
	member := func(field int, b []byte) []byte { // also where it is empty
		return append(binary.AppendUvarint(binary.AppendUvarint(nil, uint64(field)<<3|2), uint64(len(b))), b...)
	}
	cat := slices.Concat[[]byte]
	preimage := func(tag, network string, b []byte) []byte {
		return cat([]byte(tag), []byte{0}, []byte(network), []byte{0}, b)
	}
	hash := func(parts ...[]byte) []byte { h := sha256.Sum256(cat(parts...)); return h[:] }
	eight := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

	key := ed25519.NewKeyFromSeed(vectorSeed(1))
	sender := []byte(key.Public().(ed25519.PublicKey))
	out["network"] = vectorNetwork
	put("sender_seed", vectorSeed(1))
	put("sender", sender)
	sign := func(name string, nonce, fee uint64, action []byte) {
		body := cat(member(1, sender), number(2, nonce), number(3, fee), action)
		p := preimage("mesh/tx/1", vectorNetwork, body)
		put(name+"_signed", cat(member(1, body), member(2, ed25519.Sign(key, p))))
		put(name+"_id", hash(p))
	}
	sign("transfer", 300, 40_000, member(10, cat(member(1, vectorSeed(0x22)), number(2, 1_500_000_000), member(3, []byte("rent")))))
	sign("unjail", 0, 1, member(14, nil))
	sign("open_escrow", 301, 40_000, member(20, cat(number(1, 9),
		member(2, cat(member(1, vectorSeed(0x22)), number(2, 1))), member(2, cat(member(1, vectorSeed(0x33)), number(2, 2))))))
	put("escrow_301", hash(preimage("mesh/escrow/1", vectorNetwork, cat(sender, eight(301)))))
	put("run_302", hash(preimage("mesh/run/1", vectorNetwork, cat(sender, eight(302)))))

	consensus := ed25519.NewKeyFromSeed(vectorSeed(2))
	scalar, ok := new(big.Int).SetString(vectorScalar, 10)
	if !ok {
		t.Fatal("the scalar is no number")
	}
	_, _, generator, _ := curve.Generators()
	var public curve.G1Affine
	public.ScalarMultiplication(&generator, scalar)
	blsBytes := public.Bytes()
	blsKey := blsBytes[:]
	blsSign := func(tag string, message []byte) []byte {
		h, err := curve.HashToG2(message, []byte(tag))
		if err != nil {
			t.Fatal(err)
		}
		var s curve.G2Affine
		s.ScalarMultiplication(&h, scalar)
		b := s.Bytes()
		return b[:]
	}
	put("consensus_seed", vectorSeed(2))
	put("bls_seed", vectorSeed(3))
	put("bls_key", blsKey)
	for name, network := range map[string]string{"host": vectorNetwork, "genesis_host": "test00000000"} {
		p := preimage("mesh/host/1", network, cat(sender, blsKey))
		put(name+"_consensus_proof", ed25519.Sign(consensus, p))
		put(name+"_bls_proof", blsSign("BLS_POP_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_", cat(blsKey, p)))
	}
	put("beacon_300", cat([]byte{0}, number(1, 300), member(2, sender),
		member(3, blsSign("BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_", preimage("mesh/beacon/1", vectorNetwork, eight(300))))))

	out["rand_network"] = string(testNetwork)
	rand := hash(preimage("mesh/rand/1", string(testNetwork), []byte("genesis")))
	put("rand_0", rand)
	w := newWorld(t, worldParams(), []string{"ann"})
	for i, n := range []string{"1", "2"} {
		height := uint64(i + 1)
		k := w.proposer(mesh.Height(height))
		host := w.address(k.host)
		signature, err := k.bls.Sign(preimage("mesh/beacon/1", string(testNetwork), eight(height)))
		if err != nil {
			t.Fatal(err)
		}
		put("rand_beacon_"+n, cat([]byte{0}, number(1, height), member(2, host[:]), member(3, signature)))
		rand = hash(preimage("mesh/rand/1", string(testNetwork), cat(rand, signature)))
		put("rand_"+n, rand)
	}

	leaves := [][]byte{
		hash(member(1, vectorSeed(0x22)), number(2, 5), number(3, 1_000_000), number(4, 190_000_000_000_000), number(5, 7)),
		hash(member(1, vectorSeed(0x33)), number(2, 1)),
		hash(member(1, vectorSeed(0x44)), number(5, 300)),
	}
	for i, leaf := range leaves {
		put("reward_leaf_"+string(rune('1'+i)), leaf)
	}
	two := hash([]byte{1}, hash([]byte{0}, leaves[0]), hash([]byte{0}, leaves[1]))
	put("rewards_root", hash([]byte{1}, two, hash([]byte{0}, leaves[2])))
	return out
}
