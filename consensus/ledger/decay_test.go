package ledger

import (
	"math/big"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// TestDecayConstant computes exp(-0.000475)·2^64 from its series.
func TestDecayConstant(t *testing.T) {
	x := big.NewRat(-475, 1_000_000)
	sum, term := big.NewRat(1, 1), big.NewRat(1, 1)
	for n := int64(1); n <= 10; n++ { // the next term is below 10^-43
		term.Mul(term, x).Mul(term, big.NewRat(1, n))
		sum.Add(sum, term)
	}
	sum.Mul(sum, new(big.Rat).SetInt(new(big.Int).Lsh(big.NewInt(1), 64)))
	want := new(big.Int).Quo(sum.Num(), sum.Denom())
	if got := DefaultParams().GetEmissionDecay(); !want.IsUint64() || got != want.Uint64() {
		t.Errorf("emission_decay is %d, exp(-0.000475) 2^64 is %s", got, sum.FloatString(3))
	}
}

// TestWholeEmission takes the rewards of all epochs under the default parameters, were
// none withheld: what hosts are to get and not a coin more, though the sum without an end
// is 95,007 GNK above it.
func TestWholeEmission(t *testing.T) {
	p, o := DefaultParams(), newOverlay(empty{})
	left := uint64(Share(GroupHosts))
	o.totals(func(t *ledgerpb.Totals) { t.Unemitted = left })
	var sum, before uint64
	epochs, half := 0, 0
	for ; ; epochs++ {
		reward := o.takeReward(p)
		if reward == 0 {
			break
		}
		if epochs == 0 && reward != p.GetEmissionFirst() || epochs > 0 && reward >= before {
			t.Fatalf("epoch %d has %d, the one before %d", epochs, reward, before)
		}
		if reward*2 > p.GetEmissionFirst() {
			half++
		}
		sum, before = sum+reward, reward
		o.totals(func(t *ledgerpb.Totals) { t.Unemitted = left - sum })
	}
	t.Logf("%s in %d epochs, half of the first reward after %d", mesh.Amount(sum), epochs, half)
	if sum != left {
		t.Errorf("%s in all, of %s", mesh.Amount(sum), mesh.Amount(left))
	}
	if epochs != 17570 || half != 1460 {
		t.Errorf("%d epochs, half the reward after %d", epochs, half)
	}
}
