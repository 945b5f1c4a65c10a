package ledger

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/internal/merkle"
)

// An epoch has epoch_blocks blocks. It is closed settle_blocks after the next one
// began: by then its hosts have settled. Closing pays what was settled, emits the
// reward of the epoch by proven work, and chooses the validators.

// Work weighs the hosts of an epoch that is closed.
type Work interface {
	// Weights returns each host's weight, ascending by host, without zeros.
	Weights(r Reader, epoch mesh.Epoch) []Weight
	// ByModel returns of what models a host's weight comes, ascending by model, without
	// zeros. Only the proportions count. It is asked at the end of a vote.
	ByModel(r Reader, epoch mesh.Epoch, host mesh.Address) []ModelWeight
}

// Weight is a host's measured work in an epoch.
type Weight struct {
	Host   mesh.Address
	Weight uint64
}

// genesisWork credits hosts with the work of the genesis file, at the coefficients of
// the epoch, until proof of compute measures it.
type genesisWork struct{}

func (w genesisWork) Weights(r Reader, epoch mesh.Epoch) (out []Weight) {
	o := newOverlay(r)
	scan(o, []byte{tableWork}, func(k []byte, work *ledgerpb.CommitWork) {
		host := mesh.AddressOf(k[1:])
		var sum uint64
		for _, m := range w.ByModel(r, epoch, host) {
			sum = saturate(sum, m.Weight)
		}
		if sum > 0 {
			out = append(out, Weight{host, sum})
		}
	})
	return out
}

// turnEpoch begins an epoch and closes the one before, at their heights.
func (m *Machine) turnEpoch(o *overlay, b *blockState) {
	if uint64(b.height) >= b.epoch.GetStart()+b.params.GetEpochBlocks() {
		m.beginEpoch(o, b)
	}
	if b.epoch.GetEpoch() > 0 && uint64(b.height) == b.epoch.GetStart()+b.params.GetSettleBlocks() {
		m.closeEpoch(o, b)
	}
}

// beginEpoch ends one epoch and begins the next.
func (m *Machine) beginEpoch(o *overlay, b *blockState) {
	o.save(miscKey(miscEnded), &ledgerpb.EpochResult{
		Epoch: b.epoch.GetEpoch(), First: b.epoch.GetStart(), Last: uint64(b.height) - 1, Seed: b.epoch.GetSeed(),
	})
	b.epoch.Epoch++
	b.epoch.Start, b.epoch.Seed = uint64(b.height), b.epoch.GetRand()
	if next, ok := load[ledgerpb.Params](o, key(tablePending)); ok {
		if next.GetDowntimeWindow() != b.params.GetDowntimeWindow() {
			o.forgetMissed()
		}
		b.params = next
		o.save(key(tableParams), next)
		o.remove(key(tablePending))
		b.emit("params", "epoch", fmt.Sprint(b.epoch.GetEpoch()))
	}
	o.rotateKeys(b)
	m.payUnbonding(o, b.epoch.GetEpoch())
	m.releaseVesting(o, b.epoch.GetEpoch())
	o.recordHosts(b.epoch.GetEpoch(), b.params)
	b.emit("epoch", "begins", fmt.Sprint(b.epoch.GetEpoch()))
}

// maxListed bounds the hosts that an epoch lists in one record: a record has a size that
// the state takes, and all of an epoch's hosts are looked through often.
const maxListed = 10_000

// recordHosts notes who serves in an epoch: implicit lanes of escrows go to them. Less
// than host_collateral does not make a host one of them, or whoever made many would thin
// out the lanes of all others for next to nothing. Of too many they are those with the
// most collateral.
func (o *overlay) recordHosts(epoch uint64, p *ledgerpb.Params) {
	var all []member
	scan(o, []byte{tableHost}, func(k []byte, h *ledgerpb.Host) {
		if h.GetCollateral() >= max(1, p.GetHostCollateral()) && h.GetJailedUntil() == 0 && !h.GetTombstoned() {
			all = append(all, member{host: mesh.AddressOf(k[1:]), weight: h.GetCollateral()})
		}
	})
	if len(all) > maxListed {
		slices.SortFunc(all, func(a, b member) int {
			return cmp.Or(cmp.Compare(b.weight, a.weight), bytes.Compare(a.host[:], b.host[:]))
		})
		all = all[:maxListed]
		slices.SortFunc(all, func(a, b member) int { return bytes.Compare(a.host[:], b.host[:]) })
	}
	set := make([]byte, 0, 32*len(all))
	for _, v := range all {
		set = append(set, v.host[:]...)
	}
	o.set(key(tableSet, be64(epoch)), set)
}

