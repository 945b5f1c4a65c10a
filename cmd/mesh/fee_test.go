package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/node/api"
)

const feeNetwork = mesh.NetworkID("dev00000000")

// feeNode is a node that takes every transaction whose fee is enough, and keeps the last.
// Of the account it says that each one was carried out, the refused ones too.
type feeNode struct {
	*httptest.Server
	got     api.Submit // the last
	perByte uint64     // what a byte of a signed one costs
	tries   int
}

func newFeeNode(t *testing.T) *feeNode {
	n := &feeNode{}
	answer := func(w http.ResponseWriter, doc any) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(doc); err != nil {
			t.Error(err)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /mesh/v1/status", func(w http.ResponseWriter, _ *http.Request) { answer(w, api.Status{Network: feeNetwork}) })
	mux.HandleFunc("GET /mesh/v1/wallet", func(w http.ResponseWriter, _ *http.Request) { answer(w, api.Wallet{Nonce: uint64(n.tries)}) })
	mux.HandleFunc("GET /mesh/v1/rules", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, api.Rules{Params: map[string]uint64{"fee_per_byte": 100, "deposit_min": 1}})
	})
	mux.HandleFunc("POST /mesh/v1/tx", func(w http.ResponseWriter, r *http.Request) {
		n.got = api.Submit{}
		if err := json.NewDecoder(r.Body).Decode(&n.got); err != nil {
			t.Error(err)
		}
		n.tries++
		if signed := n.got.Signed; signed != nil && n.perByte > 0 {
			fee, least := parsed(t, signed).GetFee(), n.perByte*uint64(len(signed))
			if fee < least {
				w.WriteHeader(http.StatusBadRequest)
				answer(w, map[string]any{"error": map[string]any{"message": fmt.Sprintf("transaction refused: fee of %d ngonka, at least %d for %d bytes", fee, least, len(signed))}})
				return
			}
		}
		answer(w, api.Submitted{Height: 1})
	})
	n.Server = httptest.NewServer(mux)
	t.Cleanup(n.Close)
	return n
}

// parsed is what was signed; nil where it is nothing.
func parsed(t *testing.T, signed []byte) *ledgerpb.Tx {
	t.Helper()
	tx, err := ledger.ParseTx(feeNetwork, signed)
	if err != nil {
		t.Error(err)
		return nil
	}
	return tx.Pb
}

// withFee adds to a command the node, and the fee if there is one.
func (n *feeNode) withFee(fee string, args ...string) []string {
	line := append(args, "--api", n.URL)
	if fee != "" {
		line = append(line, "--fee", fee)
	}
	return line
}

// TestFeeFlag: what --fee says reaches the node that signs, and nothing without it.
func TestFeeFlag(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	node, proposal := newFeeNode(t), filepath.Join(t.TempDir(), "p.yaml")
	if err := os.WriteFile(proposal, []byte("title: T\ntext: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	to, id := mesh.Address{1}.String(), mesh.Hash{1}.String()
	for _, args := range [][]string{
		{"wallet", "send", to, "1"}, {"wallet", "escrow", "1"}, {"wallet", "escrow", "top", id, "1"},
		{"wallet", "escrow", "lane", id, to + "=1"}, {"wallet", "escrow", "close", id},
		{"host", "stake", "1", "--host", to}, {"host", "unstake", "1", "--host", to}, {"host", "unjail"}, {"host", "delegate", "all", "none"},
		{"gov", "propose", proposal}, {"gov", "vote", "1", "yes"},
	} {
		for fee, want := range map[string]mesh.Amount{"": 0, "0.0003": 300_000} {
			line := node.withFee(fee, args...)
			code, _, stderr := meshCommand(t, line...)
			if code != exitDone || node.got.Action == nil || node.got.Fee != want {
				t.Errorf("mesh %s: exit code %d, fee %d, want %d: %s", strings.Join(line, " "), code, node.got.Fee, want, stderr)
			}
		}
	}
}

// TestFeeSigned: what is signed with a key in a file pays what --fee says, and the least
// fee without it.
func TestFeeSigned(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	node, key := newFeeNode(t), filepath.Join(t.TempDir(), "key")
	if code, _, stderr := meshCommand(t, "wallet", "key", "new", key); code != exitDone {
		t.Fatal(stderr)
	}
	send := func(fee string) (code int, stderr string) {
		code, _, stderr = meshCommand(t, node.withFee(fee, "wallet", "send", mesh.Address{1}.String(), "1", "--key", key)...)
		return code, stderr
	}
	for _, asked := range []string{"", "0.0003"} {
		if code, stderr := send(asked); code != exitDone {
			t.Fatal(stderr)
		}
		signed := node.got.Signed
		if paid := parsed(t, signed).GetFee(); (paid == 300_000) != (asked != "") || paid < uint64(100*len(signed)) {
			t.Errorf("--fee %q: the signed fee is %d", asked, paid)
		}
	}
	// A byte costs more than the rules said: it is signed once more, with the same number,
	// unless the fee was named.
	for _, tt := range []struct {
		perByte uint64
		fee     string
		code    int
		tries   int
	}{
		{500, "", exitDone, 2}, {500, "0.0003", exitDone, 1}, {5000, "0.0003", exitFailed, 1}, {100_000, "", exitFailed, 1},
	} {
		node.perByte, node.tries = tt.perByte, 0
		if code, stderr := send(tt.fee); code != tt.code || node.tries != tt.tries {
			t.Errorf("%d a byte, --fee %q: exit code %d after %d tries, want %d after %d: %s", tt.perByte, tt.fee, code, node.tries, tt.code, tt.tries, stderr)
		} else if number := parsed(t, node.got.Signed).GetNonce(); number != 0 {
			t.Errorf("%d a byte, --fee %q: the number is %d, want 0, that it cannot be carried out twice", tt.perByte, tt.fee, number)
		}
	}
	node.perByte, node.got = 0, api.Submit{}
	if code, stderr := send("1"); code != exitFailed || !strings.Contains(stderr, "times the least") || node.got.Signed != nil {
		t.Errorf("a fee of 1 GNK: exit code %d: %s", code, stderr)
	}
}
