package ledger

import (
	"bytes"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// Proposals returns all proposals, ascending by number.
func (v View) Proposals() ([]*ledgerpb.Proposal, error) {
	var all []*ledgerpb.Proposal
	err := list(v, key(tableProposal), func(_ []byte, p *ledgerpb.Proposal) { all = append(all, p) })
	return all, err
}

// Proposal returns one proposal. Its sums are zero while the vote is open; see Tally.
func (v View) Proposal(id uint64) (*ledgerpb.Proposal, error) {
	return read[ledgerpb.Proposal](v, proposalKey(id))
}

// HostBallot is a host's own vote.
type HostBallot struct {
	Host   mesh.Address
	Option ledgerpb.Option
}

// Ballots returns the votes on a proposal, ascending by host. They are kept when it
// is closed.
func (v View) Ballots(id uint64) ([]HostBallot, error) {
	var all []HostBallot
	err := list(v, ballotsOf(id), func(k []byte, b *ledgerpb.Ballot) {
		all = append(all, HostBallot{mesh.AddressOf(bytes.TrimPrefix(k, ballotsOf(id))), b.GetOption()})
	})
	return all, err
}

// Tally returns a proposal; while the vote is open, with the sums and the status that
// it would have if it ended now.
func (m *Machine) Tally(base Reader, id uint64) (*ledgerpb.Proposal, error) {
	v := NewView(base)
	p, err := v.Proposal(id)
	if err != nil || p == nil || p.GetStatus() != StatusVoting {
		return p, err
	}
	epoch, err := v.Epoch()
	if err != nil {
		return nil, err
	}
	o := newOverlay(base)
	m.electorate(o, &blockState{epoch: epoch}).count(p)
	p.Status, p.Reason, _ = decide(p)
	return p, *o.err
}

// NamedModel is a model's record with its ID.
type NamedModel struct {
	ID mesh.ModelID
	*ledgerpb.Model
}

// Models returns all models, retired ones too, ascending by ID.
func (v View) Models() ([]NamedModel, error) {
	var all []NamedModel
	err := list(v, key(tableModel), func(k []byte, m *ledgerpb.Model) {
		all = append(all, NamedModel{mesh.ModelID(bytesOf32(k[1:])), m})
	})
	return all, err
}

// Model returns a model's record.
func (v View) Model(id mesh.ModelID) (*ledgerpb.Model, error) {
	return read[ledgerpb.Model](v, modelKey(id))
}

// CoefficientAt returns what 1000 artifacts of an epoch weigh for a model; 0 when it
// was not approved then.
func CoefficientAt(model *ledgerpb.Model, epoch mesh.Epoch) uint64 {
	return coefficientAt(model, uint64(epoch))
}
