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
	"github.com/gonka-mesh/mesh/node/api"
)

// TestFeeFlag: whatever signs, what --fee says is paid, and the least fee without it.
func TestFeeFlag(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	const network = mesh.NetworkID("dev00000000")
	var got api.Submit
	perByte, tries := uint64(0), 0 // what a byte costs
	answer := func(w http.ResponseWriter, doc any) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(doc); err != nil {
			t.Error(err)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /mesh/v1/status", func(w http.ResponseWriter, _ *http.Request) { answer(w, api.Status{Network: network}) })
	mux.HandleFunc("GET /mesh/v1/wallet", func(w http.ResponseWriter, _ *http.Request) { answer(w, api.Wallet{}) })
	mux.HandleFunc("GET /mesh/v1/rules", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, api.Rules{Params: map[string]uint64{"fee_per_byte": 100, "deposit_min": 1}})
	})
	mux.HandleFunc("POST /mesh/v1/tx", func(w http.ResponseWriter, r *http.Request) {
		got = api.Submit{}
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			t.Error(err)
		}
		tries++
		if got.Signed != nil && perByte > 0 {
			tx, err := ledger.ParseTx(network, got.Signed)
			if err != nil {
				t.Error(err)
			}
			if least := perByte * uint64(len(got.Signed)); tx.Pb.GetFee() < least {
				w.WriteHeader(http.StatusBadRequest)
				answer(w, map[string]any{"error": map[string]any{"message": fmt.Sprintf("transaction refused: fee of %d ngonka, at least %d for %d bytes", tx.Pb.GetFee(), least, len(got.Signed))}})
				return
			}
		}
		answer(w, api.Submitted{Height: 1})
	})
	node := httptest.NewServer(mux)
	defer node.Close()
	key, proposal := filepath.Join(t.TempDir(), "key"), filepath.Join(t.TempDir(), "p.yaml")
	if code, _, stderr := meshCommand(t, "wallet", "key", "new", key); code != exitDone {
		t.Fatal(stderr)
	}
	if err := os.WriteFile(proposal, []byte("title: T\ntext: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	to, id := mesh.Address{1}.String(), mesh.Hash{1}.String()
	const fee = 300_000
	for _, args := range [][]string{
		{"wallet", "send", to, "1"}, {"wallet", "escrow", "1"}, {"wallet", "escrow", "top", id, "1"},
		{"wallet", "escrow", "lane", id, to + "=1"}, {"wallet", "escrow", "close", id},
		{"host", "stake", "1", "--host", to}, {"host", "unstake", "1", "--host", to}, {"host", "unjail"}, {"host", "delegate", "all", "none"},
		{"gov", "propose", proposal}, {"gov", "vote", "1", "yes"},
	} {
		for _, want := range []mesh.Amount{0, fee} {
			line := append(args, "--api", node.URL)
			if want > 0 {
				line = append(line, "--fee", "0.0003")
			}
			code, _, stderr := meshCommand(t, line...)
			if code != exitDone || got.Action == nil || got.Fee != want {
				t.Errorf("mesh %s: exit code %d, fee %d, want %d: %s", strings.Join(line, " "), code, got.Fee, want, stderr)
			}
		}
	}
	for _, asked := range []string{"", "0.0003"} {
		line := []string{"wallet", "send", to, "1", "--key", key, "--api", node.URL}
		if asked != "" {
			line = append(line, "--fee", asked)
		}
		if code, _, stderr := meshCommand(t, line...); code != exitDone {
			t.Fatal(stderr)
		}
		tx, err := ledger.ParseTx(network, got.Signed)
		if err != nil {
			t.Fatal(err)
		}
		if paid := tx.Pb.GetFee(); (paid == fee) != (asked != "") || paid < uint64(100*len(got.Signed)) {
			t.Errorf("--fee %q: the signed fee is %d", asked, paid)
		}
	}
	// A byte costs more than the rules said: it is signed once more, unless the fee was named.
	for _, tt := range []struct {
		perByte uint64
		fee     string
		code    int
		tries   int
	}{
		{500, "", exitDone, 2}, {500, "0.0003", exitDone, 1}, {5000, "0.0003", exitFailed, 1}, {100_000, "", exitFailed, 1},
	} {
		perByte, tries = tt.perByte, 0
		line := []string{"wallet", "send", to, "1", "--key", key, "--api", node.URL}
		if tt.fee != "" {
			line = append(line, "--fee", tt.fee)
		}
		if code, _, stderr := meshCommand(t, line...); code != tt.code || tries != tt.tries {
			t.Errorf("%d a byte, --fee %q: exit code %d after %d tries, want %d after %d: %s", tt.perByte, tt.fee, code, tries, tt.code, tt.tries, stderr)
		}
	}
	perByte = 0
	got = api.Submit{}
	code, _, stderr := meshCommand(t, "wallet", "send", to, "1", "--key", key, "--api", node.URL, "--fee", "1")
	if code != exitFailed || !strings.Contains(stderr, "times the least") || got.Signed != nil {
		t.Errorf("a fee of 1 GNK: exit code %d: %s", code, stderr)
	}
}
