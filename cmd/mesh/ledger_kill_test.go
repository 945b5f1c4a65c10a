package main

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/node/api"
)

// TestLedgerDisturbed kills, stops and damages validators of a ledger that works: the
// others go on as far as they may, and who comes back agrees with them.
func TestLedgerDisturbed(t *testing.T) {
	block := 250 * time.Millisecond
	if strict() {
		block = time.Second
	}
	n := newLedger(t, 4, block, 30)
	reach(t, 2, n.living()...)
	t.Run("killed", n.testKilled)
	t.Run("halted", n.testHalted)
	t.Run("damaged", n.testDamaged)
	t.Run("disk full", n.testDiskFull)
}

// load is senders of transfers that go on until they are stopped.
type load struct {
	stop        func()
	to          mesh.Address
	tried, done atomic.Int64
}

const sent = 1000 // ngonka of one transfer

// startLoad lets accounts that the hosts fund send money to one that nobody has.
func (n *network) startLoad(t *testing.T) *load {
	t.Helper()
	l := &load{to: mesh.Address{1, 2, 3}}
	clients := n.living()
	status, err := clients[0].Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	keys := make([]ed25519.PrivateKey, 2*len(clients))
	for i, c := range clients {
		for k := range 2 {
			_, key, err := ed25519.GenerateKey(nil)
			if err != nil {
				t.Fatal(err)
			}
			keys[2*i+k] = key
			a := mesh.AddressOf(key.Public().(ed25519.PublicKey))
			wg.Go(func() {
				if _, err := submitTx(t.Context(), c, signer{}, transfer(a, 1000*mesh.GNK)); err != nil {
					t.Errorf("fund a sender: %v", err)
				}
			})
		}
	}
	wg.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	for i, key := range keys {
		wg.Go(func() { l.send(ctx, status.Network, key, clients, i) })
	}
	l.stop = func() { cancel(); wg.Wait() }
	t.Cleanup(l.stop)
	return l
}

func transfer(to mesh.Address, amount mesh.Amount) *ledgerpb.Tx {
	return &ledgerpb.Tx{Action: &ledgerpb.Tx_Transfer{Transfer: &ledgerpb.Transfer{To: to[:], Amount: uint64(amount)}}}
}

// send puts one transfer after the other on the chain, through whoever takes it.
func (l *load) send(ctx context.Context, network mesh.NetworkID, key ed25519.PrivateKey, clients []*api.Client, i int) {
	self := mesh.AddressOf(key.Public().(ed25519.PublicKey))
	for ctx.Err() == nil {
		c := clients[i%len(clients)]
		if !l.sendOne(ctx, network, key, c, self) {
			i++
			time.Sleep(50 * time.Millisecond)
		}
	}
}

func (l *load) sendOne(ctx context.Context, network mesh.NetworkID, key ed25519.PrivateKey, c *api.Client, self mesh.Address) bool {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	w, err := c.Wallet(ctx, self)
	if err != nil {
		return false
	}
	tx := transfer(l.to, sent)
	fee, err := ledger.FeeOf(&ledgerpb.Params{FeePerByte: 10}, tx)
	if err != nil {
		return false
	}
	tx.Nonce, tx.Fee = w.Nonce, uint64(fee)
	raw, err := ledger.SignTx(network, key, tx)
	if err != nil {
		return false
	}
	l.tried.Add(1)
	if _, err := c.Submit(ctx, api.Submit{Signed: raw}); err != nil {
		return false
	}
	l.done.Add(1)
	return true
}

// check compares what arrived with what was sent: who was told that a transfer is in a
// block was told the truth.
func (l *load) check(t *testing.T, clients ...*api.Client) {
	t.Helper()
	l.stop()
	if l.done.Load() == 0 {
		t.Fatal("no transfer arrived: there was no load")
	}
	for _, c := range clients {
		w, err := c.Wallet(t.Context(), l.to)
		if least, most := mesh.Amount(l.done.Load()*sent), mesh.Amount(l.tried.Load()*sent); err != nil || w.Balance < least || w.Balance > most {
			t.Errorf("%s: %s arrived, %v; %s were confirmed and %s sent", c.Base, w.Balance, err, least, most)
		}
	}
}

