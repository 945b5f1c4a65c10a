package host

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// lanes is a till that knows what escrows have for it.
type lanes struct {
	Till
	has map[mesh.Hash]mesh.Amount
	err error // of all others
}

func (l *lanes) Pays(_ mesh.Address, escrow mesh.Hash, epoch mesh.Epoch, least mesh.Amount) error {
	if l.has[escrow] >= least && epoch == 7 {
		return nil
	}
	return l.err
}

// TestOfferOfEscrow: who names an escrow that has nothing for this host gets no offer; all
// others do, as far as one can tell.
func TestOfferOfEscrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rich, poor := mesh.HashOf([]byte("rich")), mesh.HashOf([]byte("poor"))
		unpaid := &inference.Refusal{Code: inference.CodeUnpaid, Message: "nothing for this host"}
		till := &lanes{has: map[mesh.Hash]mesh.Amount{rich: 5, poor: 4}, err: unpaid}
		b := newBench(t, &engine{}, Config{Till: till})
		defer b.close()
		for _, tt := range []struct {
			name   string
			payer  byte
			escrow []byte
			epoch  uint64
			err    error
			unpaid bool
		}{
			{"a token of each", 2, rich[:], 7, unpaid, false},
			{"less", 2, poor[:], 7, unpaid, true},
			{"another epoch", 2, rich[:], 8, unpaid, true},
			{"none named", 2, nil, 7, unpaid, false},
			{"not an escrow", 2, []byte("x"), 7, unpaid, false},
			{"oneself", 1, poor[:], 7, unpaid, false},
			{"it cannot be told yet", 2, poor[:], 7, &inference.Refusal{Code: inference.CodeBusy}, false},
			{"it cannot be told", 2, poor[:], 7, errors.New("no ledger"), false},
		} {
			till.err = tt.err
			o := b.host.offerTo(addressOf(tt.payer), &inferencepb.OfferAsk{Model: modelID[:], MaxTokens: 10, Choices: 1, Escrow: tt.escrow, Epoch: tt.epoch})
			if o.GetUnpaid() != tt.unpaid || o.GetAccept() == tt.unpaid || (o.GetReason() == unpaid.Message) != tt.unpaid {
				t.Errorf("%s: %v", tt.name, o)
			}
		}
		till.err = unpaid
		b.host.Remove(modelID)
		if err := b.host.Add(&engine{}, Prices{}); err != nil {
			t.Fatal(err)
		}
		if o := b.host.offerTo(addressOf(2), &inferencepb.OfferAsk{Model: modelID[:], Escrow: poor[:], Epoch: 8}); !o.GetAccept() {
			t.Errorf("for nothing: %v", o)
		}
	})
}

// slowTill reads its ledger slowly.
type slowTill struct {
	Till
	reads atomic.Int32
}

func (s *slowTill) Pays(mesh.Address, mesh.Hash, mesh.Epoch, mesh.Amount) error {
	s.reads.Add(1)
	time.Sleep(time.Second)
	return nil
}

// dials counts streams, and opens none.
type dials struct{ n atomic.Int32 }

func (d *dials) Dial(context.Context, mesh.Address, string) (net.Conn, error) {
	d.n.Add(1)
	return nil, errors.New("nobody is there")
}

// TestTasksAtOnce: announced tasks hold up nobody, and the ledger is read for a few at once.
func TestTasksAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		till, out := new(slowTill), new(dials)
		b := newBench(t, &engine{slots: 1}, Config{Till: till, Dialer: out})
		defer b.close()
		escrow := mesh.HashOf([]byte("escrow"))
		task := &inference.Task{Payer: addressOf(2), Pb: &inferencepb.Task{
			Model: modelID[:], Escrow: escrow[:], DeadlineMs: time.Now().Add(time.Minute).UnixMilli(),
		}}
		start := time.Now()
		for range maxTasks + 3 {
			b.host.OnTask(task)
		}
		if d := time.Since(start); d > 0 {
			t.Errorf("tasks took %s", d)
		}
		synctest.Wait()
		if n := till.reads.Load(); n != maxTasks {
			t.Errorf("the ledger is read for %d tasks at once, want %d", n, maxTasks)
		}
		time.Sleep(2 * time.Second)
		b.host.OnTask(task)
		time.Sleep(2 * time.Second)
		if n := out.n.Load(); n != maxTasks+1 {
			t.Errorf("%d tasks were answered, want %d", n, maxTasks+1)
		}
	})
}
