package ledger

import (
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// TestInvariantsFail breaks a state in one way after the other.
func TestInvariantsFail(t *testing.T) {
	g := newGenerator(t, 2)
	g.run(2000, nil)
	if err := CheckInvariants(g.state); err != nil {
		t.Fatal(err)
	}
	host := hostKey(g.people[0])
	totals := miscKey(miscTotals)
	sums := func(change func(t *ledgerpb.Totals)) func(o *overlay) {
		return func(o *overlay) { o.totals(change) }
	}
	record := func(change func(h *ledgerpb.Host)) func(o *overlay) {
		return func(o *overlay) {
			h, _ := load[ledgerpb.Host](o, host)
			change(h)
			o.save(host, h)
		}
	}
	for _, test := range []struct {
		name, words string
		change      func(o *overlay)
	}{
		{"a coin too many", "ngonka in all", func(o *overlay) { o.credit(g.people[0], 1) }},
		{"a coin lost", "ngonka in all", sums(func(t *ledgerpb.Totals) { t.Unemitted-- })},
		{"sums beyond 64 bits", "ngonka in all", sums(func(t *ledgerpb.Totals) { t.Unemitted, t.Community = 1<<63, 1<<63 })},
		{"no totals", "no totals", func(o *overlay) { o.remove(totals) }},
		{"collateral", "collateral is", sums(func(t *ledgerpb.Totals) { t.Collateral++; t.Unemitted-- })},
		{"escrow", "escrows hold", sums(func(t *ledgerpb.Totals) { t.Escrow++; t.Unemitted-- })},
		{"vesting", "vest, the sum says", sums(func(t *ledgerpb.Totals) { t.Vesting++; t.Unemitted-- })},
		{"deposits", "deposits are", sums(func(t *ledgerpb.Totals) { t.Deposits++; t.Unemitted-- })},
		{"runs", "runs hold", sums(func(t *ledgerpb.Totals) { t.Runs++; t.Unemitted-- })},
		{"parameters", "no parameters", func(o *overlay) { o.remove(key(tableParams)) }},
		{"a parameter", "epoch_blocks is 1", func(o *overlay) {
			p, _ := load[ledgerpb.Params](o, key(tableParams))
			p.EpochBlocks = 1
			o.save(key(tableParams), p)
		}},
		{"no height", "no height", func(o *overlay) { o.remove(miscKey(miscHeight)) }},
		{"no epoch", "no epoch", func(o *overlay) { o.remove(miscKey(miscEpoch)) }},
		{"power in jail", "validators are in jail", record(func(h *ledgerpb.Host) { h.Power, h.JailedUntil = 1, 3 })},
		{"power of a tombstone", "validators are in jail", record(func(h *ledgerpb.Host) { h.Power, h.Tombstoned = 1, true })},
		{"a consensus key", "belongs to", record(func(h *ledgerpb.Host) { h.ConsensusKey = make([]byte, 32) })},
		{"too much power", "power is", record(func(h *ledgerpb.Host) { h.Power, h.JailedUntil, h.Tombstoned = 1<<60, 0, false })},
		{"a host without a record", "no host", func(o *overlay) {
			h, _ := load[ledgerpb.Host](o, host)
			o.totals(func(t *ledgerpb.Totals) { t.Collateral -= h.Collateral; t.Unemitted += h.Collateral })
			o.remove(host)
		}},
		{"a vote without an end", "have an end", func(o *overlay) {
			for _, k := range g.state.under(key(tableEnding)) {
				o.remove([]byte(k))
			}
		}},
		{"a vote past its end", "past its end", func(o *overlay) { o.set(miscKey(miscHeight), be64(1<<40)) }},
		{"a ballot of nothing", "of no proposal", func(o *overlay) {
			o.save(ballotKey(1<<40, g.people[0]), &ledgerpb.Ballot{Option: ledgerpb.Option_YES})
		}},
		{"a delegation to oneself", "delegation", func(o *overlay) {
			o.save(delegationKey(g.people[0], testModel(0)), &ledgerpb.Delegation{To: g.people[0][:]})
		}},
		{"power above the cap", "at most", func(o *overlay) {
			o.save(miscKey(miscChosen), &ledgerpb.Validators{Validators: make10(func(v *ledgerpb.Validator) { v.Power = totalPower / 4 })})
			o.remove(miscKey(miscEnded))
		}},
		{"a validator that was not chosen", "were chosen", func(o *overlay) {
			chosen, _ := load[ledgerpb.Validators](o, miscKey(miscChosen))
			chosen.Validators[1].Power += chosen.Validators[0].Power
			chosen.Validators, chosen.Moved = chosen.Validators[1:], totalPower
			o.save(miscKey(miscChosen), chosen)
			o.remove(miscKey(miscEnded))
		}},
		{"another BLS key for beacons", "proposes with another BLS key", func(o *overlay) {
			h, _ := load[ledgerpb.Host](o, host)
			o.save(consensusIndex(ConsensusAddressOf(h.GetConsensusKey())), &ledgerpb.ConsensusKey{Host: host[1:], BlsKey: make([]byte, 48)})
		}},
		{"a model", "its steps say", func(o *overlay) {
			o.save(modelKey(testModel(0)), &ledgerpb.Model{Coefficient: 5, Steps: []*ledgerpb.ModelStep{{Coefficient: 6}}})
		}},
		{"an upgrade in the past", "upgrade", func(o *overlay) { o.save(upgradeKey(), &ledgerpb.Upgrade{Name: "v1", Height: 1}) }},
		{"a damaged record", "does not decode", func(o *overlay) { o.set(host, []byte{0xff}) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := newOverlay(g.state)
			test.change(o)
			s := g.state.clone()
			s.write(t, o.changes())
			if err := CheckInvariants(s); err == nil || !strings.Contains(err.Error(), test.words) {
				t.Errorf("got %v, want words with %q", err, test.words)
			}
		})
	}
}

func make10(set func(v *ledgerpb.Validator)) (all []*ledgerpb.Validator) {
	for range 10 {
		v := new(ledgerpb.Validator)
		set(v)
		all = append(all, v)
	}
	return all
}
