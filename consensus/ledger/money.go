package ledger

import (
	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

func accountKey(a mesh.Address) []byte { return key(tableAccount, a[:]) }

func (o *overlay) account(a mesh.Address) *ledgerpb.Account {
	account, _ := load[ledgerpb.Account](o, accountKey(a))
	return account
}

// credit pays into an account. All money fits into 64 bits, so an overflow is a
// damaged state.
func (o *overlay) credit(a mesh.Address, amount uint64) {
	if amount == 0 {
		return
	}
	account := o.account(a)
	account.Balance = o.plus(account.GetBalance(), amount)
	o.save(accountKey(a), account)
}

// debit takes from an account, or refuses.
func (o *overlay) debit(a mesh.Address, amount uint64) error {
	account := o.account(a)
	if account.GetBalance() < amount {
		return refuse("%s has %s, %s are needed", a.Short(), mesh.Amount(account.GetBalance()), mesh.Amount(amount))
	}
	account.Balance -= amount
	o.save(accountKey(a), account)
	return nil
}

// totals changes the sums of what is not in accounts.
func (o *overlay) totals(change func(t *ledgerpb.Totals)) {
	k := miscKey(miscTotals)
	t, _ := load[ledgerpb.Totals](o, k)
	change(t)
	o.save(k, t)
}

// plus and minus are arithmetic on money that must hold in a sound state.
func (o *overlay) plus(a, b uint64) uint64 {
	if a+b < a {
		o.damaged("a sum of money overflows")
	}
	return a + b
}

func (o *overlay) minus(a, b uint64) uint64 {
	if b > a {
		o.damaged("a sum of money is below zero")
		return 0
	}
	return a - b
}

// damaged notes that the state contradicts itself.
func (o *overlay) damaged(what string) {
	if *o.err == nil {
		*o.err = &damage{what}
	}
}

// damage is a state that contradicts itself: a fault of this software or of the disk,
// never of a transaction.
type damage struct{ what string }

func (d *damage) Error() string { return "the state is damaged: " + d.what }

const maxMemo = 128

func (c *call) transfer(t *ledgerpb.Transfer) error {
	to, err := addressFrom("recipient", t.GetTo())
	switch {
	case err != nil:
		return err
	case t.GetAmount() == 0:
		return refuse("nothing to send")
	case len(t.GetMemo()) > maxMemo:
		return refuse("memo of %d bytes, at most %d", len(t.GetMemo()), maxMemo)
	}
	if err := c.debit(c.sender, t.GetAmount()); err != nil {
		return err
	}
	c.credit(to, t.GetAmount())
	return nil
}
