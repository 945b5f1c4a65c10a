package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/node/api"
)

// strict reports whether times are held to the bars: on a machine that does nothing else.
func strict() bool { return os.Getenv("MESH_TRIALS") != "" }

// within waits for something that processes bring about.
func within(t *testing.T, limit time.Duration, what string, cond func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !cond() {
		if time.Since(start) > limit {
			t.Fatalf("not within %s: %s", limit, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(start)
}

// patience is for a machine that does much else.
const patience = 90 * time.Second

// devProcess is a `mesh dev` that runs.
type devProcess struct {
	t     *testing.T
	cmd   *exec.Cmd
	ready api.Ready
	ended chan error
}

func startDev(t *testing.T, home string, args ...string) *devProcess {
	t.Helper()
	args = append([]string{"dev", "--json", "--home", home, "--api", "127.0.0.1:0"}, args...)
	d := &devProcess{t: t, cmd: exec.Command(os.Args[0], args...), ended: make(chan error, 1)}
	notes := new(strings.Builder)
	d.cmd.Stderr = notes
	stdout, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(stdout)
	line, err := lines.ReadBytes('\n')
	go func() {
		_, _ = io.Copy(io.Discard, lines)
		d.ended <- d.cmd.Wait()
	}()
	t.Cleanup(func() {
		d.stop()
		if t.Failed() {
			(&network{t: t, dir: home}).printLogs()
		}
	})
	if err == nil {
		err = json.Unmarshal(line, &d.ready)
	}
	if err != nil {
		d.stop()
		t.Fatalf("mesh dev is not ready: %v: %s", err, notes)
	}
	return d
}

// stop ends the network as Ctrl-C does and returns how long that took.
func (d *devProcess) stop() time.Duration {
	if d.cmd == nil {
		return 0
	}
	start := time.Now()
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-d.ended:
		if err != nil {
			d.t.Errorf("mesh dev ended: %v", err)
		}
	case <-time.After(patience):
		_ = d.cmd.Process.Kill()
		d.t.Errorf("mesh dev does not end")
	}
	d.cmd = nil
	return time.Since(start)
}

// clients returns those of the light node and of the hosts.
func (d *devProcess) clients() (light *api.Client, hosts []*api.Client) {
	for _, h := range d.ready.Hosts {
		hosts = append(hosts, clientOf(h.API, h.Home))
	}
	return clientOf(d.ready.API, filepath.Join(d.ready.Home, devLight)), hosts
}

func clientOf(base, home string) *api.Client {
	token, _ := os.ReadFile(filepath.Join(home, "api.token"))
	return &api.Client{Base: base, Token: strings.TrimSpace(string(token))}
}

// heightOf returns where a node is; 0 while it cannot say.
func heightOf(c *api.Client) mesh.Height {
	s, err := c.LedgerStatus(context.Background())
	if err != nil {
		return 0
	}
	return s.Height
}

// reach waits until all nodes have a block.
func reach(t *testing.T, h mesh.Height, nodes ...*api.Client) {
	t.Helper()
	for _, c := range nodes {
		within(t, patience, fmt.Sprintf("%s at height %d", c.Base, h), func() bool { return heightOf(c) >= h })
	}
}

// agreeNow looks at the nodes until it has seen all of them at one height, and compares
// the states of every height that it saw.
func agreeNow(t *testing.T, nodes ...*api.Client) {
	t.Helper()
	seen := make(map[mesh.Height]map[string]string)
	within(t, patience, "all nodes seen at one height", func() bool {
		var mu sync.Mutex
		var wg sync.WaitGroup
		for _, c := range nodes {
			wg.Go(func() {
				s, err := c.LedgerStatus(t.Context())
				if err != nil || s.Height == 0 || s.AppHash == "" {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if seen[s.Height] == nil {
					seen[s.Height] = make(map[string]string)
				}
				seen[s.Height][c.Base] = s.AppHash
			})
		}
		wg.Wait()
		for _, at := range seen {
			if len(at) == len(nodes) {
				return true
			}
		}
		return false
	})
	for h, at := range seen {
		want := ""
		for base, hash := range at {
			if want == "" {
				want = hash
			}
			if hash != want {
				t.Errorf("height %d: the state of %s is %s, others have %s", h, base, hash, want)
			}
		}
	}
}

// closedEpoch waits until an epoch is closed on all nodes, and checks that they show the same.
func closedEpoch(t *testing.T, e mesh.Epoch, nodes ...*api.Client) api.Epoch {
	t.Helper()
	var first api.Epoch
	for i, c := range nodes {
		var doc api.Epoch
		within(t, patience, fmt.Sprintf("epoch %d closed at %s", e, c.Base), func() bool {
			var err error
			doc, err = c.Epoch(t.Context(), uint64(e))
			return err == nil && doc.Closed
		})
		if i == 0 {
			first = doc
		} else if !reflect.DeepEqual(doc, first) {
			t.Errorf("epoch %d: %s shows %+v, %s shows %+v", e, c.Base, doc, nodes[0].Base, first)
		}
	}
	return first
}

// balances reads an account again and again, and keeps it by height.
type balances struct {
	mu   sync.Mutex
	at   map[mesh.Height]mesh.Amount // guarded by mu
	stop context.CancelFunc
	done sync.WaitGroup
}

func watchBalance(t *testing.T, c *api.Client, a mesh.Address) *balances {
	ctx, cancel := context.WithCancel(t.Context())
	b := &balances{at: make(map[mesh.Height]mesh.Amount), stop: cancel}
	b.done.Go(func() {
		for ctx.Err() == nil {
			if w, err := c.Wallet(ctx, a); err == nil {
				b.mu.Lock()
				b.at[w.Height] = w.Balance
				b.mu.Unlock()
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	t.Cleanup(func() { cancel(); b.done.Wait() })
	return b
}

// rise returns by how much the account rose in a block, as far as it was seen before
// and after with nothing else between.
func (b *balances) rise(h, low, high mesh.Height) (mesh.Amount, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for before := h - 1; before >= low; before-- {
		for after := h; after <= high; after++ {
			x, ok := b.at[before]
			y, ok2 := b.at[after]
			if ok && ok2 && y >= x {
				return y - x, true
			}
		}
	}
	return 0, false
}

// TestDevLedger is the ledger of `mesh dev`: blocks and epochs come, all nodes show the
// same, answers are paid from the client's escrow to the hosts that gave them, and a
// network that was stopped goes on where it was.
func TestDevLedger(t *testing.T) {
	home := filepath.Join(t.TempDir(), "net")
	args := []string{"--hosts", "4", "--block", "250ms", "--epoch", "12"}
	if strict() {
		args = []string{"--hosts", "4"} // a block a second, an epoch a minute
	}
	d := startDev(t, home, args...)
	light, hosts := d.clients()
	all := append([]*api.Client{light}, hosts...)
	first := within(t, patience, "the first block", func() bool { return heightOf(hosts[0]) > 0 })
	t.Logf("first block %s after ready", first.Round(time.Millisecond))
	if strict() && first > 2*time.Second {
		t.Errorf("the first block came after %s", first)
	}
	var escrow api.Escrow
	within(t, patience, "the client's escrow", func() bool {
		w, err := light.Wallet(t.Context(), mesh.Address{})
		if err == nil && len(w.Escrows) == 1 {
			escrow = w.Escrows[0]
		}
		return err == nil && escrow.Amount > 0 && w.Proven
	})
	agreeNow(t, all...)

	code, _, stderr := meshCommand(t, "chat", "What is Mesh?", "--max-tokens", "8", "--price-cap", "999", "--api", d.ready.API)
	if code != exitFailed || !strings.Contains(stderr, "no host at or below the price cap") || !strings.Contains(stderr, "1000") {
		t.Errorf("below what hosts ask: exit code %d, %s", code, stderr)
	}

	epoch, w := checkPaid(t, d, escrow)
	checkWords(t, d)

	// The whole network stops, and goes on.
	before := closedEpoch(t, epoch, hosts...)
	at := heightOf(hosts[0])
	took := d.stop()
	t.Logf("stopped in %s at height %d", took.Round(time.Millisecond), at)
	if strict() && took > 5*time.Second {
		t.Errorf("the network took %s to stop", took)
	}
	d = startDev(t, home, args...)
	light, hosts = d.clients()
	all = append([]*api.Client{light}, hosts...)
	reach(t, at+2, all...)
	if after := closedEpoch(t, epoch, all...); !reflect.DeepEqual(before, after) {
		t.Errorf("epoch %d was %+v before the stop, and is %+v", epoch, before, after)
	}
	again, err := light.Wallet(t.Context(), mesh.Address{})
	if err != nil || again.Balance != w.Balance || len(again.Escrows) != 1 || again.Escrows[0].Amount != w.Escrows[0].Amount {
		t.Errorf("the client had %+v before the stop and has %+v, %v", w, again, err)
	}
	if code, _, stderr := meshCommand(t, "chat", "hello", "--max-tokens", "4", "--api", d.ready.API); code != exitDone {
		t.Errorf("chat after the start: exit code %d: %s", code, stderr)
	}
	checkEscrowCommands(t, d)
	agreeNow(t, all...)
}

// checkPaid asks within one epoch and follows the money from the escrow to the hosts. It
// returns the epoch that it began in, and what the client has then.
func checkPaid(t *testing.T, d *devProcess, escrow api.Escrow) (mesh.Epoch, api.Wallet) {
	t.Helper()
	light, hosts := d.clients()
	// Within one epoch, so that one settlement has it all.
	var s api.LedgerStatus
	within(t, patience, "the first half of an epoch", func() bool {
		var err error
		s, err = light.LedgerStatus(t.Context())
		return err == nil && s.Epoch >= 1 && s.Height-s.EpochFirst < (s.EpochNext-s.EpochFirst)/3
	})
	watch := make(map[mesh.Address]*balances)
	for i := range d.ready.Hosts {
		watch[d.ready.Hosts[i].Peer] = watchBalance(t, hosts[i], d.ready.Hosts[i].Peer)
	}
	answers, price := askThrice(t, d)
	now, err := light.LedgerStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	earned := make(map[mesh.Address]mesh.Amount)
	var paid mesh.Amount
	var receipts uint64
	// The client may hear of the turn of an epoch late, and a slow machine may have turned one more.
	for epoch := s.Epoch - 1; epoch <= now.Epoch; epoch++ {
		e := closedEpoch(t, epoch, append(hosts, light)...)
		paid, receipts = paid+e.Paid, receipts+e.Receipts
		for _, r := range e.Rewards {
			if r.Paid > 0 {
				earned[r.Host] += r.Paid
				checkRise(t, e, r, watch[r.Host], hosts[0])
			}
		}
	}
	if !maps.Equal(earned, answers) {
		t.Errorf("hosts were paid %v for answers of %v", earned, answers)
	}
	if receipts != 3 || paid != price {
		t.Errorf("settled: %d receipts and %s, want 3 and %s", receipts, paid, price)
	}
	for _, w := range watch {
		w.stop()
	}
	w, err := light.Wallet(t.Context(), mesh.Address{})
	if err != nil || len(w.Escrows) != 1 || escrow.Amount-w.Escrows[0].Amount != price {
		t.Errorf("the escrow had %s and has %+v after answers of %s, %v", escrow.Amount, w.Escrows, price, err)
	}
	return s.Epoch, w
}

// askThrice returns what the hosts ask for three answers, and the sum.
func askThrice(t *testing.T, d *devProcess) (answers map[mesh.Address]mesh.Amount, price mesh.Amount) {
	t.Helper()
	light, _ := d.clients()
	answers = make(map[mesh.Address]mesh.Amount)
	for i := range 3 {
		code, stdout, stderr := meshCommand(t, "chat", "What is Mesh?", "--max-tokens", "8", "--price-cap", "1000", "--json", "--api", d.ready.API)
		var a chatAnswer
		if err := json.Unmarshal([]byte(stdout), &a); code != exitDone || err != nil {
			t.Fatalf("answer %d: exit code %d, %v: %s", i, code, err, stderr)
		}
		proof, err := light.Receipt(t.Context(), a.Receipt)
		if err != nil || len(proof) != 1 || proof[0].Price == 0 {
			t.Fatalf("receipt of answer %d: %+v, %v", i, proof, err)
		}
		price += proof[0].Price
		answers[a.Host] += proof[0].Price
	}
	return answers, price
}

// checkRise looks for what a host was paid of an epoch in its owner's account.
func checkRise(t *testing.T, e api.Epoch, r api.EpochReward, watch *balances, host *api.Client) {
	t.Helper()
	// It is closed some blocks after its end; before that its fees are paid, and
	// before the next turn nothing else reaches the account.
	next := e.Last + 1
	length := e.Last + 1 - e.First
	closed := next + max(8, length/6)
	within(t, patience, "blocks after the close", func() bool { return heightOf(host) > closed+2 })
	if rose, seen := watch.rise(closed, closed-1, next+length-1); !seen {
		t.Logf("host %s: the machine was too slow to see the account before and after block %d", r.Host.Short(), closed)
	} else if rose < r.Paid {
		t.Errorf("host %s was paid %s, and its owner's account rose by %s", r.Host.Short(), r.Paid, rose)
	} else {
		t.Logf("host %s was paid %s, its owner's account rose by %s in block %d", r.Host.Short(), r.Paid, rose, closed)
	}
}

// checkEscrowCommands is the README's example, and an ID in short.
func checkEscrowCommands(t *testing.T, d *devProcess) {
	t.Helper()
	code, stdout, stderr := meshCommand(t, "wallet", "escrow", "10", "--json", "--home", d.ready.Home)
	var opened api.Submitted
	if err := json.Unmarshal([]byte(stdout), &opened); code != exitDone || err != nil || opened.Escrow.IsZero() {
		t.Fatalf("open an escrow: exit code %d, %v: %s%s", code, err, stdout, stderr)
	}
	if code, stdout, stderr := meshCommand(t, "wallet", "escrow", "top", opened.Escrow.String()[:8], "1", "--home", d.ready.Home); code != exitDone || !strings.Contains(stdout, "top_escrow") {
		t.Errorf("top it: exit code %d: %s%s", code, stdout, stderr)
	}
}

// checkWords looks at what the commands say of the ledger.
func checkWords(t *testing.T, d *devProcess) {
	t.Helper()
	host := d.ready.Hosts[0]
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"status", "--home", host.Home}, []string{"ledger", "height", "epoch", "last block", "validates with 25.0 %"}},
		{[]string{"status", "--home", host.Home, "--json"}, []string{`"ledger": {`, `"validator": true`, `"power": 0.25`, `"catching_up": false`}},
		{[]string{"status", "--home", d.ready.Home}, []string{"verified by headers and proofs"}},
		{[]string{"doctor", "--home", host.Home}, []string{"ledger", "4 validators", "this host is registered"}},
		{[]string{"host", "show", "--home", host.Home}, []string{"1000 GNK", "validates", "(this node)"}},
		{[]string{"host", "show", host.Peer.Short(), "--home", host.Home}, []string{host.Peer.String(), "blocks of the window"}},
		{[]string{"host", "show", host.Peer.Short(), "--home", d.ready.Home}, []string{host.Peer.String(), "not known to a light node"}},
		{[]string{"epoch", "ls", "--home", host.Home}, []string{"closed", "runs"}},
		{[]string{"wallet", "show", "--home", d.ready.Home}, []string{"proven by a verified header", "open"}},
		{[]string{"gov", "rules", "--home", host.Home}, []string{"epoch_blocks", "approved"}},
	} {
		code, stdout, stderr := meshCommand(t, c.args...)
		for _, want := range c.want {
			if code != exitDone || !strings.Contains(stdout, want) {
				t.Errorf("mesh %s: exit code %d, want %q in\n%s%s", strings.Join(c.args, " "), code, want, stdout, stderr)
			}
		}
	}
	code, _, stderr := meshCommand(t, "up", "--home", host.Home, "--network", filepath.Join(d.ready.Home, "genesis.json"))
	if code != exitFailed || !strings.Contains(stderr, "in use by another mesh process") {
		t.Errorf("a second process on one home: exit code %d: %s", code, stderr)
	}
	for name, least := range map[string]float64{"mesh_ledger_height": 1, "mesh_ledger_validator": 1, "mesh_ledger_peers": 3} {
		if got := metric(t, host.API, name); got < least {
			t.Errorf("metric %s is %v", name, got)
		}
	}
	if got := metric(t, host.API, "mesh_ledger_unfit"); got != 0 {
		t.Errorf("metric mesh_ledger_unfit is %v", got)
	}
}

// metric reads a figure of a node; -1 where it has none.
func metric(t *testing.T, base, name string) float64 {
	t.Helper()
	resp, err := (&api.Client{Base: base}).Do(t.Context(), "GET", "/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			f, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
	}
	return -1
}
