package light

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/light/lightpb"
	"github.com/gonka-mesh/mesh/p2p"
)

const (
	// submitTimeout is how long a transaction may take to be in a block.
	submitTimeout = 60 * time.Second
	// peerTimeout is how long one peer may take, which waits for a block for a part of it.
	peerTimeout = 30 * time.Second
	// waited is how often the account is looked at that shows a transaction.
	waited = 2 * time.Second
	// showTimeout is how long the next block, which shows what it did, is waited for at least.
	showTimeout = 20 * time.Second
)

// ErrRefused is what a transaction meets that the ledger does not take.
var ErrRefused = errors.New("refused by the ledger")

// ErrLost says that nobody knows what became of a transaction.
var ErrLost = errors.New("the transaction may be in a block, or still come into one: see the account")

// errUsed is why nobody is asked any more about a transaction that waited for a block.
var errUsed = errors.New("its number is used up, so it, or another of that number, is in a block")

// errNotThere is a claim about a transaction that the sender's account contradicts.
var errNotThere = errors.New("it said that a transaction is in a block, which it is not")

// Submit hands a signed transaction to a full node, and to the next if one is lost,
// refuses it, or has no block with it yet, and waits until it is in a block: until the
// sender's account shows so. Its height, and whether its action was carried out, are what
// the peer says. An error is ErrLost where it may have come into a block all the same.
func (c *Client) Submit(ctx context.Context, raw []byte) (mesh.Height, error) {
	tx, err := ledger.ParseTx(c.cfg.Network, raw)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	errs := []error{}
	lost, held, refused := false, false, 0
	var no error
	for _, peer := range c.peers() {
		if ctx.Err() != nil || refused == 2 {
			break
		}
		answer, handed, err := c.submitTo(ctx, peer, raw)
		height := mesh.Height(answer.GetHeight())
		if err == nil && height > 0 {
			err = c.included(ctx, tx, height)
		}
		switch {
		case err != nil:
			lost = lost || handed
			c.caught(peer, err)
			c.bench.put(peer, c.cfg.now())
			errs = append(errs, err)
		case answer.GetAccepted() && answer.GetDone() && height > 0:
			return height, nil
		case height > 0:
			return height, fmt.Errorf("%w: %.300s", ErrRefused, answer.GetReason())
		case answer.GetAccepted(): // no block has it; others have it soon, and wait too
			held = true
			errs = append(errs, fmt.Errorf("%s: %.300s", peer.Short(), answer.GetReason()))
			if used, err := c.used(ctx, tx); err == nil && used {
				return 0, errors.Join(append(errs, errUsed, ErrLost)...)
			}
		case answer.GetUnable():
			errs = append(errs, fmt.Errorf("%s takes no transactions now: %.300s", peer.Short(), answer.GetReason()))
		default: // a second one has to say so too
			refused++
			no = fmt.Errorf("%w: %.300s", ErrRefused, answer.GetReason())
			errs = append(errs, no)
		}
	}
	switch {
	case held:
		errs = append(errs, c.waitUsed(ctx, tx), ErrLost)
	case lost:
		errs = append(errs, ErrLost)
	case refused > 0:
		return 0, no
	}
	return 0, join(errs)
}

// waitUsed waits until a transaction's number is used up, and returns why it ended.
func (c *Client) waitUsed(ctx context.Context, tx *ledger.Tx) error {
	for {
		if used, err := c.used(ctx, tx); err == nil && used {
			return errUsed
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for a block with the transaction: %w", ctx.Err())
		case <-time.After(max(waited, c.cfg.Fresh)):
		}
	}
}

// used reports whether the newest state has a transaction of this number.
func (c *Client) used(ctx context.Context, tx *ledger.Tx) (bool, error) {
	head, err := c.Head(ctx)
	if err != nil {
		return false, err
	}
	return c.usedAt(ctx, head, tx)
}

func (c *Client) usedAt(ctx context.Context, head Head, tx *ledger.Tx) (bool, error) {
	r := &Reader{ctx: ctx, c: c, head: head}
	account, err := ledger.NewView(r).Account(tx.Sender)
	if err := errors.Join(r.Err(), err); err != nil {
		return false, err
	}
	return account.GetNonce() > tx.Pb.GetNonce(), nil
}

// included waits until the state after a block can be read, which the header of the
// next block has the hash of, and looks whether the sender's number went up there.
func (c *Client) included(ctx context.Context, tx *ledger.Tx, height mesh.Height) error {
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	for {
		c.outdate()
		head, err := c.Head(ctx)
		if err == nil && head.Height > height {
			used, err := c.usedAt(ctx, head, tx)
			if err != nil {
				return fmt.Errorf("look whether a transaction is in block %d: %w", height, err)
			}
			if !used {
				return &lie{errNotThere}
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the block after %d, which shows a transaction: %w", height, errors.Join(ctx.Err(), err))
		case <-time.After(c.cfg.Fresh / 4):
		}
	}
}

// submitTo returns what a peer says, and whether it may have the transaction, whatever it says.
func (c *Client) submitTo(ctx context.Context, peer mesh.Address, tx []byte) (answer *lightpb.TxAnswer, handed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	conn, err := c.cfg.Dialer.Dial(ctx, peer, "tx")
	if err != nil {
		return nil, false, fmt.Errorf("hand a transaction to %s: %w", peer.Short(), err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
	defer stop()
	if err := p2p.WriteMessage(conn, &lightpb.TxAsk{Tx: tx}); err != nil {
		return nil, true, fmt.Errorf("hand a transaction to %s: %w", peer.Short(), err)
	}
	answer = new(lightpb.TxAnswer)
	if err := p2p.ReadMessage(conn, MaxAsk, answer); err != nil {
		if errors.Is(err, p2p.ErrMessage) && ctx.Err() == nil {
			return nil, true, &lie{fmt.Errorf("a malformed answer to a transaction: %w", err)}
		}
		return nil, true, fmt.Errorf("read what %s says of a transaction: %w", peer.Short(), err)
	}
	return answer, true, nil
}
