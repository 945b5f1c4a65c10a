package node

import (
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/inference/receipts"
	"github.com/gonka-mesh/mesh/node/api"
)

// tally keeps receipts, and counts those that this node signed since it started.
type tally struct {
	store *receipts.Store
	self  mesh.Address

	mu  sync.Mutex
	sum api.Served // guarded by mu
}

// Put keeps a receipt.
func (t *tally) Put(request mesh.Hash, signed *inferencepb.Signed) error {
	if err := t.store.Put(request, signed); err != nil {
		return err
	}
	r := new(inferencepb.Receipt)
	if proto.Unmarshal(signed.GetBody(), r) == nil && string(r.GetHost()) == string(t.self[:]) && r.GetFinish() != string(inference.FinishOpen) {
		t.mu.Lock()
		t.sum.Receipts++
		t.sum.PromptTokens += int64(r.GetPromptTokens())
		t.sum.OutputTokens += int64(r.GetOutputTokens())
		t.sum.Earned += mesh.Amount(r.GetPrice())
		t.mu.Unlock()
	}
	return nil
}

func (t *tally) served() api.Served {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sum
}
