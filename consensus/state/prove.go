package state

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	ics23 "github.com/cosmos/ics23/go"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/state/proof"
)

// Prove returns a proof of the value, or the absence, of a proven key at a height.
// The app hash that it leads to is in the header of the next height.
func (s *Store) Prove(key []byte, height mesh.Height) (_ proof.Proof, err error) {
	if !s.calls.enter() {
		return proof.Proof{}, ErrClosed
	}
	defer s.calls.leave()
	if !ledger.Proven(key) || len(key) > proof.MaxKey {
		return proof.Proof{}, fmt.Errorf("prove key %.40x: entries of its table are not proven", key)
	}
	p, err := s.at(height)
	if err != nil {
		return proof.Proof{}, fmt.Errorf("prove key %.40x: %w", key, err)
	}
	defer func() { err = errors.Join(err, p.close()) }()
	out := proof.Proof{Key: bytes.Clone(key)}
	err = s.log.guard(func() (err error) {
		if out.Flat, err = p.flat(); err == nil {
			out.Commitment, err = (&climber{past: p}).prove(key)
		}
		return err
	})
	if err != nil {
		return proof.Proof{}, fmt.Errorf("prove key %.40x: %w", key, err)
	}
	return out, nil
}

// climber walks the tree as it was at a height.
type climber struct{ past *past }

// node is a place in the tree: node i of the page at a path.
type node struct {
	at   prefix
	page *nodes
	i    int
}

func (n node) slot() *slot { return &n.page[n.i] }

// step is one level of a walk: both children, and which was taken.
type step struct {
	child [2]node
	bit   int
}

func (c *climber) load(at prefix) (*nodes, error) {
	p, err := c.past.page(at)
	if err != nil {
		return nil, err
	}
	if p.empty() && len(at) > 0 {
		return nil, fmt.Errorf("a page of the tree is missing at %x", []byte(at))
	}
	return p.nodes(), nil
}

// children returns what is below an inner node.
func (c *climber) children(n node) (out [2]node, err error) {
	if n.i >= 16 {
		below := append(bytes.Clone(n.at), byte(n.i-16))
		p, err := c.load(below)
		if err != nil {
			return out, err
		}
		n = node{at: below, page: p, i: 1}
	}
	for bit := range out {
		out[bit] = node{at: n.at, page: n.page, i: 2*n.i + bit}
	}
	return out, nil
}

// walk goes down from a node, at each level where turn says, to a leaf or to nothing.
func (c *climber) walk(n node, steps []step, turn func(level int, child [2]node) int) (node, []step, error) {
	for n.slot().kind == inner {
		child, err := c.children(n)
		if err != nil {
			return node{}, nil, err
		}
		bit := turn(len(steps), child)
		steps = append(steps, step{child: child, bit: bit})
		n = child[bit]
	}
	return n, steps, nil
}

// prove returns the encoded ICS-23 proof; none when the tree is empty.
func (c *climber) prove(key []byte) ([]byte, error) {
	root, err := c.load(nil)
	if err != nil {
		return nil, err
	}
	path := proof.Path(key)
	end, steps, err := c.walk(node{page: root, i: 1}, nil, func(level int, _ [2]node) int {
		return int(path[level/8] >> (7 - level%8) & 1)
	})
	if err != nil {
		return nil, err
	}
	if end.slot().kind == leaf && bytes.Equal(end.slot().key, key) {
		e, err := c.existence(end, steps)
		if err != nil {
			return nil, err
		}
		return (&ics23.CommitmentProof{Proof: &ics23.CommitmentProof_Exist{Exist: e}}).Marshal()
	}
	absent := &ics23.NonExistenceProof{Key: key}
	for bit, to := range []**ics23.ExistenceProof{&absent.Left, &absent.Right} {
		if *to, err = c.neighbour(path, end, steps, bit); err != nil {
			return nil, err
		}
	}
	if absent.Left == nil && absent.Right == nil {
		return nil, nil
	}
	return (&ics23.CommitmentProof{Proof: &ics23.CommitmentProof_Nonexist{Nonexist: absent}}).Marshal()
}

// neighbour proves the next leaf on one side, 0 left or 1 right, of a path that ended
// without its leaf; nil when there is none.
func (c *climber) neighbour(path mesh.Hash, end node, steps []step, side int) (*ics23.ExistenceProof, error) {
	if end.slot().kind == leaf { // in the place of the one that is looked for
		there := proof.Path(end.slot().key)
		if (bytes.Compare(there[:], path[:]) > 0) == (side == 1) {
			return c.beside(end, steps)
		}
	}
	for i := len(steps) - 1; i >= 0; i-- {
		if steps[i].bit == side || steps[i].child[side].slot().kind == empty {
			continue
		}
		way := append(slices.Clone(steps[:i]), step{child: steps[i].child, bit: side})
		n, way, err := c.walk(steps[i].child[side], way, func(_ int, child [2]node) int {
			if child[1-side].slot().kind != empty {
				return 1 - side
			}
			return side
		})
		if err != nil {
			return nil, err
		}
		return c.beside(n, way)
	}
	return nil, nil
}

// beside proves a leaf without its value.
func (c *climber) beside(n node, steps []step) (*ics23.ExistenceProof, error) {
	e, err := c.existence(n, steps)
	if err != nil {
		return nil, err
	}
	value := mesh.HashOf(e.Value)
	e.Value, e.Leaf = value[:], proof.NeighbourSpec.LeafSpec
	return e, nil
}

// existence proves a leaf that was reached by steps.
func (c *climber) existence(n node, steps []step) (*ics23.ExistenceProof, error) {
	key := n.slot().key
	value, err := c.past.get(flatKey(key))
	if err != nil {
		return nil, err
	}
	if proof.Leaf(proof.Path(key), value) != n.slot().hash {
		return nil, fmt.Errorf("ledger database: the tree and the entry of %x disagree", key)
	}
	e := &ics23.ExistenceProof{Key: key, Value: value, Leaf: ics23.SmtSpec.LeafSpec}
	for i := len(steps) - 1; i >= 0; i-- {
		sibling := steps[i].child[1-steps[i].bit].slot().hash
		op := &ics23.InnerOp{Hash: ics23.HashOp_SHA256, Prefix: []byte{1}}
		if steps[i].bit == 0 {
			op.Suffix = bytes.Clone(sibling[:])
		} else {
			op.Prefix = append(op.Prefix, sibling[:]...)
		}
		e.Path = append(e.Path, op)
	}
	return e, nil
}
