package api

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh"
)

// stubLedger has one account, and no rules yet.
type stubLedger struct{ Ledger }

func (stubLedger) Wallet(_ context.Context, a mesh.Address) (Wallet, error) {
	return Wallet{Address: a, Balance: 7}, nil
}
func (stubLedger) Rules(context.Context) (Rules, error) { return Rules{}, ErrNoLedger }
func (stubLedger) Submit(context.Context, Submit) (Submitted, error) {
	return Submitted{Height: 9}, nil
}
func (stubLedger) Epoch(context.Context, mesh.Epoch) (Epoch, error) {
	return Epoch{}, context.DeadlineExceeded
}

// stubNode takes any receipts for good.
type stubNode struct{ Node }

func (stubNode) VerifySigned(context.Context, [][]byte) Verification { return Verification{OK: true} }

// TestLedgerRoutes: what everybody can read of the ledger needs no token; the wallet, to
// spend, and to have the node ask around do.
func TestLedgerRoutes(t *testing.T) {
	h := Handler(stubNode{}, struct{ Control }{}, stubLedger{}, Guard{Token: "secret-token"})
	for _, c := range []struct {
		method, path, token, body string
		want                      int
		says                      string
	}{
		{"GET", "/mesh/v1/wallet", "", "", 401, "token_needed"},
		{"GET", "/mesh/v1/wallet", "secret-token", "", 200, `"balance_ngonka": 7`},
		{"GET", "/mesh/v1/wallet?address=nobody", "secret-token", "", 400, "invalid_address"},
		{"POST", "/mesh/v1/receipts/verify", "", `[{"signed": "AA=="}]`, 401, "token_needed"},
		{"POST", "/mesh/v1/receipts/verify", "secret-token", `[{"signed": "AA=="}]`, 200, `"ok": true`},
		{"GET", "/mesh/v1/poc", "", "", 404, `"type":"invalid_request_error","code":"not_found"`},
		{"GET", "/mesh/v1/rules", "", "", 404, "no_ledger"},
		{"GET", "/mesh/v1/epochs/3", "", "", 504, "timeout"},
		{"GET", "/mesh/v1/epochs/x", "", "", 400, "invalid_number"},
		{"POST", "/mesh/v1/tx", "", `{"action": {}}`, 401, "token_needed"},
		{"POST", "/mesh/v1/tx", "secret-token", `{"action": {}}`, 200, `"height": 9`},
		{"POST", "/mesh/v1/tx", "secret-token", `{"action": {}, "signed": "AA=="}`, 400, "invalid_body"},
		{"POST", "/mesh/v1/tx", "secret-token", `{"action": {}, "fee_ngonka": 5}`, 200, `"height": 9`},
		{"POST", "/mesh/v1/tx", "secret-token", `{"signed": "AA==", "fee_ngonka": 5}`, 400, "invalid_body"},
		{"POST", "/mesh/v1/tx", "secret-token", `{}`, 400, "invalid_body"},
	} {
		r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
		r.Header.Set("Mesh-Token", c.token)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.want || !strings.Contains(w.Body.String(), c.says) {
			t.Errorf("%s %s: %d %s, want %d with %q", c.method, c.path, w.Code, w.Body, c.want, c.says)
		}
	}
}
