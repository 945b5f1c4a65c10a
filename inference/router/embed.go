package router

import (
	"errors"
	"fmt"
	"slices"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// suits reports whether a host gives the kind of answer that is wanted, as far as it
// says. What nothing is known of is asked.
func (q *question) suits(c *inferencepb.Capability) bool {
	return c == nil || !q.req.Question.GetEmbed() || c.GetEmbed() > 0 && (q.width == 0 || int(c.GetEmbed()) == q.width)
}

// able returns the candidates that suit.
func (q *question) able(list []Candidate) []Candidate {
	return slices.DeleteFunc(slices.Clone(list), func(c Candidate) bool { return !q.suits(c.Capability) })
}

// unable says why none of these candidates suits.
func (q *question) unable(list []Candidate) error {
	e := &inference.EmbedError{Asked: q.width}
	for _, c := range list {
		e.Width = max(e.Width, int(c.Capability.GetEmbed()))
	}
	return e
}

// noOffer says why none of the candidates made an offer that was taken. One that is
// known from no advert, as this node itself, says only with its offer what it can.
func (q *question) noOffer(list []Candidate) error {
	hosts := q.r.hosts
	hosts.mu.Lock()
	defer hosts.mu.Unlock()
	var said []Candidate
	for _, c := range list {
		if offer := hosts.at(hostKey{c.Peer, q.model}).offer; offer.GetCapability() != nil {
			c.Capability = offer.GetCapability()
		}
		if q.suits(c.Capability) {
			return errNoOffer
		}
		said = append(said, c)
	}
	return q.unable(said)
}

// checkVector checks that a frame has a vector where one is wanted, and of the width
// that the host stated, and none elsewhere.
func (k *call) checkVector(f *inference.Frame) error {
	width := int(k.host.capability.GetEmbed())
	switch {
	case !k.c.q.req.Question.GetEmbed():
		if f.Vector != nil {
			return errors.New("a vector, and tokens were asked for")
		}
	case len(f.Tokens) > 0 || f.Text != "":
		return errors.New("tokens, and a vector was asked for")
	case f.Finish == inference.FinishLength, f.Finish == inference.FinishEOS && f.Vector == nil:
		return errors.New("it ended without the vector")
	case f.Vector != nil && width > 0 && len(f.Vector) != 4*width:
		return fmt.Errorf("a vector of %d bytes, and it makes those of %d numbers", len(f.Vector), width)
	}
	return nil
}
