package ledger

import (
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// Bounds of an upgrade's words.
const (
	maxUpgradeName = 64
	maxUpgradeInfo = 512
)

// Store is a state that a migration changes.
type Store interface {
	Reader
	Set(key, value []byte)
	Delete(key []byte)
}

// Migration changes the state at an upgrade, before anything else of its block. It
// must do the same on every node. An error means that this node's state is damaged.
type Migration func(s Store) error

// store is an overlay as a migration sees it.
type store struct{ *overlay }

func (s store) Set(key, value []byte) {
	if value == nil {
		value = []byte{}
	}
	s.set(key, value)
}

func (s store) Delete(key []byte) { s.remove(key) }

// UpgradeNeeded is why a machine does not apply a block: the network upgraded to
// something that this software does not know.
type UpgradeNeeded struct {
	Name   string
	Height mesh.Height // of the first block under it
	Info   string      // where to get it, as the proposal said
}

func (u *UpgradeNeeded) Error() string {
	s := fmt.Sprintf("the network upgrades to %q at height %d, which this version does not know: install a version that does and start again", u.Name, u.Height)
	if u.Info != "" {
		s += " (" + u.Info + ")"
	}
	return s
}

func upgradeKey() []byte               { return key(tableUpgrade) }
func upgradedKey(name string) []byte   { return key(tableUpgrade, []byte(name)) }
func (m *Machine) knows(n string) bool { _, ok := m.cfg.Upgrades[n]; return ok }

// Ready says whether this software can apply the block after a state: nil, or an
// *UpgradeNeeded, so that a node stops before it takes part.
func (m *Machine) Ready(base Reader) error {
	o := newOverlay(base)
	height, err := heightOf(o)
	if err != nil {
		return err
	}
	if _, err := m.due(o, height+1); err != nil {
		return err
	}
	return *o.err
}

// due returns the upgrade that is carried out before a block, nil if there is none.
// It refuses the block to software that does not know that upgrade, or the last one
// that was carried out: an older version started by mistake would follow old rules.
func (m *Machine) due(o *overlay, height mesh.Height) (*ledgerpb.Upgrade, error) {
	if last := string(o.Get(miscKey(miscUpgrade))); last != "" && !m.knows(last) {
		done, _ := load[ledgerpb.Upgrade](o, upgradedKey(last))
		return nil, &UpgradeNeeded{last, mesh.Height(done.GetHeight()), done.GetInfo()}
	}
	plan, ok := load[ledgerpb.Upgrade](o, upgradeKey())
	if !ok || uint64(height) < plan.GetHeight() {
		return nil, nil
	}
	if !m.knows(plan.GetName()) {
		return nil, &UpgradeNeeded{plan.GetName(), mesh.Height(plan.GetHeight()), plan.GetInfo()}
	}
	return plan, nil
}

// upgrade carries out the plan at its height.
func (m *Machine) upgrade(o *overlay, b *blockState) error {
	plan, err := m.due(o, b.height)
	if plan == nil || err != nil {
		return err
	}
	if migrate := m.cfg.Upgrades[plan.GetName()]; migrate != nil {
		if err := migrate(store{o}); err != nil {
			return fmt.Errorf("upgrade to %q: %w", plan.GetName(), err)
		}
		o.migrated = &overlay{base: o.base, writes: maps.Clone(o.writes), err: o.err}
	}
	o.remove(upgradeKey())
	o.save(upgradedKey(plan.GetName()), plan)
	o.set(miscKey(miscUpgrade), []byte(plan.GetName()))
	b.emit("upgrade", "name", plan.GetName(), "height", strconv.FormatUint(uint64(b.height), 10))
	return nil
}

// enactUpgrade plans an upgrade; one plan at a time, a later one replaces it. Between
// the end of the vote and its height lies an epoch, in which operators install it.
// Height 0 cancels the plan of that name.
func enactUpgrade(o *overlay, b *blockState, t *ledgerpb.Upgrade, ends uint64) error {
	if err := checkWords("name of the upgrade", t.GetName(), 1, maxUpgradeName, ""); err != nil {
		return err
	}
	if strings.Trim(t.GetName(), "abcdefghijklmnopqrstuvwxyz0123456789.-") != "" {
		return refuse("upgrade %q: a name has only a-z, 0-9, '.' and '-'", t.GetName())
	}
	if err := checkWords("info of the upgrade", t.GetInfo(), 0, maxUpgradeInfo, "\n\t"); err != nil {
		return err
	}
	if t.GetHeight() == 0 {
		plan, ok := load[ledgerpb.Upgrade](o, upgradeKey())
		if !ok || plan.GetName() != t.GetName() {
			return refuse("no upgrade to %q is planned that could be cancelled", t.GetName())
		}
		o.remove(upgradeKey())
		return nil
	}
	if done, ok := load[ledgerpb.Upgrade](o, upgradedKey(t.GetName())); ok {
		return refuse("the upgrade to %q was carried out at height %d", t.GetName(), done.GetHeight())
	}
	if least := ends + b.params.GetEpochBlocks(); t.GetHeight() < least || t.GetHeight() > least+maxPlan {
		return refuse("upgrade at height %d, want %d (an epoch after the vote's end) to %d", t.GetHeight(), least, least+maxPlan)
	}
	o.save(upgradeKey(), t)
	return nil
}

// maxPlan bounds how far ahead an upgrade is planned, in blocks.
const maxPlan = 1 << 24

// Plan returns the planned upgrade, nil if there is none.
func (v View) Plan() (*ledgerpb.Upgrade, error) { return read[ledgerpb.Upgrade](v, upgradeKey()) }

// Upgrades returns those that were carried out, ascending by name.
func (v View) Upgrades() ([]*ledgerpb.Upgrade, error) {
	var done []*ledgerpb.Upgrade
	err := list(v, upgradeKey(), func(k []byte, u *ledgerpb.Upgrade) {
		if len(k) > len(upgradeKey()) {
			done = append(done, u)
		}
	})
	return done, err
}
