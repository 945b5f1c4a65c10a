package node

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/consensus/light"
	"github.com/gonka-mesh/mesh/node/api"
)

// submitWait is how long a transaction may take to be in a block.
const submitWait = 60 * time.Second

// Submit puts a transaction on the chain: one that is signed, or an action that this
// node signs.
func (n *Node) Submit(ctx context.Context, in api.Submit) (api.Submitted, error) {
	ctx, cancel := context.WithTimeout(ctx, submitWait)
	defer cancel()
	if in.Signed != nil {
		return n.put(ctx, in.Signed)
	}
	action := new(ledgerpb.Tx)
	if err := protojson.Unmarshal(in.Action, action); err != nil {
		return api.Submitted{}, fmt.Errorf("action: %w", err)
	}
	action.Fee = uint64(in.Fee)
	return n.act(ctx, action)
}

// act signs and submits an action of this node's account, one at a time, so that each
// has the next number.
func (n *Node) act(ctx context.Context, tx *ledgerpb.Tx) (api.Submitted, error) {
	select {
	case n.signing <- struct{}{}:
		defer func() { <-n.signing }()
	case <-ctx.Done():
		return api.Submitted{}, fmt.Errorf("wait for another transaction of this node: %w", ctx.Err())
	}
	if err := n.register(ctx, tx); err != nil {
		return api.Submitted{}, err
	}
	return n.attempt(ctx, tx, n.put)
}

// voteTries is how often a vote is sent whose proposal is not known yet, a block apart.
const voteTries = 3

// attempt signs and sends, and once more where the ledger was about to change: where a byte
// costs more than this node knows, unless who asks named a fee, and where a vote came before
// its proposal. What a byte costs is a claim of others, on a light node the word of one peer: so
// FeeFor bounds it, and the number stays, that of the two at most one has an effect. signing is held.
func (n *Node) attempt(ctx context.Context, tx *ledgerpb.Tx, send func(context.Context, []byte) (api.Submitted, error)) (api.Submitted, error) {
	raisable, raised := tx.GetFee() == 0, false
	var done api.Submitted
	var err error
	for try := 1; ; try++ {
		raw, serr := n.sign(ctx, tx, raised)
		if serr != nil {
			return done, cmp.Or(err, serr)
		}
		done, err = send(ctx, raw)
		if err == nil {
			return done, nil
		}
		fee, low := ledger.RaisedFee(err.Error(), tx)
		switch {
		case low && raisable:
			raisable, raised = false, true
			tx.Fee = uint64(fee)
		case ledger.Early(tx.GetVote(), err.Error()) && try < voteTries:
			select {
			case <-ctx.Done():
				return done, err
			case <-time.After(n.blockTime()):
			}
			raised = false // to vote twice is to vote once
		default:
			return done, err
		}
	}
}

// register makes a host of this node before its first stake, and names its consensus key
// where that is another than the ledger has. signing is held.
func (n *Node) register(ctx context.Context, tx *ledgerpb.Tx) error {
	self := n.core.Net.Address()
	stake := tx.GetStake()
	if stake == nil || string(stake.GetHost()) != string(self[:]) || n.chain == nil || n.chain.key == nil {
		return nil
	}
	r, err := n.read(ctx)
	if err != nil {
		return err
	}
	registration, err := registrationOf(r.View, n.chain.key, n.genesis.Network(), self, n.owner())
	if _, ended := r.end(); errors.Join(ended, err) != nil || registration == nil {
		return errors.Join(ended, err)
	}
	if _, err := n.attempt(ctx, &ledgerpb.Tx{Fee: tx.GetFee(), Action: &ledgerpb.Tx_RegisterHost{RegisterHost: registration}}, n.put); err != nil {
		return fmt.Errorf("register this host: %w", err)
	}
	return nil
}

// registrationOf returns what tells the ledger of a host's key, nil where it has it.
func registrationOf(v ledger.View, key *consensus.Key, network mesh.NetworkID, self, owner mesh.Address) (*ledgerpb.RegisterHost, error) {
	host, err := v.Host(self)
	next, err2 := v.NextKeys(self)
	if err := errors.Join(err, err2); err != nil {
		return nil, err
	}
	if host != nil {
		owner = self // it has one, and keeps it
	}
	t, err := key.Registration(network, self, owner)
	if err != nil {
		return nil, err
	}
	if k := string(t.GetConsensusKey()); k == string(host.GetConsensusKey()) || k == string(next.GetConsensusKey()) {
		return nil, nil
	}
	return t, nil
}

