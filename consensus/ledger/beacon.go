package ledger

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/internal/bls"
)

// Randomness: rand_h = H(mesh/rand/1, network, rand_{h-1} ‖ signature), where signature
// is the proposer's BLS signature over network and height. It is unique, so a proposer
// can only choose whether its block is made: one bit for each it proposes in a row.
// The BLS key is the one that was registered with the consensus key that proposes, so
// that a host which replaced its keys proposes with the old ones until consensus takes
// the new ones. A key that is new signs, and the height is mixed in instead: whoever
// knows rand_{h-1} and proposes h could otherwise try keys until it likes rand_h.

const domainBeacon mesh.Domain = "mesh/beacon/1"

// freshBlocks is how long a BLS key is new. That one proposer makes so many blocks in a
// row, without another's signature in between, does not happen.
const freshBlocks = 64

// beaconByte begins a beacon in a block: no protobuf message does.
const beaconByte = 0

// maxBeacon is what a beacon has at most: height, address and signature.
const maxBeacon = 160

func isBeacon(raw []byte) bool { return len(raw) > 0 && raw[0] == beaconByte }

// BeaconMessage is what a proposer signs.
func BeaconMessage(network mesh.NetworkID, height mesh.Height) []byte {
	return domainBeacon.Preimage(network, be64(uint64(height)))
}

// EncodeBeacon makes the first transaction of a block.
func EncodeBeacon(height mesh.Height, host mesh.Address, signature []byte) ([]byte, error) {
	b, err := encode(&ledgerpb.Beacon{Height: uint64(height), Host: host[:], Signature: signature})
	if err != nil {
		return nil, fmt.Errorf("encode beacon: %w", err)
	}
	return append([]byte{beaconByte}, b...), nil
}

// VerifyBeacon reports whether a signature is that of a BLS key for a height.
func VerifyBeacon(network mesh.NetworkID, blsKey, signature []byte, height mesh.Height) bool {
	public, err := bls.ParsePublicKey(blsKey)
	return err == nil && public.Verify(BeaconMessage(network, height), signature)
}

// beacon returns what a block's beacon mixes into the randomness, or why it is not the
// proposer's.
func (m *Machine) beacon(o *overlay, block Block) ([]byte, error) {
	if len(block.Txs) == 0 || !isBeacon(block.Txs[0]) {
		return nil, refuse("the block has no beacon")
	}
	if len(block.Txs[0]) > maxBeacon {
		return nil, refuse("a beacon of %d bytes, at most %d", len(block.Txs[0]), maxBeacon)
	}
	pb := new(ledgerpb.Beacon)
	if err := decode(block.Txs[0][1:], pb); err != nil {
		return nil, refuse("beacon: %v", err)
	}
	index, ok := load[ledgerpb.ConsensusKey](o, consensusIndex(block.Proposer))
	switch {
	case !ok:
		return nil, refuse("the proposer is no host")
	case pb.GetHeight() != uint64(block.Height):
		return nil, refuse("the beacon is of height %d", pb.GetHeight())
	case !bytes.Equal(pb.GetHost(), index.GetHost()):
		return nil, refuse("the beacon is not the proposer's")
	case !m.cfg.VerifyBeacon(index.GetBlsKey(), pb.GetSignature(), block.Height):
		return nil, refuse("the beacon's signature does not verify")
	case uint64(block.Height) < index.GetMixes():
		return be64(uint64(block.Height)), nil
	}
	return pb.GetSignature(), nil
}

// checkBeacon judges a beacon by the state that the block's own upgrade leaves, as
// mixRand does. What it writes into the overlay is thrown away.
func (m *Machine) checkBeacon(o *overlay, block Block) error {
	err := m.upgrade(o, &blockState{height: block.Height})
	if err == nil {
		_, err = m.beacon(o, block)
	}
	return err
}

// mixRand moves the randomness on. A decided block without a good beacon is one that
// more than two thirds made against the rules; it mixes its height in.
func (m *Machine) mixRand(o *overlay, b *blockState, block Block) {
	mixed, err := m.beacon(o, block)
	if err != nil {
		mixed = be64(uint64(b.height))
	}
	rand := domainRand.Hash(m.cfg.Network, slices.Concat(b.epoch.GetRand(), mixed))
	b.epoch.Rand = rand[:]
}
