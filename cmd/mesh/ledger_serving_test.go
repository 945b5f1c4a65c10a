package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/node/api"
)

// TestServingBesideTransfers prints what 200 transfers a second cost those who ask hosts
// that are validators: answers are timed in turns without and with them.
func TestServingBesideTransfers(t *testing.T) {
	if os.Getenv("MESH_LONG") == "" {
		t.Skip("two minutes of six processes, to be timed; MESH_LONG=1 runs it")
	}
	const (
		perSecond = 200
		tokens    = 40
		turn      = 8 * time.Second
	)
	n := newLedger(t, 4, time.Second, 60)
	n.light = n.start("light", "--light")
	n.waitKnown(n.light, len(n.hosts))
	reach(t, 2, n.living()...)
	s := n.openSenders(t, 2*perSecond)

	type times struct{ first, whole []time.Duration }
	ask := func(until time.Time) (out times) {
		for i := 0; time.Now().Before(until); i++ {
			start := time.Now()
			var first time.Duration
			_, err := listen(t.Context(), n, "What is Mesh?", tokens, i, func(h *heard) {
				if first == 0 && len(h.tokens) > 0 {
					first = time.Since(start)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			out.first, out.whole = append(out.first, first), append(out.whole, time.Since(start))
			time.Sleep(20 * time.Millisecond)
		}
		return out
	}
	ask(time.Now().Add(2 * time.Second))
	var idle, busy times
	var sent int64
	var took, quietWork, loudWork time.Duration
	work := func() (sum time.Duration) { // of the validators
		for _, h := range n.hosts {
			sum += processorTime(t, h.PID)
		}
		return sum
	}
	for range trials(5) {
		was := work()
		quiet := ask(time.Now().Add(turn))
		quietWork += work() - was
		stop := s.send(t, perSecond)
		ask(time.Now().Add(2 * time.Second)) // until blocks are full
		before, start, was := s.done(), time.Now(), work()
		loud := ask(time.Now().Add(turn))
		loudWork += work() - was
		sent, took = sent+s.done()-before, took+time.Since(start)
		stop()
		idle.first, idle.whole = append(idle.first, quiet.first...), append(idle.whole, quiet.whole...)
		busy.first, busy.whole = append(busy.first, loud.first...), append(busy.whole, loud.whole...)
	}
	for _, c := range []struct {
		name       string
		idle, busy []time.Duration
	}{{"first token", idle.first, busy.first}, {"whole answer", idle.whole, busy.whole}} {
		slices.Sort(c.idle)
		slices.Sort(c.busy)
		for _, q := range []int{50, 95} {
			a, b := c.idle[len(c.idle)*q/100], c.busy[len(c.busy)*q/100]
			t.Logf("%s, p%d: idle %s, beside transfers %s: %.2f", c.name, q, a.Round(10*time.Microsecond), b.Round(10*time.Microsecond), float64(b)/float64(a))
		}
	}
	t.Logf("%d and %d answers of %d tokens; %.0f transfers a second", len(idle.whole), len(busy.whole), tokens, float64(sent)/took.Seconds())
	each := took.Seconds() * float64(len(n.hosts))
	t.Logf("a validator, answers included: %.1f %% of a processor idle, %.1f %% beside transfers", 100*quietWork.Seconds()/each, 100*loudWork.Seconds()/each)
}

// processorTime returns what a process has used so far.
func processorTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Skip("it needs /proc: ", err)
	}
	_, rest, _ := strings.Cut(string(b), ") ") // behind the name
	fields := strings.Fields(rest)
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond // ticks of Linux
}

// senders are accounts with coins, each of which waits until its last transfer is in a block.
type senders struct {
	network mesh.NetworkID
	clients []*api.Client
	idle    chan *sender
	mu      sync.Mutex
	count   int64 // transfers in blocks; guarded by mu
}

type sender struct {
	key   ed25519.PrivateKey
	nonce uint64
}

// openSenders funds many accounts: in each round, every one that has coins pays another.
func (n *network) openSenders(t *testing.T, many int) *senders {
	t.Helper()
	clients := n.living()
	status, err := clients[0].Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := &senders{network: status.Network, clients: clients, idle: make(chan *sender, many)}
	var all []*sender
	fund := func(amount mesh.Amount, pay func(i int, to mesh.Address, amount mesh.Amount) error, payers int) {
		var wg sync.WaitGroup
		for i := range min(payers, many-len(all)) {
			_, key, err := ed25519.GenerateKey(nil)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, &sender{key: key})
			wg.Go(func() {
				if err := pay(i, mesh.AddressOf(key.Public().(ed25519.PublicKey)), amount); err != nil {
					t.Errorf("fund an account: %v", err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			t.FailNow()
		}
	}
	amount := 1000 * mesh.GNK
	fund(amount, func(i int, to mesh.Address, amount mesh.Amount) error {
		_, err := submitTx(t.Context(), clients[i], signer{}, transfer(to, amount))
		return err
	}, len(clients))
	for len(all) < many {
		amount /= 3
		fund(amount, func(i int, to mesh.Address, amount mesh.Amount) error {
			return s.pay(t.Context(), all[i], i, to, amount)
		}, len(all))
	}
	for _, one := range all {
		s.idle <- one
	}
	return s
}

// pay has one transfer put into a block.
func (s *senders) pay(ctx context.Context, from *sender, i int, to mesh.Address, amount mesh.Amount) error {
	tx := transfer(to, amount)
	tx.Nonce = from.nonce
	fee, err := ledger.FeeOf(&ledgerpb.Params{FeePerByte: 10}, tx)
	if err != nil {
		return err
	}
	tx.Fee = uint64(fee)
	raw, err := ledger.SignTx(s.network, from.key, tx)
	if err != nil {
		return err
	}
	if _, err := s.clients[i%len(s.clients)].Submit(ctx, api.Submit{Signed: raw}); err != nil {
		return err
	}
	from.nonce++
	return nil
}

// send lets idle accounts send so many transfers a second, until it is stopped.
func (s *senders) send(t *testing.T, perSecond int) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for i := 0; ; i++ {
			var from *sender
			select {
			case <-tick.C:
				from = <-s.idle
			case <-ctx.Done():
				return
			}
			wg.Go(func() {
				defer func() { s.idle <- from }()
				if err := s.pay(t.Context(), from, i, mesh.Address{1, 2, 3}, sent); err != nil {
					t.Errorf("a transfer: %v", err)
					return
				}
				s.mu.Lock()
				s.count++
				s.mu.Unlock()
			})
		}
	})
	return func() { cancel(); wg.Wait() }
}

// done returns how many transfers are in blocks.
func (s *senders) done() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}
