package proof

import (
	"bytes"
	"testing"

	"github.com/gonka-mesh/mesh"
)

func FuzzVerify(f *testing.F) {
	f.Add(Proof{Key: []byte("A1")}.Marshal())
	f.Add(Proof{Key: []byte("A1"), Commitment: []byte{0x0a, 0x04, 0x0a, 0x02, 'A', '1'}}.Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Unmarshal(b)
		if err != nil {
			return
		}
		if !bytes.Equal(p.Marshal(), b) {
			t.Fatalf("%x encodes as something else", b)
		}
		if _, _, err := Verify(mesh.Hash{1, 2, 3}, p); err == nil {
			t.Fatalf("%x proves something of a state that nobody knows", b)
		}
	})
}
