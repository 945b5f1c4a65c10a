package ledger

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// forge finds a message that a signature of zeros and a point of small order pass for,
// under a key whose secret nobody has.
func forge(key [32]byte) (message, signature []byte, ok bool) {
	for n := range 64 {
		message = be64(uint64(n))
		for _, r := range smallOrder {
			for _, sign := range []byte{0, 0x80} {
				signature = append(bytes.Clone(r[:]), make([]byte, 32)...)
				signature[31] |= sign
				if ed25519.Verify(key[:], message, signature) {
					return message, signature, true
				}
			}
		}
	}
	return nil, nil, false
}

// TestKeysOfNobody: for each of the keys that are refused anybody makes signatures, and
// for others not; none of them sends, receives, owns or signs blocks.
func TestKeysOfNobody(t *testing.T) {
	if _, _, ok := forge(addressOf(secret("ann"))); ok {
		t.Fatal("anybody signs for an honest key: the test shows nothing")
	}
	w := newWorld(t, worldParams(), []string{"ann"}, "dan")
	for _, k := range smallOrder {
		for _, sign := range []byte{0, 0x80} {
			key := k
			key[31] |= sign
			if _, _, ok := forge(key); !ok {
				t.Errorf("%x: no forged signature passes, so it is somebody's or no key", key)
			}
			for what, action := range map[string]*ledgerpb.Tx{
				"recipient": {Action: &ledgerpb.Tx_Transfer{Transfer: &ledgerpb.Transfer{To: key[:], Amount: 1}}},
				"owner":     {Action: &ledgerpb.Tx_RegisterHost{RegisterHost: &ledgerpb.RegisterHost{Host: addressBytes(w.address("ann")), Owner: key[:]}}},
			} {
				name := map[string]string{"recipient": "dan", "owner": "ann"}[what]
				w.block(w.tx(name, nil, action))
				refusedWith(t, w.out.Results[1].Err, "is nobody's")
			}
			r := w.registration(testNetwork, w.newKeys("dan", 0))
			r.ConsensusKey = key[:]
			refusedWith(t, testMachine().checkKeys(testNetwork, w.address("dan"), r), "is nobody's")
			raw, err := encode(&ledgerpb.Tx{Sender: key[:], Action: &ledgerpb.Tx_Unjail{Unjail: &ledgerpb.Unjail{}}})
			if err != nil {
				t.Fatal(err)
			}
			if raw, err = encode(&ledgerpb.SignedTx{Body: raw, Signature: make([]byte, 64)}); err != nil {
				t.Fatal(err)
			}
			_, err = ParseTx(testNetwork, raw)
			refusedWith(t, err, "is nobody's")
			o := newOverlay(empty{})
			if err := allocate(o, []Allocation{{Address: key, Amount: "1", Group: GroupTeam}}); err == nil {
				t.Errorf("%s: the genesis gives coins to nobody", hex.EncodeToString(key[:]))
			}
		}
	}
}

func addressBytes(a mesh.Address) []byte { return a[:] }