// closeEpoch pays, emits, and chooses.
func (m *Machine) closeEpoch(o *overlay, b *blockState) {
	ended, ok := load[ledgerpb.EpochResult](o, miscKey(miscEnded))
	if !ok {
		return
	}
	epoch := ended.GetEpoch()
	weights := m.cfg.Work.Weights(o, mesh.Epoch(epoch))
	paid := m.payEpoch(o, epoch)
	rewards := m.emit(o, b, ended, weights)
	m.chooseSet(o, b, weights)
	hosts := make(map[mesh.Address]*ledgerpb.Reward)
	for _, r := range rewards {
		hosts[mesh.AddressOf(r.GetHost())] = r
	}
	scan(o, []byte{tableHost}, func(k []byte, h *ledgerpb.Host) {
		a := mesh.AddressOf(k[1:])
		r := hosts[a]
		if r == nil && (h.GetPower() > 0 || paid.byHost[a] > 0) {
			r = &ledgerpb.Reward{Host: a[:]}
			rewards = append(rewards, r)
		}
		if r != nil {
			r.Power, r.Paid = h.GetPower(), paid.byHost[a]
		}
	})
	rewards = listed(rewards)
	var leaves []mesh.Hash
	for _, r := range rewards {
		leaves = append(leaves, RewardLeaf(r))
	}
	root := merkle.Root(leaves)
	ended.Settlements, ended.Receipts, ended.Paid = paid.settlements, paid.receipts, paid.paid
	ended.Hosts, ended.Rewards = uint64(len(rewards)), root[:]
	o.save(rewardsKey(epoch), &ledgerpb.Rewards{Rewards: rewards})
	o.save(epochKey(epoch), ended)
	o.remove(miscKey(miscEnded))
	b.emit("epoch", "closed", fmt.Sprint(epoch), "emitted", fmt.Sprint(ended.GetEmission()), "paid", fmt.Sprint(paid.paid))
	m.prune(o, b, epoch)
}

// listed sorts an epoch's parts by host. Of too many it keeps the largest; the others
// were paid all the same.
func listed(rewards []*ledgerpb.Reward) []*ledgerpb.Reward {
	if len(rewards) > maxListed {
		slices.SortFunc(rewards, func(a, b *ledgerpb.Reward) int {
			return cmp.Or(cmp.Compare(b.GetPower(), a.GetPower()), cmp.Compare(b.GetWeight(), a.GetWeight()),
				cmp.Compare(b.GetPaid(), a.GetPaid()), bytes.Compare(a.GetHost(), b.GetHost()))
		})
		rewards = rewards[:maxListed]
	}
	slices.SortFunc(rewards, func(a, b *ledgerpb.Reward) int { return bytes.Compare(a.GetHost(), b.GetHost()) })
	return rewards
}

// emit shares the reward of an epoch by weight. What rounding leaves stays unemitted.
// A share goes to the host's owner, over vesting_epochs.
func (m *Machine) emit(o *overlay, b *blockState, result *ledgerpb.EpochResult, weights []Weight) (out []*ledgerpb.Reward) {
	reward := o.takeReward(b.params)
	// Work counts as far as collateral covers it: who has nothing to lose could claim
	// anything. Beyond most it counts no more, so that the sum of all fits.
	most := uint64(math.MaxUint64) / uint64(max(1, len(weights)))
	earned := make([]uint64, len(weights))
	hosts := make([]*ledgerpb.Host, len(weights))
	for i, w := range weights {
		h, ok := load[ledgerpb.Host](o, hostKey(w.Host))
		if !ok || h.GetTombstoned() || h.GetJailedUntil() > 0 { // who was away earns nothing
			continue
		}
		hosts[i], earned[i] = h, min(w.Weight, most)
		if per := b.params.GetCollateralPerWeight(); per > 0 {
			earned[i] = min(earned[i], h.GetCollateral()/per)
		}
		result.Weight += earned[i]
	}
	now := b.epoch.GetEpoch()
	for i, w := range weights {
		if earned[i] == 0 {
			continue
		}
		share := part(reward, earned[i], result.GetWeight())
		out = append(out, &ledgerpb.Reward{Host: bytes.Clone(w.Host[:]), Weight: earned[i], Reward: share})
		result.Emission = o.plus(result.GetEmission(), share)
		o.vest(mesh.AddressOf(hosts[i].GetOwner()), &ledgerpb.VestingEntry{Start: now, End: now + b.params.GetVestingEpochs(), Total: share})
	}
	o.totals(func(t *ledgerpb.Totals) { t.Unemitted = o.minus(t.GetUnemitted(), result.GetEmission()) })
	return out
}

