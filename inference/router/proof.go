package router

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/internal/plainly"
)

const (
	proofTimeout = 10 * time.Second
	maxProof     = 32 << 10
)

// Proof asks a host to show that a receipt that it signed is in its settlement. The
// receipt is named by the hash of its body; what comes back is not checked.
func (r *Router) Proof(ctx context.Context, host mesh.Address, receipt mesh.Hash) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	req, err := newCall(ctx, http.MethodGet, host, "/v1/proof/"+receipt.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := r.transport.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", host.Short(), err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxProof+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("ask %s: %w", host.Short(), err)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s says: %.300s", host.Short(), plainly.Said(inference.ParseRefusal(resp.StatusCode, body)).Error())
	case len(body) > maxProof:
		return nil, fmt.Errorf("%s sent more than %d bytes", host.Short(), maxProof)
	}
	return body, nil
}
