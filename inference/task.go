package inference

import (
	"crypto/ed25519"
	"errors"
	"fmt"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// MaxTaskBytes bounds an encoded task.
const MaxTaskBytes = 4096

// Task is a parsed announcement of a request that found no host.
type Task struct {
	Hash  mesh.Hash // offers name it
	Pb    *inferencepb.Task
	Payer mesh.Address
}

// SignTask encodes and signs a task with the payer's key. It fills in network and
// payer.
func SignTask(network mesh.NetworkID, key ed25519.PrivateKey, t *inferencepb.Task) (*Task, *inferencepb.Signed, error) {
	payer := mesh.AddressOf(key.Public().(ed25519.PublicKey))
	t.Network, t.Payer = string(network), payer[:]
	body, err := encode(t)
	if err != nil {
		return nil, nil, fmt.Errorf("encode task: %w", err)
	}
	s := &inferencepb.Signed{Body: body, Signature: domainTask.Sign(key, network, body)}
	task, err := ParseTask(network, s)
	return task, s, err
}

// ParseTask checks form and the payer's signature.
func ParseTask(network mesh.NetworkID, s *inferencepb.Signed) (*Task, error) {
	if len(s.GetBody()) > MaxTaskBytes {
		return nil, fmt.Errorf("task of %d bytes, at most %d", len(s.GetBody()), MaxTaskBytes)
	}
	t := new(inferencepb.Task)
	if err := decode(s.GetBody(), t); err != nil {
		return nil, fmt.Errorf("task: %w", err)
	}
	switch {
	case t.GetNetwork() != string(network):
		return nil, fmt.Errorf("task: it is of network %.50q", t.GetNetwork())
	case len(t.GetPayer()) != ed25519.PublicKeySize:
		return nil, fmt.Errorf("task: payer of %d bytes", len(t.GetPayer()))
	case len(t.GetModel()) != 0 && len(t.GetModel()) != 32:
		return nil, fmt.Errorf("task: model of %d bytes", len(t.GetModel()))
	case len(t.GetModel()) == 0 && t.GetModelName() == "":
		return nil, errors.New("task: it names no model")
	case len(t.GetAddrs()) > 16:
		return nil, fmt.Errorf("task: %d addresses, at most 16", len(t.GetAddrs()))
	}
	payer := mesh.AddressOf(t.GetPayer())
	if !domainTask.Verify(payer, network, s.GetBody(), s.GetSignature()) {
		return nil, errors.New("task: the signature is not the payer's")
	}
	return &Task{Hash: domainTask.Hash(network, s.GetBody()), Pb: t, Payer: payer}, nil
}
