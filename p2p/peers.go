package p2p

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p/p2ppb"
)

// Bounds of the peers protocol: one PeersAsk, one PeersAnswer.
const (
	askLimit     = 64        // bytes of a question
	answerLimit  = 256 << 10 // bytes of an answer
	answerCount  = 1024      // adverts of an answer
	greetAdverts = 64        // wanted of each new peer
	findAdverts  = 512       // wanted when a key is looked for
	peersTimeout = 10 * time.Second
	askTimeout   = 2 * time.Second // an honest question comes with its stream
	peersStreams = 64              // served at a time
	peersRate    = 1               // questions per second of one peer
	peersBurst   = 16

	pointsBadProof = 50 // an advert that its sender should not have passed on
	pointsEager    = 1  // a question far beyond the rate
)

// peersServer answers questions for adverts.
type peersServer struct {
	d        *discovery
	protocol protocol.ID
	rates    *peerRates
	places   chan struct{}
}

func newPeersServer(d *discovery) *peersServer {
	return &peersServer{d: d, protocol: protocol.ID(topicID(d.cfg.Network, "peers")),
		rates: newPeerRates(peersRate, peersBurst), places: make(chan struct{}, peersStreams)}
}

// serve answers one stream.
func (p *peersServer) serve(st network.Stream) {
	id := st.Conn().RemotePeer()
	if ok, flood := p.rates.take(id, 1, time.Now()); !ok {
		if flood {
			p.d.blame(id, "peers: too many questions", pointsEager)
		}
		st.ResetWithError(network.StreamErrorCode(CodeRate))
		return
	}
	ctx, cancel := context.WithTimeout(p.d.ctx, peersTimeout)
	defer cancel()
	if !p.d.waitHello(ctx, id) {
		st.ResetWithError(network.StreamErrorCode(CodeRefused))
		return
	}
	select {
	case p.places <- struct{}{}:
		defer func() { <-p.places }()
	default:
		st.ResetWithError(network.StreamErrorCode(CodeBusy))
		return
	}
	if err := p.answer(st); err != nil {
		var late net.Error
		switch {
		case errors.As(err, &late) && late.Timeout():
			p.d.blame(id, "peers: stream opened and not used", pointsSilent)
		case errors.Is(err, ErrMessage):
			p.d.blame(id, "peers: "+err.Error(), pointsBadFrame)
		}
		st.ResetWithError(network.StreamErrorCode(CodeViolation))
		return
	}
	st.Close()
}

func (p *peersServer) answer(st network.Stream) error {
	now := time.Now()
	if err := errors.Join(st.SetReadDeadline(now.Add(askTimeout)), st.SetWriteDeadline(now.Add(peersTimeout))); err != nil {
		return err
	}
	var ask p2ppb.PeersAsk
	if err := ReadMessage(st, askLimit, &ask); err != nil {
		return err
	}
	key, err := askedKey(&ask)
	if err != nil {
		return err
	}
	count := min(int(ask.Max), answerCount)
	return WriteMessage(st, &p2ppb.PeersAnswer{Adverts: p.d.table.signed(key, count, answerLimit-16, now)})
}

func askedKey(ask *p2ppb.PeersAsk) (mesh.Hash, error) {
	if len(ask.Key) == 0 {
		return mesh.Hash{}, nil
	}
	key, err := mesh.HashFromBytes(ask.Key)
	if err != nil {
		return key, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	return key, nil
}

// ask asks a connected peer for up to count adverts with a key and takes in
// those that are valid.
func (d *discovery) ask(ctx context.Context, id peer.ID, key mesh.Hash, count int) error {
	ctx, cancel := context.WithTimeout(ctx, peersTimeout)
	defer cancel()
	st, err := d.host.NewStream(network.WithNoDial(ctx, "peers"), id, d.peers.protocol)
	if err != nil {
		return fmt.Errorf("ask %s for adverts: %w", id, err)
	}
	defer st.Reset() // does nothing after the Close below
	stop := context.AfterFunc(ctx, func() { st.Reset() })
	defer stop()
	question := &p2ppb.PeersAsk{Max: uint32(count)}
	if !key.IsZero() {
		question.Key = key[:]
	}
	if err := WriteMessage(st, question); err != nil {
		return fmt.Errorf("ask %s for adverts: %w", id, err)
	}
	if err := st.CloseWrite(); err != nil {
		return fmt.Errorf("ask %s for adverts: %w", id, err)
	}
	var answer p2ppb.PeersAnswer
	if err := ReadMessage(st, answerLimit, &answer); err != nil {
		if errors.Is(err, ErrMessage) {
			d.blame(id, "peers: "+err.Error(), pointsBadFrame)
		}
		return fmt.Errorf("adverts of %s: %w", id, err)
	}
	if err := d.takeIn(id, &answer, count); err != nil {
		d.blame(id, "peers: "+err.Error(), pointsBadProof)
		return fmt.Errorf("adverts of %s: %w", id, err)
	}
	return st.Close()
}

// takeIn admits the adverts of an answer up to the first that its sender should
// not have passed on.
func (d *discovery) takeIn(id peer.ID, answer *p2ppb.PeersAnswer, count int) error {
	if len(answer.Adverts) > count {
		return fmt.Errorf("%d adverts, asked for %d", len(answer.Adverts), count)
	}
	now := time.Now()
	for _, s := range answer.Adverts {
		if s == nil {
			return errors.New("empty advert")
		}
		if err := d.table.admit(s, source{via: id}, now); err != nil && !errors.Is(err, errStale) {
			return err
		}
	}
	return nil
}
