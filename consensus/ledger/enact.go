package ledger

import (
	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// Bounds of a model's record. What a coefficient may be, times all artifacts that a
// host can make in an epoch, fits into a weight.
const (
	maxModelName   = 64
	maxCoefficient = 1e9
	keptSteps      = 4
)

// enact makes the change of a proposal whose vote ends at a height, or says in words
// why not. Every change but a payment takes effect at the next epoch or later.
func (m *Machine) enact(o *overlay, b *blockState, body *ledgerpb.Propose, ends uint64) error {
	switch change := body.GetChange().(type) {
	case *ledgerpb.Propose_Params:
		return m.enactParams(o, b, change.Params)
	case *ledgerpb.Propose_Model:
		return enactModel(o, b, change.Model)
	case *ledgerpb.Propose_Upgrade:
		return enactUpgrade(o, b, change.Upgrade, ends)
	case *ledgerpb.Propose_Spend:
		return enactSpend(o, change.Spend)
	}
	return nil // a resolution in words
}

// enactParams sets parameters of the next epoch, on top of what other votes of this
// epoch set.
func (m *Machine) enactParams(o *overlay, b *blockState, t *ledgerpb.ParamsChange) error {
	if len(t.GetSet()) == 0 {
		return refuse("no parameter to set")
	}
	next, ok := load[ledgerpb.Params](o, key(tablePending))
	if !ok {
		next = cloneParams(b.params)
	}
	for i, s := range t.GetSet() {
		if i > 0 && s.GetName() <= t.GetSet()[i-1].GetName() {
			return refuse("parameters are set in the order of their names, each once: %.40q is not", s.GetName())
		}
		if s.GetName() == "emission_first" && b.epoch.GetEpoch() > 0 {
			// What is set now holds from an epoch on in which that reward was paid.
			return refuse("emission_first is the reward of epoch 0, which is over; emission_decay is what can be changed")
		}
		if err := setParam(next, s.GetName(), s.GetValue()); err != nil {
			return err
		}
	}
	if err := checkParams(next); err != nil {
		return err
	}
	if err := m.checkUnbonding(b.params, next); err != nil {
		return err
	}
	o.save(key(tablePending), next)
	return nil
}

// checkUnbonding refuses to let collateral unbond while light nodes still believe what it
// stands behind: whoever signed a header could then sign another one of that height with
// nothing to lose. Who asks for collateral back in an epoch has power until that epoch is
// closed, settle_blocks into the next one, and is paid when the unbonding_epochs-th after
// it begins. A network that began with less than that may change its
// parameters, and not shorten it.
func (m *Machine) checkUnbonding(now, next *ledgerpb.Params) error {
	was := slashable(now, now.GetUnbondingEpochs())
	// What unbonds already has the number of epochs of now, and their length of then.
	is := slashable(next, min(now.GetUnbondingEpochs(), next.GetUnbondingEpochs()))
	if m.cfg.Trust == 0 || is > m.cfg.Trust || is >= was {
		return nil
	}
	return refuse("collateral could be slashed for %d blocks after its host lost its power, (unbonding_epochs - 1) * epoch_blocks - settle_blocks; it has to be more than the %d blocks for which light nodes trust what the host signed (trust_seconds of the genesis); first raise unbonding_epochs, by a proposal of its own",
		is, m.cfg.Trust)
}

// slashable is for how many blocks a host that asked for its collateral back can be
// slashed at least, from when it lost its power on.
func slashable(p *ledgerpb.Params, unbonding uint64) uint64 {
	all := (unbonding - 1) * p.GetEpochBlocks()
	return all - min(all, p.GetSettleBlocks())
}

// enactModel approves a model, changes its coefficient by at most a tenth per epoch,
// or retires it, all from the next epoch on.
func enactModel(o *overlay, b *blockState, t *ledgerpb.ModelChange) error {
	id, err := hashFrom("model", t.GetModel())
	if err != nil {
		return err
	}
	next := b.epoch.GetEpoch() + 1
	model, known := load[ledgerpb.Model](o, modelKey(id))
	// What it weighs now is what a change is measured by, however many votes of this
	// epoch change it, or retire it and approve it again.
	now := coefficientAt(model, next-1)
	switch retired := model.GetRetired() != 0; {
	case t.GetCoefficient() == 0 && (!known || retired):
		return refuse("model %s is not approved, so it cannot be retired; to approve it give a coefficient", id.Short())
	case t.GetCoefficient() == 0:
		model.Retired = next
	case !known:
		if model, err = approved(id, t.GetName(), t.GetCoefficient(), next); err != nil {
			return err
		}
	case retired && now == 0:
		if model.GetRetired() < next {
			model.Since = next
		}
		model.Retired = 0
	default:
		if now == 0 { // approved in this epoch, with whatever the vote said
			now = model.GetCoefficient()
		}
		step := max(1, now/10)
		if t.GetCoefficient() > now+step || t.GetCoefficient()+step < now {
			return refuse("coefficient %d for model %s, which has %d: a vote changes it by at most a tenth", t.GetCoefficient(), id.Short(), now)
		}
		model.Retired = 0 // by another vote of this epoch
	}
	if known && t.GetName() != "" {
		if err := checkWords("name of the model", t.GetName(), 1, maxModelName, ""); err != nil {
			return err
		}
		model.Name = t.GetName()
	}
	if t.GetCoefficient() > maxCoefficient {
		return refuse("coefficient %d, at most %d", t.GetCoefficient(), uint64(maxCoefficient))
	}
	setCoefficient(model, next, t.GetCoefficient())
	o.save(modelKey(id), model)
	return nil
}

// approved returns the record of a new model that counts from an epoch on.
func approved(id mesh.ModelID, name string, coefficient, since uint64) (*ledgerpb.Model, error) {
	if id.IsZero() {
		return nil, refuse("a model's ID is not zero")
	}
	if err := checkWords("name of the model", name, 1, maxModelName, ""); err != nil {
		return nil, err
	}
	if coefficient == 0 || coefficient > maxCoefficient {
		return nil, refuse("coefficient %d for model %s, want 1 to %d", coefficient, id.Short(), uint64(maxCoefficient))
	}
	return &ledgerpb.Model{Name: name, Coefficient: coefficient, Since: since}, nil
}

// setCoefficient changes a coefficient from an epoch on and keeps what it was in the
// epochs that are not closed yet.
func setCoefficient(model *ledgerpb.Model, epoch, coefficient uint64) {
	steps := model.GetSteps()
	if len(steps) == 0 {
		steps = append(steps, &ledgerpb.ModelStep{Epoch: model.GetSince(), Coefficient: model.GetCoefficient()})
	}
	if last := steps[len(steps)-1]; last.GetEpoch() == epoch {
		last.Coefficient = coefficient
	} else {
		steps = append(steps, &ledgerpb.ModelStep{Epoch: epoch, Coefficient: coefficient})
	}
	if len(steps) > keptSteps {
		steps = steps[len(steps)-keptSteps:]
	}
	model.Coefficient, model.Steps = coefficient, steps
}

// coefficientAt returns what a model's artifacts of an epoch weigh; 0 when it was not
// approved then.
func coefficientAt(model *ledgerpb.Model, epoch uint64) uint64 {
	steps := model.GetSteps()
	for i := len(steps) - 1; i >= 0; i-- {
		if steps[i].GetEpoch() <= epoch {
			return steps[i].GetCoefficient()
		}
	}
	if len(steps) == 0 && model.GetSince() <= epoch {
		return model.GetCoefficient()
	}
	return 0
}

// enactSpend pays from the community pool, at once.
func enactSpend(o *overlay, t *ledgerpb.Spend) error {
	to, err := addressFrom("recipient", t.GetTo())
	if err != nil {
		return err
	}
	totals, _ := load[ledgerpb.Totals](o, miscKey(miscTotals))
	switch {
	case t.GetAmount() == 0:
		return refuse("nothing to spend")
	case t.GetAmount() > totals.GetCommunity():
		return refuse("the community pool has %s, %s are to be spent", mesh.Amount(totals.GetCommunity()), mesh.Amount(t.GetAmount()))
	}
	o.totals(func(t2 *ledgerpb.Totals) { t2.Community = o.minus(t2.GetCommunity(), t.GetAmount()) })
	o.credit(to, t.GetAmount())
	return nil
}
