package light

import (
	"context"
	"errors"
	"fmt"
	"time"

	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/light/lightpb"
	"github.com/gonka-mesh/mesh/p2p"
)

// Bounds of what a peer may answer.
const (
	MaxAnswer = 1 << 20 // bytes; a light block of 150 validators has about 30 KB
	MaxAsk    = 64 << 10
	// MaxKeys is how many keys one answer may have.
	MaxKeys = 1000
)

// lie is an answer that no honest peer gives.
type lie struct{ what error }

func (l *lie) Error() string { return l.what.Error() }
func (l *lie) Unwrap() error { return l.what }

// caught tells of a peer if an error is a lie of it.
func (c *Client) caught(peer mesh.Address, err error) {
	var l *lie
	if errors.As(err, &l) {
		c.bench.put(peer, c.cfg.now())
		c.cfg.Penalise(peer, "light: "+l.Error(), pointsLie)
		c.cfg.Log.Warn("a full node gave a false answer", "peer", peer.Short(), "err", err)
	}
}

// tip is what a peer says about a block.
type tip struct {
	peer   mesh.Address
	height int64
	hash   mesh.Hash
}

// tipOf asks a peer for the hash of a block, its newest for 0.
func (c *Client) tipOf(ctx context.Context, peer mesh.Address, height int64) (tip, error) {
	answer, err := c.ask(ctx, peer, &lightpb.Ask{Want: &lightpb.Ask_Tip{Tip: uint64(height)}})
	if err != nil {
		return tip{}, err
	}
	out := tip{peer: peer, height: int64(answer.GetTip().GetHeight())}
	out.hash, err = mesh.HashFromBytes(answer.GetTip().GetHash())
	if err != nil || out.height <= 0 || height != 0 && out.height != height {
		return tip{}, &lie{errors.New("a malformed answer about a header")}
	}
	return out, nil
}

// block fetches a light block and checks its form: that header, signatures and
// validators belong together.
func (c *Client) block(ctx context.Context, peer mesh.Address, height int64) (*types.LightBlock, error) {
	answer, err := c.ask(ctx, peer, &lightpb.Ask{Want: &lightpb.Ask_Block{Block: uint64(height)}})
	if err != nil {
		return nil, err
	}
	b, err := DecodeBlock(answer.GetBlock())
	if err == nil {
		err = b.ValidateBasic(string(c.cfg.Network))
	}
	if err == nil && b.Height != height {
		err = fmt.Errorf("height %d instead of %d", b.Height, height)
	}
	if err != nil {
		return nil, &lie{fmt.Errorf("a malformed light block: %w", err)}
	}
	return b, nil
}

// report hands evidence to a peer, which hands it to the validators.
func (c *Client) report(ctx context.Context, peer mesh.Address, ev types.Evidence) error {
	pb, err := types.EvidenceToProto(ev)
	if err != nil {
		return fmt.Errorf("encode evidence: %w", err)
	}
	raw, err := pb.Marshal()
	if err != nil {
		return fmt.Errorf("encode evidence: %w", err)
	}
	_, err = c.ask(ctx, peer, &lightpb.Ask{Want: &lightpb.Ask_Evidence{Evidence: raw}})
	return err
}

// DecodeBlock reads a light block.
func DecodeBlock(raw []byte) (*types.LightBlock, error) {
	pb := new(cmtproto.LightBlock)
	if err := pb.Unmarshal(raw); err != nil {
		return nil, err
	}
	return types.LightBlockFromProto(pb)
}

// EncodeBlock is the inverse of DecodeBlock.
func EncodeBlock(b *types.LightBlock) ([]byte, error) {
	pb, err := b.ToProto()
	if err != nil {
		return nil, err
	}
	return pb.Marshal()
}

// ask puts one question to one peer.
func (c *Client) ask(ctx context.Context, peer mesh.Address, q *lightpb.Ask) (*lightpb.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := c.cfg.Dialer.Dial(ctx, peer, "light")
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", peer.Short(), err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
	defer stop()
	if err := p2p.WriteMessage(conn, q); err != nil {
		return nil, fmt.Errorf("ask %s: %w", peer.Short(), err)
	}
	if err := p2p.CloseWrite(conn); err != nil {
		return nil, fmt.Errorf("ask %s: %w", peer.Short(), err)
	}
	answer := new(lightpb.Answer)
	if err := p2p.ReadMessage(conn, MaxAnswer, answer); err != nil {
		if errors.Is(err, p2p.ErrMessage) && ctx.Err() == nil {
			return nil, &lie{fmt.Errorf("a malformed answer: %w", err)}
		}
		return nil, fmt.Errorf("read the answer of %s: %w", peer.Short(), err)
	}
	if e := answer.GetError(); e != nil {
		err := fmt.Errorf("%s: %.200q", peer.Short(), e.GetMessage())
		if code := e.GetCode(); code == lightpb.Error_NOT_FOUND || code == lightpb.Error_TOO_HIGH {
			err = fmt.Errorf("%w: %w", ErrNoBlock, err)
		}
		return nil, err
	}
	return answer, nil
}
