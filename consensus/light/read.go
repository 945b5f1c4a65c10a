package light

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/light/lightpb"
	"github.com/gonka-mesh/mesh/consensus/state/proof"
)

// Record returns a record of the state, nil where there is none, as proven by a
// verified header, and the height of the state.
func (c *Client) Record(ctx context.Context, key []byte) ([]byte, mesh.Height, error) {
	head, err := c.Head(ctx)
	if err != nil {
		return nil, 0, err
	}
	value, err := c.recordAt(ctx, head, key)
	// The header of a height has the hash of the state before it.
	return value, head.Height - 1, err
}

func (c *Client) recordAt(ctx context.Context, head Head, key []byte) ([]byte, error) {
	if !ledger.Proven(key) {
		return nil, fmt.Errorf("records of table %q cannot be proven", key[:min(1, len(key))])
	}
	hash, err := mesh.HashFromBytes(head.AppHash)
	if err != nil {
		return nil, fmt.Errorf("header %d: app hash: %w", head.Height, err)
	}
	ask := &lightpb.Ask{Want: &lightpb.Ask_Record{Record: &lightpb.Record{Key: key, Height: uint64(head.Height - 1)}}}
	return first(ctx, c, c.peers(), func(ctx context.Context, peer mesh.Address) ([]byte, error) {
		answer, err := c.ask(ctx, peer, ask)
		if err != nil {
			return nil, err
		}
		value, err := checkProof(hash, key, answer.GetProof())
		if err != nil {
			return nil, &lie{fmt.Errorf("a proof that does not verify: %w", err)}
		}
		return value, nil
	})
}

// checkProof returns the value that a proof shows for a key, nil for none.
func checkProof(app mesh.Hash, key, raw []byte) ([]byte, error) {
	p, err := proof.Unmarshal(raw)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(p.Key, key) {
		return nil, errors.New("it is of another record")
	}
	value, present, err := proof.Verify(app, p)
	if err != nil || !present {
		return nil, err
	}
	return value, nil
}

// maxListed bounds a table that a light peer lists.
const maxListed = 20_000

// keys lists the keys of a table, as a peer says: it may leave some out, but cannot
// make up what Record then proves.
func (c *Client) keys(ctx context.Context, prefix []byte) ([][]byte, error) {
	var all [][]byte
	for {
		ask := &lightpb.Keys{Prefix: prefix, Limit: MaxKeys}
		if len(all) > 0 {
			ask.After = all[len(all)-1]
		}
		page, err := first(ctx, c, c.peers(), func(ctx context.Context, peer mesh.Address) ([][]byte, error) {
			answer, err := c.ask(ctx, peer, &lightpb.Ask{Want: &lightpb.Ask_Keys{Keys: ask}})
			if err != nil {
				return nil, err
			}
			keys, last := answer.GetKeys().GetKeys(), ask.GetAfter()
			for _, k := range keys {
				if !bytes.HasPrefix(k, prefix) || bytes.Compare(last, k) >= 0 || len(k) > proof.MaxKey {
					return nil, &lie{errors.New("keys that were not asked for, or out of order")}
				}
				last = k
			}
			return keys, nil
		})
		if err != nil {
			return nil, fmt.Errorf("list table %q: %w", prefix[:min(1, len(prefix))], err)
		}
		size := 0
		for _, k := range page {
			size += len(k)
		}
		if all = append(all, page...); len(all) > maxListed {
			return nil, fmt.Errorf("table %q has more than %d records: ask a full node", prefix[:min(1, len(prefix))], maxListed)
		}
		if len(page) < MaxKeys && size < MaxAnswer/2 {
			return all, nil
		}
	}
}

// Reader reads the state of one height by proofs, for a ledger.View. Its Err tells of
// the first read that failed; what was read after it is worth nothing. Use it soon, as
// peers forget old states. It is for one goroutine.
type Reader struct {
	ctx  context.Context
	c    *Client
	head Head // of the height after the state's; set by the first read
	err  error
}

// Reader returns a reader that ends with ctx.
func (c *Client) Reader(ctx context.Context) *Reader { return &Reader{ctx: ctx, c: c} }

// Err returns the first failure.
func (r *Reader) Err() error { return r.err }

// Height returns the height of the state that was read, 0 before.
func (r *Reader) Height() mesh.Height { return r.head.Height - min(r.head.Height, 1) }

func (r *Reader) open() bool {
	if r.err == nil && r.head.Height == 0 {
		r.head, r.err = r.c.Head(r.ctx)
	}
	return r.err == nil
}

// Get implements ledger.Reader.
func (r *Reader) Get(key []byte) []byte {
	if !r.open() {
		return nil
	}
	var value []byte
	if value, r.err = r.c.recordAt(r.ctx, r.head, key); r.err != nil {
		return nil
	}
	return value
}

// atOnce is how many records of a list are asked for at the same time: well below the
// streams that a full node gives one peer.
const atOnce = 4

// Iterate implements ledger.Reader: each record is proven, and a peer may leave some
// out.
func (r *Reader) Iterate(prefix []byte, fn func(key, value []byte) bool) {
	if !r.open() {
		return
	}
	keys, err := r.c.keys(r.ctx, prefix)
	if err != nil {
		r.err = err
		return
	}
	for len(keys) > 0 {
		n := min(len(keys), atOnce)
		var values [atOnce][]byte
		var errs [atOnce]error
		var all sync.WaitGroup
		for i, k := range keys[:n] {
			all.Go(func() { values[i], errs[i] = r.c.recordAt(r.ctx, r.head, k) })
		}
		all.Wait()
		for i, k := range keys[:n] {
			if r.err = errs[i]; r.err != nil {
				return
			}
			if values[i] != nil && !fn(k, values[i]) {
				return
			}
		}
		keys = keys[n:]
	}
}
