package ledger

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// Groups of the genesis split, in percent of all coins. What hosts earn is emitted
// epoch by epoch; what is not allocated of the ecosystem's part is the community
// pool, which governance spends.
const (
	GroupHosts     = "hosts"
	GroupEcosystem = "ecosystem"
	GroupTeam      = "team"
	GroupEarly     = "early"
	GroupLiquidity = "liquidity"
)

var split = []struct {
	group   string
	percent uint64
}{
	{GroupHosts, 40}, {GroupEcosystem, 20}, {GroupTeam, 15}, {GroupEarly, 10}, {GroupLiquidity, 15},
}

// Share returns a group's part of all coins.
func Share(group string) mesh.Amount {
	for _, s := range split {
		if s.group == group {
			return mesh.MaxSupply / 100 * mesh.Amount(s.percent)
		}
	}
	return 0
}

// Genesis is the ledger's part of a genesis document.
type Genesis struct {
	Params      map[string]uint64 `json:"params,omitempty"` // by the names of ledgerpb.Params; others have their default
	Allocations []Allocation      `json:"allocations"`
	Hosts       []GenesisHost     `json:"hosts"`
	Models      []GenesisModel    `json:"models"`
}

// Allocation gives a part of a group's coins to an account, at once or over time.
type Allocation struct {
	Address    mesh.Address `json:"address"`
	Amount     string       `json:"amount"` // in GNK
	Group      string       `json:"group"`
	VestStart  uint64       `json:"vest_start,omitempty"`  // epoch after which it begins
	VestEpochs uint64       `json:"vest_epochs,omitempty"` // over so many; 0: at once
}

// GenesisHost is a host of the first epoch.
type GenesisHost struct {
	Address        mesh.Address  `json:"address"`
	Owner          mesh.Address  `json:"owner,omitempty"`
	ConsensusKey   string        `json:"consensus_key"` // hex, as are the next three
	ConsensusProof string        `json:"consensus_proof"`
	BLSKey         string        `json:"bls_key"`
	BLSProof       string        `json:"bls_proof"`
	Collateral     string        `json:"collateral"` // in GNK, taken from the owner's account
	Work           []GenesisWork `json:"work"`
}

// GenesisWork is the work that a host is credited with until it proves its own.
type GenesisWork struct {
	Model mesh.ModelID `json:"model"`
	Count uint64       `json:"count"`
}

// GenesisModel is a model that work counts for from the start.
type GenesisModel struct {
	ID          mesh.ModelID `json:"id"`
	Name        string       `json:"name"`
	Coefficient uint64       `json:"coefficient"` // weight of 1000 artifacts
}