// blockTimes watches the highest of some nodes for new blocks.
func blockTimes(t *testing.T, nodes func() []*api.Client) (intervals func() []time.Duration) {
	ctx, cancel := context.WithCancel(t.Context())
	var all []time.Duration
	var wg sync.WaitGroup
	wg.Go(func() {
		var at mesh.Height
		last := time.Now()
		for ; ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
			for _, c := range nodes() {
				h := heightOf(c)
				if at > 0 && h > at {
					each := time.Since(last) / time.Duration(h-at)
					for range h - at {
						all = append(all, each)
					}
				}
				if h > at {
					at, last = h, time.Now()
				}
			}
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return func() []time.Duration {
		cancel()
		wg.Wait()
		slices.Sort(all)
		return all
	}
}

// votes waits until a host's votes are in the blocks that another node sees.
func votes(t *testing.T, host mesh.Address, seenBy *api.Client) {
	t.Helper()
	missed := func() (uint64, mesh.Height) {
		hosts, err := seenBy.Hosts(t.Context())
		if err != nil {
			return 0, 0
		}
		for _, h := range hosts {
			if h.Host == host && h.Power > 0 {
				return h.Missed, heightOf(seenBy)
			}
		}
		return 0, 0
	}
	was, at := missed()
	within(t, patience, fmt.Sprintf("%s votes", host.Short()), func() bool {
		now, h := missed()
		if now > was || at == 0 {
			was, at = now, h
		}
		return at > 0 && h >= at+2
	})
}

// testKilled kills a host at a random moment, as kill -9 does, and starts it again.
func (n *network) testKilled(t *testing.T) {
	n.t = t
	l := n.startLoad(t)
	var mu sync.Mutex
	victim := -1
	intervals := blockTimes(t, func() (out []*api.Client) {
		mu.Lock()
		defer mu.Unlock()
		for i, h := range n.hosts {
			if i != victim {
				out = append(out, n.client(h))
			}
		}
		return out
	})
	var back []time.Duration
	for range trials(2) {
		i := rand.IntN(len(n.hosts))
		time.Sleep(rand.N(2 * time.Second))
		mu.Lock()
		victim = i
		mu.Unlock()
		dead := n.hosts[i]
		n.kill(dead)
		others := slices.Delete(n.living(), i, i+1)
		at := heightOf(others[0])
		reach(t, at+3, others...)
		start := time.Now()
		c := n.startValidator(i)
		votes(t, c.Ready.Peer, others[0])
		back = append(back, time.Since(start))
		mu.Lock()
		n.hosts[i], victim = c, -1
		mu.Unlock()
		reach(t, heightOf(others[0]), n.living()...)
		agreeNow(t, n.living()...)
	}
	blocks := intervals()
	slices.Sort(back)
	p95 := blocks[len(blocks)*95/100]
	t.Logf("%d kills, %d blocks: p50 %s, p95 %s, max %s; back and voting after p50 %s, max %s; %d transfers confirmed", len(back), len(blocks),
		blocks[len(blocks)/2].Round(time.Millisecond), p95.Round(time.Millisecond), blocks[len(blocks)-1].Round(time.Millisecond),
		back[len(back)/2].Round(time.Millisecond), back[len(back)-1].Round(time.Millisecond), l.done.Load())
	if strict() && (p95 > 3*time.Second || back[len(back)-1] > 10*time.Second) {
		t.Error("slower than the bars")
	}
	l.stop()
	reach(t, heightOf(n.living()[0])+1, n.living()...)
	l.check(t, n.living()...)
}

// testHalted stops two of four: nothing is decided, and when they go on, so does the chain.
func (n *network) testHalted(t *testing.T) {
	n.t = t
	for _, h := range n.hosts[:2] {
		if err := syscall.Kill(h.PID, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	wake := sync.OnceFunc(func() {
		for _, h := range n.hosts[:2] {
			_ = syscall.Kill(h.PID, syscall.SIGCONT)
		}
	})
	t.Cleanup(wake)
	awake := n.living()[2:]
	time.Sleep(time.Second) // for what was decided already
	at := max(heightOf(awake[0]), heightOf(awake[1]))
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		for _, c := range awake {
			if h := heightOf(c); h > at {
				t.Fatalf("two of four decided block %d", h)
			}
		}
	}
	wake()
	took := within(t, patience, "blocks again", func() bool { return heightOf(awake[0]) > at })
	t.Logf("blocks %s after they went on", took.Round(time.Millisecond))
	if strict() && took > 10*time.Second {
		t.Errorf("blocks came %s after they went on", took)
	}
	reach(t, at+3, n.living()...)
	agreeNow(t, n.living()...)
}

// testDamaged damages what a stopped host has on disk: it says so and does not vote, and
// its remedy works.
func (n *network) testDamaged(t *testing.T) {
	n.t = t
	const i = 3
	n.hosts[i].stop()
	others := n.living()[:i]
	folder := filepath.Join(n.hosts[i].Ready.Home, "ledger")
	whole := filepath.Join(t.TempDir(), "ledger")
	if err := os.CopyFS(whole, os.DirFS(folder)); err != nil {
		t.Fatal(err)
	}
	for pattern, mends := range map[string]bool{"db/MANIFEST-*": false, "db/*.log": true, "wal/wal": true} {
		spoil(t, folder, pattern)
		words := n.spoiltStart(t, i, others[0])
		t.Logf("%s: %s", pattern, words)
		// What a log lacks is fetched again.
		if said := strings.Contains(words, "damaged") && strings.Contains(words, "start again"); !said && (words != "" || !mends) {
			t.Errorf("%s spoilt, and the host says %q", pattern, words)
		}
		if err := os.RemoveAll(folder); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(folder, os.DirFS(whole)); err != nil {
			t.Fatal(err)
		}
	}
	// What the error tells to do.
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	n.hosts[i] = n.startValidator(i)
	reach(t, heightOf(others[0]), n.living()...)
	votes(t, n.hosts[i].Ready.Peer, others[0])
	agreeNow(t, n.living()...)
}

// spoiltStart starts a host and returns why it does not follow the ledger; nothing where
// it votes.
func (n *network) spoiltStart(t *testing.T, i int, seenBy *api.Client) (words string) {
	t.Helper()
	c, err := n.tryStart(fmt.Sprintf("host-%d", i), n.hosts[0].Ready.Addrs, "--threads", "1")
	if err != nil {
		return err.Error() // not at all
	}
	defer c.stop()
	within(t, patience, "the host follows the ledger, or says that it has stopped", func() bool {
		s, err := n.client(c).Status(t.Context())
		if err != nil || s.Ledger == nil {
			return false
		}
		words = s.Ledger.Error
		return strings.Contains(words, "has stopped") || words == "" && s.Ledger.Validator && !s.Ledger.CatchingUp
	})
	if words == "" {
		votes(t, c.Ready.Peer, seenBy)
		return ""
	}
	if code, stdout, _ := meshCommand(t, "doctor", "--home", c.Ready.Home); code != exitFailed || !strings.Contains(stdout, "fail  ledger") {
		t.Errorf("doctor: exit code %d: %s", code, stdout)
	}
	return words
}

// spoil overwrites the middle of the files that match.
func spoil(t *testing.T, folder, pattern string) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(folder, pattern))
	if len(files) == 0 {
		t.Fatalf("no file %s in %s", pattern, folder)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for k := len(b) / 4; k < len(b)*3/4; k++ {
			b[k] ^= 0xa5
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
