package consensus

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	"github.com/cometbft/cometbft/types"
	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/light"
	"github.com/gonka-mesh/mesh/consensus/light/lightpb"
	"github.com/gonka-mesh/mesh/consensus/state"
	"github.com/gonka-mesh/mesh/p2p"
)

// Desk answers light peers: headers, proofs, and transactions that they hand in.
type Desk struct {
	Chain    func() (*Chain, error) // that runs now
	Store    *state.Store
	Penalise func(peer mesh.Address, reason string, points int)

	mu     sync.Mutex
	blocks [deskBlocks]shown // what was asked for lately; guarded by mu
	next   int               // the place to use next; guarded by mu

	waiting atomic.Int64 // transactions that light peers wait for
}

// shown is a light block as it goes to peers. To make one costs milliseconds.
type shown struct {
	height mesh.Height
	raw    []byte
}

// Bounds of the streams of light peers.
var (
	LightLimits = p2p.Limits{PerPeer: 8, Total: 256, MaxMessage: light.MaxAsk, Rate: 50, Burst: 400}
	TxLimits    = p2p.Limits{PerPeer: 4, Total: 128, MaxMessage: ledger.MaxTxBytes + 64, Rate: 20, Burst: 100}
)

const (
	deskTimeout = 10 * time.Second
	deskBlocks  = 16
	// A transaction that never comes into a block costs its sender nothing: so few are
	// waited for, and not long, and streams are left for other senders.
	waitTimeout = 20 * time.Second
	maxWaiting  = 64
	// What faults cost a light peer, beside what p2p counts for bytes that are no message.
	// Evidence that does not hold may be a mistake, but to check it is work.
	pointsForm     = 20
	pointsEvidence = 10
)

// ServeLight answers one question.
func (d *Desk) ServeLight(ctx context.Context, peer mesh.Address, c net.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(deskTimeout))
	ask := new(lightpb.Ask)
	if err := p2p.ReadMessage(c, light.MaxAsk, ask); err != nil {
		return
	}
	answer := d.answer(ctx, peer, ask)
	if proto.Size(answer) > light.MaxAnswer { // the peer would take it for an attack
		answer = refusal(lightpb.Error_OTHER, "the answer is too long")
	}
	_ = p2p.WriteMessage(c, answer) // who is gone needs no answer
}

func (d *Desk) answer(ctx context.Context, peer mesh.Address, ask *lightpb.Ask) *lightpb.Answer {
	switch want := ask.GetWant().(type) {
	case *lightpb.Ask_Block:
		b, no := d.block(ctx, mesh.Height(want.Block))
		if no != nil {
			return no
		}
		return &lightpb.Answer{Got: &lightpb.Answer_Block{Block: b.raw}}
	case *lightpb.Ask_Tip:
		return d.tip(mesh.Height(want.Tip))
	case *lightpb.Ask_Record:
		return d.record(want.Record)
	case *lightpb.Ask_Keys:
		return d.keys(want.Keys)
	case *lightpb.Ask_Evidence:
		return d.evidence(peer, want.Evidence)
	}
	return refusal(lightpb.Error_INVALID, "a question that this node does not know")
}

func (d *Desk) record(want *lightpb.Record) *lightpb.Answer {
	key, height := want.GetKey(), mesh.Height(want.GetHeight())
	if !ledger.Proven(key) || len(key) > maxDeskKey {
		return refusal(lightpb.Error_INVALID, "this record has no proof")
	}
	if height > d.Store.Height() {
		return refusal(lightpb.Error_TOO_HIGH, "that state is not made yet")
	}
	p, err := d.Store.Prove(key, height)
	if err != nil {
		return refusal(lightpb.Error_NOT_FOUND, err.Error())
	}
	return &lightpb.Answer{Got: &lightpb.Answer_Proof{Proof: p.Marshal()}}
}

// maxDeskKey bounds a key or prefix that is asked for; those of the ledger are shorter.
const maxDeskKey = 256

func refusal(code lightpb.Error_Code, message string) *lightpb.Answer {
	return &lightpb.Answer{Got: &lightpb.Answer_Error{Error: &lightpb.Error{Code: code, Message: message}}}
}

// newest stands for 0 in questions about blocks.
func (d *Desk) newest(chain *Chain, height mesh.Height) (mesh.Height, *lightpb.Answer) {
	if height > 0 {
		return height, nil
	}
	s, err := chain.Status()
	if err != nil {
		return 0, refusal(lightpb.Error_NO_LEDGER, err.Error())
	}
	if s.Height == 0 {
		return 0, refusal(lightpb.Error_TOO_HIGH, "there is no block here yet")
	}
	return s.Height, nil
}