// owner is the account that rewards go to.
func (n *Node) owner() mesh.Address {
	if a, err := mesh.ParseAddress(n.cfg.Owner); err == nil {
		return a
	}
	return n.core.Net.Address()
}

// sign completes a transaction with the account's number, unless its own is to stay, and
// the fee: the one that it has, if that is more than the least.
func (n *Node) sign(ctx context.Context, tx *ledgerpb.Tx, stays bool) ([]byte, error) {
	r, err := n.read(ctx)
	if err != nil {
		return nil, err
	}
	account, err := r.Account(mesh.AddressOf(n.key.Public().(ed25519.PublicKey)))
	params, err2 := r.Params()
	if _, ended := r.end(); errors.Join(ended, err, err2) != nil {
		return nil, errors.Join(ended, err, err2)
	}
	fee, err := ledger.FeeFor(params, tx, mesh.Amount(tx.GetFee()))
	if err != nil {
		return nil, err
	}
	tx.Fee = uint64(fee)
	if !stays {
		tx.Nonce = account.GetNonce()
	}
	return ledger.SignTx(n.genesis.Network(), n.key, tx)
}

// put hands a transaction to the chain and waits for its block.
func (n *Node) put(ctx context.Context, raw []byte) (api.Submitted, error) {
	if n.chain == nil {
		return api.Submitted{}, api.ErrNoLedger
	}
	tx, err := ledger.ParseTx(n.genesis.Network(), raw)
	if err != nil {
		return api.Submitted{}, err
	}
	out := api.Submitted{ID: tx.ID, Kind: tx.Kind(), Sender: tx.Sender, Fee: mesh.Amount(tx.Pb.GetFee())}
	fresh := false
	if tx.Pb.GetOpenEscrow() != nil {
		// Before it leaves: who does not hear of its block must not lose sight of the money.
		out.Escrow = ledger.EscrowID(n.genesis.Network(), tx.Sender, tx.Pb.GetNonce())
		if fresh, err = n.purse.remember(tx.Sender, out.Escrow); err != nil {
			return out, fmt.Errorf("note the escrow: %w", err)
		}
	}
	if n.chain.store == nil {
		out.Height, err = n.chain.light.Submit(ctx, raw)
	} else {
		out.Height, err = n.chain.submit(ctx, raw)
	}
	var refused *consensus.Refused
	switch {
	case err == nil:
		n.remember(tx)
		n.purse.wake()
	case !fresh:
	case errors.As(err, &refused): // by this node itself; what others say is no reason to lose sight of money
		if ferr := n.purse.forget(tx.Sender, out.Escrow); ferr != nil {
			n.log.Warn("an escrow that was not opened is still noted here", "escrow", out.Escrow.String(), "err", ferr)
		}
	case !errors.Is(err, light.ErrRefused) || errors.Is(err, light.ErrLost):
		err = fmt.Errorf("%w; the escrow is then %s", err, out.Escrow)
	}
	return out, err
}

// remember notes the escrow of the sender that a transaction is about: one that was opened
// elsewhere, or whose note was lost, is known here from then on. Who tops up another's
// escrow notes it as their own, which draws on nothing: its owner is another.
func (n *Node) remember(tx *ledger.Tx) {
	escrow := tx.Pb.GetTopEscrow().GetEscrow()
	if escrow == nil {
		escrow = tx.Pb.GetSetLane().GetEscrow()
	}
	id, err := mesh.HashFromBytes(escrow)
	if err != nil {
		return
	}
	if _, err := n.purse.remember(tx.Sender, id); err != nil {
		n.log.Warn("an escrow could not be noted here", "escrow", id.String(), "err", err)
	}
}

// submit puts a transaction into this node's own mempool.
func (c *chain) submit(ctx context.Context, raw []byte) (mesh.Height, error) {
	full, err := c.running()
	if err != nil {
		return 0, err
	}
	r, err := full.Submit(ctx, raw)
	return r.Height, err
}
