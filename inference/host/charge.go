package host

import (
	"fmt"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// affordable checks the request's price cap against the most that it may cost: all
// choices at full length, and this one's prefix.
func affordable(c *inferencepb.Capability, r *inferencepb.Request, prompt, prefix, limit int) error {
	if r.GetPriceCap() == 0 {
		return nil
	}
	most, err := inference.Price(c, prompt, 0, limit, inference.FinishLength)
	if err == nil {
		most, err = most.Mul(uint64(r.GetChoices()))
	}
	if err == nil {
		var again mesh.Amount
		if again, err = inference.Price(c, 0, prefix, 0, inference.FinishLength); err == nil {
			most, err = most.Add(again)
		}
	}
	if err != nil || most > mesh.Amount(r.GetPriceCap()) {
		return &inference.Refusal{Code: inference.CodeTooDear,
			Message: fmt.Sprintf("it may cost %s here, and the cap is %s", most, mesh.Amount(r.GetPriceCap()))}
	}
	return nil
}

// charges reports whether answers of a model cost anything. Prices do not change while
// it is served.
func (h *Host) charges(l *lane) bool {
	return h.cfg.Till != nil && (l.capability.GetPricePrompt() > 0 || l.capability.GetPriceOutput() > 0)
}

// solvent refuses a call that cannot be paid for at all, before anything is made of its
// question: a token of prompt and one of the answer are the least that it costs.
func (h *Host) solvent(l *lane, call *inference.Call) error {
	if call.Request.Payer == h.self {
		return nil
	}
	output := min(1, max(0, int(call.Request.Pb.GetMaxTokens())-len(call.Prefix)))
	least, err := inference.Price(l.capability, 1, len(call.Prefix), output, inference.FinishLength)
	if err != nil {
		return err
	}
	return h.cfg.Till.Affords(call.Request, least)
}

// charge reserves the most that a choice may cost from the payer's escrow.
func (h *Host) charge(l *lane, call *inference.Call, prompt, room int) (func(*inferencepb.Signed), error) {
	if !h.charges(l) {
		return nil, nil
	}
	if call.Request.Payer == h.self {
		return nil, nil // to pay oneself moves nothing
	}
	output := min(room, int(call.Request.Pb.GetMaxTokens())) - len(call.Prefix)
	most, err := inference.Price(l.capability, prompt, len(call.Prefix), max(0, output), inference.FinishLength)
	if err != nil {
		return nil, err
	}
	return h.cfg.Till.Admit(call.Request, most)
}

// pay ends the reservation of an answer.
func (a *answer) pay(signed *inferencepb.Signed) {
	if a.paid != nil {
		a.paid(signed)
	}
}