// prune removes what old epochs left: the one that is too old now, and those that a
// shorter keep_epochs or the bound of earlier prunings left.
func (m *Machine) prune(o *overlay, b *blockState, epoch uint64) {
	if epoch < b.params.GetKeepEpochs() {
		return
	}
	old := epoch - b.params.GetKeepEpochs()
	for _, table := range []byte{tableEpoch, tableRewards, tableSet, tableCommitted} {
		for _, k := range keysUpTo(o, table, old, perEpoch) {
			o.remove(k)
		}
	}
	m.pruneSettlements(o, old)
}

// firstValidators chooses those of the genesis.
func (m *Machine) firstValidators(o *overlay, b *blockState) {
	o.recordHosts(0, b.params)
	m.chooseSet(o, b, m.cfg.Work.Weights(o, 0))
	m.tellSet(o, b)
}

// commitWork records a host's commitment to its work in an epoch, once, while the epoch
// is being settled. Until proof of compute reads it, weights are those of the genesis.
func (c *call) commitWork(t *ledgerpb.CommitWork) error {
	if err := c.settleable(t.GetEpoch()); err != nil {
		return err
	}
	h, err := c.hostRecord(c.sender)
	switch {
	case err != nil:
		return err
	case h.GetTombstoned():
		return refuse("%s is no host any more", c.sender.Short())
	}
	if n := len(t.GetWork()); n == 0 || n > maxWork {
		return refuse("work on %d models, from 1 to %d", n, maxWork)
	}
	for i, w := range t.GetWork() {
		model, err := hashFrom("model", w.GetModel())
		if err != nil {
			return err
		}
		if record, ok := load[ledgerpb.Model](c.overlay, modelKey(model)); !ok || coefficientAt(record, t.GetEpoch()) == 0 {
			return refuse("model %s is not one that work counted for in epoch %d", model.Short(), t.GetEpoch())
		}
		if w.GetCount() == 0 {
			return refuse("no work on model %s", model.Short())
		}
		if _, err := hashFrom("root of the artifacts", w.GetRoot()); err != nil {
			return err
		}
		if i > 0 && bytes.Compare(t.GetWork()[i-1].GetModel(), w.GetModel()) >= 0 {
			return refuse("work is not ascending by model")
		}
	}
	k := key(tableCommitted, be64(t.GetEpoch()), c.sender[:])
	if c.Get(k) != nil {
		return refuse("%s committed its work of epoch %d already", c.sender.Short(), t.GetEpoch())
	}
	c.save(k, t)
	return nil
}

const maxWork = 64

// RewardLeaf is the leaf of a host's part in the tree of an epoch's rewards.
func RewardLeaf(r *ledgerpb.Reward) mesh.Hash {
	b, _ := encode(r) // numbers and bytes always encode
	return mesh.HashOf(b)
}

// epochKey is the key of an epoch's result, rewardsKey that of its rewards.
func epochKey(epoch uint64) []byte   { return key(tableEpoch, be64(epoch)) }
func rewardsKey(epoch uint64) []byte { return key(tableRewards, be64(epoch)) }

// EpochResult returns what came of an epoch, nil for one that is not closed or not kept.
func (v View) EpochResult(e mesh.Epoch) (*ledgerpb.EpochResult, error) {
	return read[ledgerpb.EpochResult](v, epochKey(uint64(e)))
}

// Ended returns the epoch that ended and is not closed yet, nil where there is none.
func (v View) Ended() (*ledgerpb.EpochResult, error) {
	return read[ledgerpb.EpochResult](v, miscKey(miscEnded))
}

// Rewards returns the parts of an epoch's hosts, nil likewise.
func (v View) Rewards(e mesh.Epoch) (*ledgerpb.Rewards, error) {
	return read[ledgerpb.Rewards](v, rewardsKey(uint64(e)))
}
