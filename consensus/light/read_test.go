package light

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/consensus/light/lightpb"
	"github.com/gonka-mesh/mesh/consensus/state/proof"
)

func accountValue(t testing.TB, a *ledgerpb.Account) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func user(i int) mesh.Address { return mesh.Address(mesh.HashOf(fmt.Appendf(nil, "user %d", i))) }

// bankWorld has a state with 20 accounts whose balance is the height.
func bankWorld(t testing.TB, n int) *world {
	w := newWorld(t, smallChain(), n, 12)
	w.withState(12, func(h int64) []ledger.Change {
		var out []ledger.Change
		for i := range 20 {
			out = append(out, ledger.Change{Key: ledger.AccountKey(user(i)), Value: accountValue(t, &ledgerpb.Account{Balance: uint64(h), Nonce: uint64(i)})})
		}
		slices.SortFunc(out, func(a, b ledger.Change) int { return slices.Compare(a.Key, b.Key) })
		return out
	})
	return w
}

func TestRecords(t *testing.T) {
	w := bankWorld(t, 3)
	c := w.client()
	value, height, err := c.Record(t.Context(), ledger.AccountKey(user(3)))
	if err != nil || height != 11 || string(value) != string(accountValue(t, &ledgerpb.Account{Balance: 11, Nonce: 3})) {
		t.Errorf("record %x at %d, %v", value, height, err)
	}
	if value, _, err := c.Record(t.Context(), ledger.AccountKey(user(99))); err != nil || value != nil {
		t.Errorf("a record that is not there: %x, %v", value, err)
	}
	if _, _, err := c.Record(t.Context(), nil); err == nil {
		t.Error("no key")
	}
	r := c.Reader(t.Context())
	account, err := ledger.NewView(r).Account(user(4))
	if err != nil || r.Err() != nil || account.GetBalance() != 11 || r.Height() != 11 {
		t.Errorf("account %v at %d, %v, %v", account, r.Height(), err, r.Err())
	}
	// A reader stays at its height while the ledger goes on.
	for _, n := range w.nodes {
		n.tip.Store(13)
	}
	w.at(13)
	w.head(c, 13)
	if account, err = ledger.NewView(r).Account(user(5)); err != nil || account.GetBalance() != 11 {
		t.Errorf("account %v of a reader of height 11, %v", account, err)
	}
	var seen [][]byte
	r.Iterate([]byte{'A'}, func(k, v []byte) bool { seen = append(seen, k); return len(seen) < 15 })
	if r.Err() != nil || len(seen) != 15 || !slices.IsSortedFunc(seen, slices.Compare) {
		t.Errorf("%d keys, %v", len(seen), r.Err())
	}
	w.fined()
}

// TestFalseRecords shows a client one peer that lies about records. It reads the truth
// from the next, and the liar is cut off.
func TestFalseRecords(t *testing.T) {
	key := ledger.AccountKey(user(3))
	honest := bankWorld(t, 1).nodes[0].store
	prove := func(key []byte, height mesh.Height) proof.Proof {
		p, err := honest.Prove(key, height)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	bad := map[string][]byte{
		"nothing":               {},
		"noise":                 []byte("proof"),
		"a proof of another":    prove(ledger.AccountKey(user(4)), 11).Marshal(),
		"of another height":     prove(key, 10).Marshal(),
		"absence":               proof.Proof{Key: key}.Marshal(),
		"one under another key": func() []byte { p := prove(ledger.AccountKey(user(4)), 11); p.Key = key; return p.Marshal() }(),
		"absence of a neighbour": func() []byte {
			p := prove(ledger.AccountKey(user(77)), 11)
			p.Key = key
			return p.Marshal()
		}(),
		"a richer account": func() []byte {
			p := prove(key, 11)
			i := slices.Index(p.Commitment, 11) // the balance
			p.Commitment[i] = 99
			return p.Marshal()
		}(),
	}
	for name, raw := range bad {
		w := bankWorld(t, 2)
		w.nodes[0].answer = func(a *lightpb.Ask) *lightpb.Answer {
			if a.GetRecord() == nil {
				return nil
			}
			return &lightpb.Answer{Got: &lightpb.Answer_Proof{Proof: raw}}
		}
		c := w.client()
		w.head(c, 12)
		value, _, err := c.Record(t.Context(), key)
		if err != nil || string(value) != string(accountValue(t, &ledgerpb.Account{Balance: 11, Nonce: 3})) {
			t.Errorf("%s: record %x, %v", name, value, err)
		}
		w.fined(0)
	}
}

// TestMissingRecord goes on to the next peer when one says that it has no such state.
func TestMissingRecord(t *testing.T) {
	w := bankWorld(t, 2)
	w.nodes[0].answer = func(a *lightpb.Ask) *lightpb.Answer {
		if a.GetRecord() == nil {
			return nil
		}
		return &lightpb.Answer{Got: &lightpb.Answer_Error{Error: &lightpb.Error{Code: lightpb.Error_NOT_FOUND}}}
	}
	if value, _, err := w.client().Record(t.Context(), ledger.AccountKey(user(3))); err != nil || value == nil {
		t.Errorf("record %x, %v", value, err)
	}
	w.fined()
}

func TestFalseKeys(t *testing.T) {
	for name, keys := range map[string][][]byte{
		"of another table": {[]byte("B1")}, "out of order": {[]byte("A2"), []byte("A1")}, "twice": {[]byte("A1"), []byte("A1")},
		"too long": {append([]byte("A"), make([]byte, proof.MaxKey)...)},
	} {
		w := bankWorld(t, 2)
		w.nodes[0].answer = func(a *lightpb.Ask) *lightpb.Answer {
			if a.GetKeys() == nil {
				return nil
			}
			return &lightpb.Answer{Got: &lightpb.Answer_Keys{Keys: &lightpb.KeyList{Keys: keys}}}
		}
		c := w.client()
		w.head(c, 12)
		r, n := c.Reader(t.Context()), 0
		r.Iterate([]byte{'A'}, func(_, _ []byte) bool { n++; return true })
		if r.Err() != nil || n != 20 {
			t.Errorf("%s: %d keys, %v", name, n, r.Err())
		}
		w.fined(0)
	}
}

// TestPages lists more keys than one answer has; a peer that never ends is not followed
// for ever.
func TestPages(t *testing.T) {
	w := bankWorld(t, 1)
	endless := func(a *lightpb.Ask) *lightpb.Answer {
		if a.GetKeys() == nil {
			return nil
		}
		from := 0
		if after := a.GetKeys().GetAfter(); after != nil {
			fmt.Sscanf(string(after), "A%09d", &from)
		}
		out := new(lightpb.KeyList)
		for i := range MaxKeys {
			out.Keys = append(out.Keys, fmt.Appendf(nil, "A%09d", from+1+i))
		}
		return &lightpb.Answer{Got: &lightpb.Answer_Keys{Keys: out}}
	}
	w.nodes[0].answer = endless
	c := w.client()
	if _, err := c.keys(t.Context(), []byte{'A'}); err == nil {
		t.Error("a table without end")
	}
	w.nodes[0].answer = func(a *lightpb.Ask) *lightpb.Answer {
		out := endless(a)
		if out != nil && len(a.GetKeys().GetAfter()) > 0 {
			out.GetKeys().Keys = out.GetKeys().Keys[:5]
		}
		return out
	}
	if keys, err := c.keys(t.Context(), []byte{'A'}); err != nil || len(keys) != MaxKeys+5 {
		t.Errorf("%d keys, %v", len(keys), err)
	}
}
