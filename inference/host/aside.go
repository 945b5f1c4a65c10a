package host

import (
	"fmt"
	"io"
	"net/http"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// The calls beside answers: cancels, vouchers, proofs.

const maxCancelBytes = 512

func (h *Host) handleCancel(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxCancelBytes))
	if err != nil {
		refuse(w, fmt.Errorf("%w: read the cancel: %w", inference.ErrInvalid, err))
		return
	}
	n, err := h.cancelSigned(body)
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, "{\"cancelled\":%d}\n", n)
}

// cancelSigned ends the running answers that a signed Cancel names, and returns how
// many. Its payer's signature counts, whoever brings it.
func (h *Host) cancelSigned(body []byte) (int, error) {
	s := new(inferencepb.Signed)
	if err := proto.Unmarshal(body, s); err != nil {
		return 0, fmt.Errorf("%w: cancel: %w", inference.ErrInvalid, err)
	}
	request, choice, verify, err := inference.ParseCancel(s)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", inference.ErrInvalid, err)
	}
	h.mu.Lock()
	var found []*answer
	for k, a := range h.running {
		if k.request == request && k.choice == choice {
			found = append(found, a)
		}
	}
	h.mu.Unlock()
	for _, a := range found {
		if !verify(h.cfg.Network, a.call.Request.Payer) {
			return 0, &inference.Refusal{Code: inference.CodeForbidden, Message: "the cancel is not signed by the payer"}
		}
		a.cancelled.Store(true)
		a.cancel(errGone)
	}
	return len(found), nil
}

// maxVoucherCall bounds the body of a voucher's call: voucher, signature, and room for newer fields.
const maxVoucherCall = 1024

// handleVoucher takes a payer's acknowledgement; the payer's signature counts, whoever
// brings it.
func (h *Host) handleVoucher(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxVoucherCall))
	if err != nil {
		refuse(w, fmt.Errorf("%w: read the voucher: %w", inference.ErrInvalid, err))
		return
	}
	s := new(inferencepb.Signed)
	if err := proto.Unmarshal(body, s); err != nil {
		refuse(w, fmt.Errorf("%w: voucher: %w", inference.ErrInvalid, err))
		return
	}
	if h.cfg.Till == nil {
		refuse(w, fmt.Errorf("%w: this host takes no vouchers", inference.ErrInvalid))
		return
	}
	if err := h.cfg.Till.Voucher(s); err != nil {
		refuse(w, fmt.Errorf("%w: %w", inference.ErrInvalid, err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// handleProof shows that a receipt is in a settlement of this host.
func (h *Host) handleProof(w http.ResponseWriter, r *http.Request) {
	id, err := mesh.ParseHash(r.PathValue("receipt"))
	if err != nil {
		refuse(w, fmt.Errorf("%w: %w", inference.ErrInvalid, err))
		return
	}
	if h.cfg.Till == nil {
		refuse(w, fmt.Errorf("%w: this host settles nothing", inference.ErrInvalid))
		return
	}
	proof, err := h.cfg.Till.Proof(id)
	if err != nil {
		refuse(w, fmt.Errorf("%w: %w", inference.ErrInvalid, err))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(proof) // who is gone needs none
}