// block returns a light block, or an answer that says why not.
func (d *Desk) block(ctx context.Context, height mesh.Height) (shown, *lightpb.Answer) {
	chain, err := d.Chain()
	if err != nil {
		return shown{}, refusal(lightpb.Error_NO_LEDGER, err.Error())
	}
	height, no := d.newest(chain, height)
	if no != nil {
		return shown{}, no
	}
	if b, ok := d.remembered(height); ok {
		return b, nil
	}
	b, err := chain.LightBlock(ctx, height)
	if err != nil {
		return shown{}, d.missing(err, height)
	}
	out := shown{height: height}
	if out.raw, err = light.EncodeBlock(b); err != nil {
		return shown{}, refusal(lightpb.Error_OTHER, err.Error())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.blocks[d.next] = out
	d.next = (d.next + 1) % deskBlocks
	return out, nil
}

func (d *Desk) remembered(height mesh.Height) (shown, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, b := range d.blocks {
		if b.height == height {
			return b, true
		}
	}
	return shown{}, false
}

// tip says which header a height has, without its signatures.
func (d *Desk) tip(height mesh.Height) *lightpb.Answer {
	chain, err := d.Chain()
	if err != nil {
		return refusal(lightpb.Error_NO_LEDGER, err.Error())
	}
	height, no := d.newest(chain, height)
	if no != nil {
		return no
	}
	h, err := chain.Header(height)
	if err != nil {
		return d.missing(err, height)
	}
	return &lightpb.Answer{Got: &lightpb.Answer_Tip{Tip: &lightpb.Tip{Height: uint64(height), Hash: h.Hash()}}}
}

// missing says why there is nothing of a height.
func (d *Desk) missing(err error, height mesh.Height) *lightpb.Answer {
	if !errors.Is(err, ErrNoBlock) {
		return refusal(lightpb.Error_NO_LEDGER, err.Error())
	}
	if height > d.Store.Height() {
		return refusal(lightpb.Error_TOO_HIGH, err.Error())
	}
	return refusal(lightpb.Error_NOT_FOUND, err.Error())
}

// keys lists keys of one table of proven records.
func (d *Desk) keys(want *lightpb.Keys) *lightpb.Answer {
	prefix := want.GetPrefix()
	limit := int(min(max(want.GetLimit(), 1), light.MaxKeys))
	if !ledger.Proven(prefix) || len(prefix) > maxDeskKey || len(want.GetAfter()) > maxDeskKey {
		return refusal(lightpb.Error_INVALID, "this table has no proofs")
	}
	if after := want.GetAfter(); !bytes.HasPrefix(after, prefix) && bytes.Compare(after, prefix) > 0 {
		return &lightpb.Answer{Got: &lightpb.Answer_Keys{Keys: new(lightpb.KeyList)}} // it is beyond the table
	}
	v := d.Store.View()
	defer v.Close()
	out := new(lightpb.KeyList)
	size := 0
	v.IterateAfter(prefix, want.GetAfter(), func(k, _ []byte) bool {
		out.Keys = append(out.Keys, bytes.Clone(k))
		size += len(k)
		return len(out.Keys) < limit && size < light.MaxAnswer/2
	})
	if err := v.Err(); err != nil {
		return refusal(lightpb.Error_OTHER, err.Error())
	}
	return &lightpb.Answer{Got: &lightpb.Answer_Keys{Keys: out}}
}

// evidence hands a light peer's proof of two signed headers to consensus.
func (d *Desk) evidence(peer mesh.Address, raw []byte) *lightpb.Answer {
	ev, err := decodeEvidence(raw)
	if err != nil {
		d.Penalise(peer, "light: malformed evidence", pointsForm)
		return refusal(lightpb.Error_INVALID, "evidence: "+err.Error())
	}
	chain, err := d.Chain()
	if err != nil {
		return refusal(lightpb.Error_NO_LEDGER, err.Error())
	}
	if err := chain.AddEvidence(ev); err != nil {
		d.Penalise(peer, "light: evidence that does not hold", pointsEvidence)
		return refusal(lightpb.Error_INVALID, "evidence: "+err.Error())
	}
	return &lightpb.Answer{Got: &lightpb.Answer_Taken{Taken: true}}
}

func decodeEvidence(raw []byte) (types.Evidence, error) {
	pb := new(cmtproto.Evidence)
	if err := pb.Unmarshal(raw); err != nil {
		return nil, err
	}
	ev, err := types.EvidenceFromProto(pb)
	if err != nil {
		return nil, err
	}
	return ev, ev.ValidateBasic()
}

// ServeTx takes one transaction.
func (d *Desk) ServeTx(ctx context.Context, peer mesh.Address, c net.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(deskTimeout))
	ask := new(lightpb.TxAsk)
	if err := p2p.ReadMessage(c, ledger.MaxTxBytes+64, ask); err != nil {
		return
	}
	c.SetDeadline(time.Now().Add(waitTimeout + deskTimeout))
	height, err := d.submit(ctx, ask.GetTx())
	if refused := (*Refused)(nil); errors.As(err, &refused) && refused.Code == CodeMalformed && refused.Height == 0 {
		d.Penalise(peer, "tx: malformed, or signed by another", pointsForm)
	}
	_ = p2p.WriteMessage(c, outcome(height, err)) // who is gone needs no answer
}

// submit hands a transaction to the ledger, and waits for its block while not too many
// others are waited for.
func (d *Desk) submit(ctx context.Context, tx []byte) (mesh.Height, error) {
	chain, err := d.Chain()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, waitTimeout)
	defer cancel()
	defer d.waiting.Add(-1)
	if d.waiting.Add(1) > maxWaiting {
		if err := chain.Offer(tx); err != nil {
			return 0, err
		}
		return 0, ErrNotInTime
	}
	r, err := chain.Await(ctx, tx)
	return r.Height, err
}

// outcome tells a light peer what Submit said. Only what the ledger refuses is refused:
// of all else the peer must not believe that it can never come into a block.
func outcome(height mesh.Height, err error) *lightpb.TxAnswer {
	if err == nil {
		return &lightpb.TxAnswer{Accepted: true, Done: true, Height: uint64(height)}
	}
	var refused *Refused
	switch {
	case errors.As(err, &refused):
		return &lightpb.TxAnswer{Accepted: refused.Height > 0, Height: uint64(refused.Height), Reason: refused.Log}
	case errors.Is(err, ErrNotInTime), errors.Is(err, ErrDuplicate):
		return &lightpb.TxAnswer{Accepted: true, Reason: err.Error()}
	case errors.Is(err, ErrTooLarge):
		return &lightpb.TxAnswer{Reason: err.Error()}
	}
	return &lightpb.TxAnswer{Unable: true, Reason: err.Error()}
}
