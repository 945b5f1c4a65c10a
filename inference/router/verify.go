package router

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
)

// verify checks a frame before anything of it is passed on: its receipt is this
// host's for this segment of this choice, and its chain is over exactly these tokens.
// It returns the chain after the frame.
func (k *call) verify(f *inference.Frame) (*inference.Receipt, inference.Chain, error) {
	c := k.c
	req, chain := c.q.req, c.chain
	for _, t := range f.Tokens {
		chain.Add(t.ID)
	}
	if f.Vector != nil {
		chain.Bind(f.Vector)
	}
	signed, err := f.Signed()
	if err != nil {
		return nil, chain, err
	}
	got, err := inference.ParseReceipt(c.q.r.cfg.Network, signed)
	if err != nil {
		return nil, chain, err
	}
	pb := got.Pb
	switch {
	case got.Host != k.host.peer:
		err = fmt.Errorf("the receipt is signed by %s", got.Host)
	case got.Request != req.Hash || pb.GetChoice() != c.index || got.Model != c.q.model:
		err = errors.New("the receipt is of another answer")
	case got.Before != k.first:
		err = errors.New("the receipt does not begin where the segment does")
	case got.After != chain:
		err = errors.New("the receipt's chain is not over these tokens")
	case chain.Next > req.Pb.GetMaxTokens():
		err = fmt.Errorf("%d tokens, and %d were asked for", chain.Next, req.Pb.GetMaxTokens())
	case got.Finish != f.Finish:
		err = errors.New("the receipt has another finish reason than the frame")
	case f.Finish == inference.FinishCancelled && !k.cancelled:
		err = errors.New("it ended as cancelled, and nobody cancelled it")
	case !bytes.Equal(pb.GetNonce(), req.Pb.GetNonce()) || !bytes.Equal(pb.GetEscrow(), req.Pb.GetEscrow()) || pb.GetEpoch() != req.Pb.GetEpoch():
		err = errors.New("the receipt is under other terms")
	case !bytes.Equal(pb.GetPrefixHost(), c.prefixHost()):
		err = errors.New("the receipt does not say who made the prefix")
	case k.receipt != nil && pb.GetPromptTokens() != k.receipt.Pb.GetPromptTokens():
		err = errors.New("the number of prompt tokens changed")
	case f.Finish == inference.FinishStop && len(req.Pb.GetStop()) == 0:
		err = errors.New("it ended at a stop string, and none was given")
	case f.Finish == inference.FinishEOS && req.Pb.GetIgnoreEos():
		err = errors.New("it ended where the end was to be ignored")
	case f.Finish == inference.FinishLength && !k.full(got):
		err = errors.New("it ended for its length, and there is room")
	default:
		if err = k.checkVector(f); err == nil {
			err = k.counted(got)
		}
		if err == nil {
			err = k.priced(got)
		}
	}
	return got, chain, err
}

// counted checks the number of prompt tokens: against this node's own count, where it
// has one, against what so many bytes may have, against the model's context, and against
// the hosts before. Of two hosts that differ either may be wrong: one that counts more,
// and so charges more, is passed over, unless another agrees with it.
func (k *call) counted(got *inference.Receipt) error {
	c, n := k.c, int(got.Pb.GetPromptTokens())
	own := c.q.ownCount(got.Finish != inference.FinishOpen)
	switch {
	case own > 0 && n != own:
		return fmt.Errorf("it counts %d prompt tokens, and there are %d", n, own)
	case own == 0 && n > c.q.most(): // what the host says of the model's context is its own word
		return fmt.Errorf("it counts %d prompt tokens, and the question has no more than %d in any model", n, c.q.most())
	case k.host.capability != nil && n+int(got.After.Next) > inference.OwnContext(k.host.capability):
		return fmt.Errorf("it counts %d prompt tokens, which do not fit the model's context", n)
	case c.prompt == 0 || n <= c.prompt:
		c.prompt = n
		return nil
	case c.disputed == n && c.disputer != got.Host:
		c.q.r.cfg.Log.Warn("two hosts outvote the first about the prompt", "request", got.Request, "first", c.prompt, "others", n)
		c.prompt = n
		return nil
	}
	c.disputed, c.disputer = n, got.Host
	return &lost{why: whyDiffers, err: fmt.Errorf("it counts %d prompt tokens, and a host before it %d", n, c.prompt)}
}