// ParseGenesis reads the JSON form.
func ParseGenesis(b []byte) (*Genesis, error) {
	g := new(Genesis)
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(g); err != nil {
		return nil, fmt.Errorf("ledger of the genesis: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("ledger of the genesis: something follows its end")
	}
	return g, nil
}

// Genesis returns the state of height 0 and the first validators.
func (m *Machine) Genesis(g *Genesis) (*Outcome, error) {
	o := newOverlay(empty{})
	params := DefaultParams()
	for name, value := range g.Params { // any order gives the same record
		if err := setParam(params, name, value); err != nil {
			return nil, fmt.Errorf("genesis: %w", err)
		}
	}
	if err := checkParams(params); err != nil {
		return nil, fmt.Errorf("genesis: %w", err)
	}
	o.save(key(tableParams), params)
	o.totals(func(t *ledgerpb.Totals) { t.Unemitted = uint64(Share(GroupHosts)) })
	if err := allocate(o, g.Allocations); err != nil {
		return nil, fmt.Errorf("genesis: %w", err)
	}
	for _, model := range g.Models {
		if err := genesisModel(o, model); err != nil {
			return nil, fmt.Errorf("genesis: %w", err)
		}
	}
	b := &blockState{params: params, epoch: &ledgerpb.EpochState{Start: 1}}
	rand := domainRand.Hash(m.cfg.Network, []byte("genesis"))
	b.epoch.Rand, b.epoch.Seed = rand[:], rand[:]
	for i, h := range g.Hosts {
		if err := m.genesisHost(o, b, h); err != nil {
			return nil, fmt.Errorf("genesis: host %d (%s): %w", i, h.Address, err)
		}
	}
	m.firstValidators(o, b)
	if len(b.updates) == 0 {
		return nil, fmt.Errorf("genesis: no host has weight and collateral, so there is no validator")
	}
	o.save(miscKey(miscEpoch), b.epoch)
	o.set(miscKey(miscHeight), be64(0))
	return &Outcome{Changes: o.changes(), Validators: b.updates}, *o.err
}

// allocate pays out the groups' parts.
func allocate(o *overlay, all []Allocation) error {
	given := make(map[string]uint64)
	for i, a := range all {
		amount, err := mesh.ParseAmount(a.Amount)
		switch {
		case err != nil:
			return fmt.Errorf("allocation %d: %w", i, err)
		case nobodys(a.Address) || amount == 0:
			return fmt.Errorf("allocation %d has no amount, or an address that is nobody's", i)
		case a.Group == GroupHosts || Share(a.Group) == 0:
			return fmt.Errorf("allocation %d: group %q, want ecosystem, team, early or liquidity", i, a.Group)
		case uint64(amount) > uint64(Share(a.Group))-given[a.Group]:
			return fmt.Errorf("allocation %d: group %s has %s in all", i, a.Group, Share(a.Group))
		}
		given[a.Group] += uint64(amount)
		if a.VestEpochs == 0 {
			o.credit(a.Address, uint64(amount))
			continue
		}
		end := a.VestStart + a.VestEpochs
		if end < a.VestStart {
			return fmt.Errorf("allocation %d: vesting has no end", i)
		}
		o.vest(a.Address, &ledgerpb.VestingEntry{Start: a.VestStart, End: end, Total: uint64(amount)})
	}
	for _, s := range split {
		rest := uint64(Share(s.group)) - given[s.group]
		switch {
		case s.group == GroupHosts:
		case s.group == GroupEcosystem:
			o.totals(func(t *ledgerpb.Totals) { t.Community = rest })
		case rest > 0:
			return fmt.Errorf("%s of group %s are not allocated", mesh.Amount(rest), s.group)
		}
	}
	return nil
}

// genesisModel approves a model with the checks of a vote.
func genesisModel(o *overlay, model GenesisModel) error {
	if _, ok := load[ledgerpb.Model](o, modelKey(model.ID)); ok {
		return fmt.Errorf("model %s is listed twice", model.ID)
	}
	record, err := approved(model.ID, model.Name, model.Coefficient, 0)
	if err != nil {
		return err
	}
	o.save(modelKey(model.ID), record)
	return nil
}

// genesisHost registers a host with the checks of RegisterHost and Stake.
func (m *Machine) genesisHost(o *overlay, b *blockState, h GenesisHost) error {
	t := new(ledgerpb.RegisterHost)
	for _, f := range []struct {
		name string
		text string
		to   *[]byte
	}{
		{"consensus_key", h.ConsensusKey, &t.ConsensusKey}, {"consensus_proof", h.ConsensusProof, &t.ConsensusProof},
		{"bls_key", h.BLSKey, &t.BlsKey}, {"bls_proof", h.BLSProof, &t.BlsProof},
	} {
		v, err := hex.DecodeString(f.text)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		*f.to = v
	}
	if !h.Owner.IsZero() {
		t.Owner = h.Owner[:]
	}
	if nobodys(h.Address) {
		return fmt.Errorf("the address is nobody's")
	}
	if _, ok := load[ledgerpb.Host](o, hostKey(h.Address)); ok {
		return fmt.Errorf("it is listed twice")
	}
	c := &call{overlay: o, m: m, b: b, sender: h.Address}
	network := m.cfg.Network
	if len(network) > 8 { // the proofs were made before the network had its ID
		network = GenesisNetwork(string(network[:len(network)-8]))
	}
	if err := c.enrol(network, t); err != nil {
		return err
	}
	collateral, err := mesh.ParseAmount(cmp.Or(h.Collateral, "0"))
	if err != nil {
		return fmt.Errorf("collateral: %w", err)
	}
	if collateral > 0 {
		payer := h.Owner
		if payer.IsZero() {
			payer = h.Address
		}
		c.sender = payer
		if err := c.stake(&ledgerpb.Stake{Host: h.Address[:], Amount: uint64(collateral)}); err != nil {
			return fmt.Errorf("collateral: %w", err)
		}
	}
	work := slices.Clone(h.Work)
	slices.SortFunc(work, func(a, b GenesisWork) int { return bytes.Compare(a.Model[:], b.Model[:]) })
	record := new(ledgerpb.CommitWork)
	for i, w := range work {
		if i > 0 && work[i-1].Model == w.Model {
			return fmt.Errorf("work on model %s is listed twice", w.Model)
		}
		record.Work = append(record.Work, &ledgerpb.Work{Model: w.Model[:], Count: w.Count})
	}
	o.save(key(tableWork, h.Address[:]), record)
	return nil
}

// empty is a state without records.
type empty struct{}

func (empty) Get([]byte) []byte                      { return nil }
func (empty) Iterate([]byte, func(_, _ []byte) bool) {}