// priced checks that the host charges no more than it offered or, where it made no
// offer, advertised, and the choice no more than the cap. What is over the cap at the
// host's own price is no lie of it.
func (k *call) priced(got *inference.Receipt) error {
	charged := mesh.Amount(got.Pb.GetPrice())
	if k.host.capability != nil {
		due, err := inference.Price(k.host.capability, int(got.Pb.GetPromptTokens()), int(got.Before.Next), int(got.Pb.GetOutputTokens()), got.Finish)
		if err != nil {
			return err
		}
		if charged > due && !k.host.offered {
			// An advert may be older than its host's price: no proof of a lie.
			return &lost{why: whyDear, err: fmt.Errorf("it charges %s, and by its advert %s is due", charged, due)}
		}
		if charged > due {
			return fmt.Errorf("it charges %s, and by its offer %s is due", charged, due)
		}
	}
	sum, err := k.c.usage.Price.Add(charged)
	if limit := mesh.Amount(k.c.q.req.Pb.GetPriceCap()); err != nil || limit > 0 && sum > limit {
		return &lost{why: whyCap, err: fmt.Errorf("it charges %s, that makes %s, and the cap is %s", charged, sum, limit)}
	}
	return nil
}

// full reports whether an answer may end for its length here.
func (k *call) full(got *inference.Receipt) bool {
	limit, err := inference.Fit(int(got.Pb.GetPromptTokens()), int(k.c.q.req.Pb.GetMaxTokens()), inference.OwnContext(k.host.capability))
	return k.host.capability == nil || err == nil && int(got.After.Next) == limit
}

// isFull reports whether a segment has come to the end of its host's memory.
func (k *call) isFull(got *inference.Receipt) bool {
	c := k.host.capability
	return c != nil && int(got.Pb.GetPromptTokens())+int(got.After.Next) >= int(c.GetContext())
}

// prefixHost returns who signed the tokens that a segment was given.
func (c *choice) prefixHost() []byte {
	if c.from == nil {
		return nil
	}
	return c.from.Host[:]
}

// advance passes on a verified frame. A text that does not follow from the tokens,
// where this node can tell, is a lie too.
func (c *choice) advance(k *call, f *inference.Frame, receipt *inference.Receipt, chain inference.Chain) (done bool, err error) {
	ended := f.Finish != inference.FinishOpen && f.Finish != inference.FinishAborted && f.Finish != inference.FinishCancelled
	if err := c.checkText(f, ended); err != nil {
		return false, &lost{why: whyLied, err: err}
	}
	c.chain, k.receipt = chain, receipt
	k.timing(time.Now(), len(f.Tokens))
	e := inference.Event{
		Request: c.q.req.Hash, Model: infoOf(k), Host: k.host.peer, Choice: int(c.index), Text: f.Text,
	}
	for _, t := range f.Tokens {
		c.tokens = append(c.tokens, t.ID)
		e.Tokens = append(e.Tokens, tokenText(t))
	}
	if f.Vector != nil {
		if e.Vector, err = inference.DecodeVector(f.Vector); err != nil {
			return false, &lost{why: whyLied, err: err}
		}
		c.q.r.hosts.spoke(k.key(), time.Since(k.started))
	}
	if ended {
		e.Finish, e.Usage = f.Finish, c.account(k)
	}
	if len(e.Tokens) > 0 || e.Text != "" || ended {
		if err := c.q.say(e); err != nil {
			return false, err
		}
	}
	if f.Finish == inference.FinishAborted && k.isFull(receipt) {
		return false, &lost{why: whyFull, err: fmt.Errorf("its memory holds %d tokens of the answer; say how long it may be", len(c.tokens))}
	}
	if f.Finish != inference.FinishOpen && !ended {
		return false, &lost{why: whyAborted, err: errors.New("the host broke off")}
	}
	return ended, nil
}

func (c *choice) checkText(f *inference.Frame, ended bool) error {
	if c.text == nil {
		return nil
	}
	text, stopped := "", false
	for _, t := range f.Tokens {
		if stopped {
			return errors.New("tokens after a stop string")
		}
		var more string
		more, stopped = c.text.Add(t.ID)
		text += more
	}
	if ended && !stopped {
		text += c.text.End()
	}
	switch {
	case text != f.Text:
		return errors.New("the text is not that of the tokens")
	case stopped != (f.Finish == inference.FinishStop):
		return errors.New("the end is not where the stop string is")
	}
	return nil
}

// account returns what the choice used up, this segment included.
func (c *choice) account(k *call) inference.Usage {
	u := c.usage
	u.PromptTokens = int(k.receipt.Pb.GetPromptTokens())
	u.OutputTokens = len(c.tokens)
	u.Price += mesh.Amount(k.receipt.Pb.GetPrice()) // priced has checked the sum
	u.Segments++
	return u
}

func infoOf(k *call) inference.ModelInfo {
	c := k.host.capability
	return inference.ModelInfo{
		ID: k.c.q.model, Name: c.GetName(), Context: int(c.GetContext()), Slots: int(c.GetSlots()),
		Embed: int(c.GetEmbed()), Fingerprint: k.receipt.Pb.GetFingerprint(),
	}
}

func tokenText(t inference.FrameToken) inference.TokenText {
	out := inference.TokenText{ID: t.ID, Bytes: t.Bytes, LogProb: t.LogProb}
	for _, a := range t.Top {
		out.Top = append(out.Top, inference.TopText{ID: a.ID, Bytes: a.Bytes, LogProb: a.LogProb})
	}
	return out
}
