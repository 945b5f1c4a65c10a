package node

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/model/builtin"
	"github.com/gonka-mesh/mesh/inference/router"
	"github.com/gonka-mesh/mesh/node/api"
	"github.com/gonka-mesh/mesh/p2p"
)

// The hostile tests set a whole node in a process of its own against peers in
// another process that pass the hello and then misbehave, while a light node in the
// test's process goes on asking. MESH_HOSTILE=1 runs the full counts, and then holds
// the latency to twice that beside a bystander that burns as much processor time.
const (
	hostileRole = "MESH_HOSTILE_ROLE" // makes the test binary a victim, a squad or a bystander
	hostileFull = "MESH_HOSTILE"
	// hostileRSS bounds what attackers can make the node take, and hostileHeap what
	// is left of that when they have gone and garbage was collected.
	hostileRSS  = 512 << 20
	hostileHeap = 48 << 20
	// hostileCut is how long an offender may stay.
	hostileCut  = 10 * time.Second
	blobForFoes = 64 << 20 // bytes of the file that the victim has for peers
)

// brief is what a child process is told.
type brief struct {
	Home, Genesis string
	Victim        api.Ready
	Model, Root   mesh.Hash
	Attack        string
	Count         int           // of strikes; 0: as many as the time allows
	Time          time.Duration // at most
	Share         float64       // of one processor, for the bystander
}

// report is what a squad says at its end.
type report struct {
	Strikes    int // those that an identity was cut off amid do not count
	Frames     int // written
	Identities int
	Cut        int           // identities that the victim cut off
	Slowest    time.Duration // from an identity's first offence until it was cut off
	Uncut      time.Duration // the longest that an identity offended and was not cut off
	Held       int           // the most streams that one identity held at a time
	CPU        time.Duration
	Wrong      []string // answers that the victim should not have given
}

// vitals are the state of a victim after a garbage collection.
type vitals struct {
	Heap       uint64
	Goroutines int
}

// TestHostileRole is the entry of the child processes.
func TestHostileRole(t *testing.T) {
	role := os.Getenv(hostileRole)
	if role == "" {
		t.Skip("only for child processes of the hostile tests")
	}
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var b brief
	if err := json.Unmarshal(line, &b); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	switch role {
	case "victim":
		go func() {
			for {
				if _, err := in.ReadBytes('\n'); err != nil {
					cancel()
					return
				}
				tellVitals()
			}
		}()
		if err := runVictim(ctx, b); err != nil {
			t.Fatal(err)
		}
	case "squad":
		go orphaned(in)
		tell(runSquad(ctx, t, b))
	case "bystander":
		go orphaned(in)
		burn(b.Share, b.Time)
		tell(report{CPU: processorTime(os.Getpid())})
	}
}

// orphaned ends the process when the test is gone.
func orphaned(in io.Reader) {
	io.Copy(io.Discard, in)
	os.Exit(3)
}

func tell(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	fmt.Printf("\n@%s\n", b)
}

func tellVitals() {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if os.Getenv("MESH_HOSTILE_STACKS") != "" {
		buf := make([]byte, 8<<20)
		os.Stderr.Write(buf[:runtime.Stack(buf, true)])
	}
	tell(vitals{Heap: m.HeapAlloc, Goroutines: runtime.NumGoroutine()})
}

func runVictim(ctx context.Context, b brief) error {
	cfg := Config{Home: b.Home, Network: b.Genesis, Listen: "127.0.0.1:0", API: "127.0.0.1:0", Threads: 1,
		NoMDNS: true, NoPortMap: true, PricePrompt: 1, PriceOutput: 1, DrainSeconds: 1}
	level := slog.LevelWarn
	if os.Getenv("MESH_HOSTILE_DEBUG") != "" {
		level = slog.LevelDebug
	}
	n, err := New(cfg, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
	if err != nil {
		return err
	}
	path := filepath.Join(b.Home, "file")
	if err := os.WriteFile(path, make([]byte, blobForFoes), 0o600); err != nil {
		return err
	}
	root, err := n.models.blobs.Add(ctx, path, nil)
	if err != nil {
		return err
	}
	if err := n.models.put(entry{Name: "file", Path: path, Model: root, Root: root, Bytes: blobForFoes}); err != nil { // or the start sweeps it away
		return err
	}
	tell(root)
	return n.Run(ctx, func(r api.Ready) { tell(r) })
}

// burn spins for a share of one processor, more than one where share says so.
func burn(share float64, during time.Duration) {
	const period = 10 * time.Millisecond
	end := time.Now().Add(during)
	n := max(1, int(share+0.99))
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for time.Now().Before(end) {
				start := time.Now()
				busy := time.Duration(share / float64(n) * float64(period))
				for time.Since(start) < busy {
				}
				time.Sleep(period - busy)
			}
		})
	}
	wg.Wait()
}

// processorTime is what a process has taken so far, of user and system.
func processorTime(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// residentMemory is the RSS of a process in bytes.
func rssOf(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	pages, _ := strconv.Atoi(strings.Fields(string(b))[1])
	return pages * os.Getpagesize()
}

// child is a process of this test's making.
type child struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan []byte // what it told
	ended chan error
	log   string
}

func startRole(t *testing.T, role string, b brief) *child {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &child{lines: make(chan []byte, 16), ended: make(chan error, 1), log: filepath.Join(t.TempDir(), role+".log")}
	c.cmd = exec.Command(exe, "-test.run=^TestHostileRole$", "-test.timeout=30m")
	c.cmd.Env = append(os.Environ(), hostileRole+"="+role)
	log, err := os.Create(c.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	c.cmd.Stderr = log
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(c.lines)
		s := bufio.NewScanner(out)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			if line, ok := strings.CutPrefix(s.Text(), "@"); ok {
				c.lines <- []byte(line)
			}
		}
		c.ended <- c.cmd.Wait()
	}()
	line, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.in.Write(append(line, '\n')); err != nil {
		t.Fatal(err)
	}
	return c
}

// hear waits for what a child tells.
func (c *child) hear(t *testing.T, v any, limit time.Duration) {
	t.Helper()
	select {
	case line, ok := <-c.lines:
		if !ok {
			t.Fatalf("the process ended without a word: %v\n%s", <-c.ended, tailOf(c.log))
		}
		if err := json.Unmarshal(line, v); err != nil {
			t.Fatal(err)
		}
	case <-time.After(limit):
		t.Fatalf("nothing heard for %s\n%s", limit, tailOf(c.log))
	}
}

func tailOf(path string) string {
	b, _ := os.ReadFile(path)
	return string(b[max(0, len(b)-4000):])
}

// siege is a victim, and an honest light node that asks it.
type siege struct {
	victim *child
	brief  brief
	honest *Core
	base   vitals
	rss    int // before the first attack
}

func layBrief(t *testing.T) brief {
	dir := t.TempDir()
	b := brief{Home: filepath.Join(dir, "victim"), Genesis: filepath.Join(dir, "genesis.json")}
	doc, err := NewDevGenesis(time.Now(), DevNetwork{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.Genesis, doc, 0o600); err != nil {
		t.Fatal(err)
	}
	b.Model = builtin.ID()
	return b
}

func newSiege(t *testing.T) *siege {
	s := &siege{brief: layBrief(t)}
	s.victim = startRole(t, "victim", s.brief)
	t.Cleanup(func() {
		s.victim.in.Close()
		select {
		case err := <-s.victim.ended:
			if err != nil {
				t.Errorf("the victim did not end in order: %v\n%s", err, tailOf(s.victim.log))
			}
		case <-time.After(15 * time.Second):
			t.Error("the victim does not stop")
			s.victim.cmd.Process.Kill()
		}
		if b, _ := os.ReadFile(s.victim.log); strings.Contains(string(b), "panic") {
			t.Errorf("the victim's log tells of a panic:\n%s", tailOf(s.victim.log))
		}
	})
	s.victim.hear(t, &s.brief.Root, 20*time.Second)
	s.victim.hear(t, &s.brief.Victim, 20*time.Second)
	g, err := LoadGenesis(s.brief.Genesis)
	if err != nil {
		t.Fatal(err)
	}
	_, key, _ := ed25519.GenerateKey(nil)
	s.honest, err = NewCore(CoreConfig{
		P2P: p2p.Config{Network: g.Network(), Genesis: g.Hash(), Key: key, Role: p2p.RoleLight, NoListen: true,
			Bootstrap: s.brief.Victim.Addrs},
		Fallback: s.brief.Model, Name: builtin.Name, Router: router.Config{},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.honest.Close() })
	if err := s.honest.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if err = s.ask(t.Context()); err == nil {
			break
		}
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("the honest node gets no answer in peace: %v", err)
		}
	}
	for range 20 { // until buffers and caches have their size
		s.ask(t.Context())
	}
	s.base = s.vitals(t)
	s.rss = rssOf(s.victim.cmd.Process.Pid)
	return s
}

func (s *siege) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	done := false
	err := s.honest.Router.Ask(ctx, inference.Ask{Prompt: "What is Mesh?", MaxTokens: 8, IgnoreEOS: true}, func(e inference.Event) error {
		done = done || e.Finish == inference.FinishLength && e.Usage.OutputTokens == 8
		return nil
	})
	if err == nil && !done {
		err = errors.New("the answer is not whole")
	}
	return err
}

func (s *siege) vitals(t *testing.T) (v vitals) {
	t.Helper()
	if _, err := s.victim.in.Write([]byte("\n")); err != nil {
		t.Fatalf("the victim is gone: %v\n%s", err, tailOf(s.victim.log))
	}
	s.victim.hear(t, &v, 20*time.Second)
	return v
}

// phase is how honest requests fared beside something.
type phase struct {
	times    []time.Duration
	failures []error
	rss      int // the victim's peak
	victim   time.Duration
	wall     time.Duration
}

func (p phase) at(q float64) time.Duration {
	if len(p.times) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(p.times))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// beside asks, one request after the other, until done is closed or the time is up.
func (s *siege) beside(t *testing.T, done <-chan struct{}, limit time.Duration) (p phase) {
	pid := s.victim.cmd.Process.Pid
	begin, cpu := time.Now(), processorTime(pid)
	for time.Since(begin) < limit {
		start := time.Now()
		if err := s.ask(t.Context()); err != nil {
			p.failures = append(p.failures, err)
		}
		p.times = append(p.times, time.Since(start))
		p.rss = max(p.rss, rssOf(pid))
		select {
		case <-done:
			limit = 0
		case <-time.After(5 * time.Millisecond):
		}
	}
	p.wall, p.victim = time.Since(begin), processorTime(pid)-cpu
	return p
}

// start begins an attack.
func (s *siege) start(t *testing.T, attack string, count int, limit time.Duration) *child {
	t.Helper()
	b := s.brief
	b.Attack, b.Count, b.Time = attack, count, limit
	c := startRole(t, "squad", b)
	t.Cleanup(func() { c.in.Close() })
	var begun bool
	c.hear(t, &begun, 30*time.Second)
	return c
}

// squad runs an attack, and honest requests beside it.
func (s *siege) squad(t *testing.T, attack string, count int, limit time.Duration) (phase, report) {
	t.Helper()
	c := s.start(t, attack, count, limit)
	done := make(chan struct{})
	var r report
	heard := make(chan []byte, 1)
	go func() {
		defer close(done)
		line, ok := <-c.lines
		if ok {
			heard <- line
		}
	}()
	p := s.beside(t, done, limit+60*time.Second)
	select {
	case line := <-heard:
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatal(err)
		}
	default:
		t.Fatalf("the squad has no report\n%s", tailOf(c.log))
	}
	return p, r
}

// bystander runs honest requests beside a process that burns a share of a processor.
func (s *siege) bystander(t *testing.T, share float64, during time.Duration) phase {
	t.Helper()
	b := s.brief
	b.Share, b.Time = share, during
	c := startRole(t, "bystander", b)
	defer c.in.Close()
	time.Sleep(20 * time.Millisecond)
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-c.lines
	}()
	return s.beside(t, done, during)
}

// recovered waits until goroutines and heap are back where they were.
func (s *siege) recovered(t *testing.T, limit time.Duration) {
	t.Helper()
	var v vitals
	for begin := time.Now(); ; time.Sleep(250 * time.Millisecond) {
		v = s.vitals(t)
		if v.Goroutines <= s.base.Goroutines+40 && v.Heap <= s.base.Heap+hostileHeap {
			t.Logf("%.1f s after the attackers went: %d goroutines (before %d), heap %d MiB (before %d)",
				time.Since(begin).Seconds(), v.Goroutines, s.base.Goroutines, v.Heap>>20, s.base.Heap>>20)
			return
		}
		if time.Since(begin) > limit {
			t.Errorf("%s after the attackers went the node has %d goroutines (before %d) and a heap of %d MiB (before %d)",
				limit, v.Goroutines, s.base.Goroutines, v.Heap>>20, s.base.Heap>>20)
			return
		}
	}
}

// TestHostilePeers sets each attack against one node, and an honest peer beside it.
func TestHostilePeers(t *testing.T) {
	if testing.Short() {
		t.Skip("times processes, which the race detector slows down: make test runs it, and make race with -short does not")
	}
	if _, err := os.Stat("/proc/self/statm"); err != nil {
		t.Skip("needs /proc")
	}
	full := os.Getenv(hostileFull) != ""
	s := newSiege(t)
	peace := s.beside(t, nil, 500*time.Millisecond)
	t.Logf("in peace: %d requests, p50 %s, p99 %s; %d goroutines, heap %d MiB, RSS %d MiB",
		len(peace.times), peace.at(.5), peace.at(.99), s.base.Goroutines, s.base.Heap>>20, s.rss>>20)
	slow := make(map[string]*child)
	for _, a := range attacks {
		if a.slow && !full {
			slow[a.name] = s.start(t, a.name, a.few, 6*time.Second)
		}
	}
	for _, a := range attacks {
		if slow[a.name] != nil {
			continue
		}
		t.Run(a.name, func(t *testing.T) {
			if !full {
				p, r := s.squad(t, a.name, a.few, 8*time.Second) // on a busy machine; it ends with the last strike
				s.judge(t, a, p, r)
				return
			}
			s.storm(t, a, peace)
			s.recovered(t, 30*time.Second)
		})
	}
	for _, a := range attacks {
		if c := slow[a.name]; c != nil {
			t.Run(a.name, func(t *testing.T) {
				var r report
				c.hear(t, &r, time.Minute)
				s.judge(t, a, s.beside(t, nil, 50*time.Millisecond), r) // its processor time is of all the attack
			})
		}
	}
	s.recovered(t, 15*time.Second)
}

// judge checks what holds in every attack.
func (s *siege) judge(t *testing.T, a attack, p phase, r report) {
	t.Helper()
	t.Logf("%d strikes of %d identities, %d cut off (slowest %s), at most %d streams held; "+
		"%d honest requests: p50 %s, p99 %s; squad %.2f and node %.2f processors, RSS %d MiB",
		r.Strikes, r.Identities, r.Cut, r.Slowest.Round(time.Millisecond), r.Held, len(p.times), p.at(.5), p.at(.99),
		r.CPU.Seconds()/p.wall.Seconds(), p.victim.Seconds()/p.wall.Seconds(), p.rss>>20)
	for _, err := range p.failures {
		t.Errorf("an honest request failed: %v", err)
	}
	for _, w := range r.Wrong {
		t.Error(w)
	}
	if r.Strikes == 0 && r.Frames == 0 { // all strikes of one who is cut off by the first may be in the air
		t.Error("nothing was struck")
	}
	if a.hold > 0 && r.Held > a.hold {
		t.Errorf("one peer holds %d streams, the limit is %d", r.Held, a.hold)
	}
	if a.cut && (r.Cut == 0 || r.Slowest > hostileCut || r.Uncut > hostileCut) {
		t.Errorf("%d of %d offenders cut off, the slowest after %s; one went on for %s", r.Cut, r.Identities, r.Slowest, r.Uncut)
	}
	if p.rss > s.rss+hostileRSS {
		t.Errorf("the node took %d MiB, before the attacks %d", p.rss>>20, s.rss>>20)
	}
}

// storm runs the full form of an attack: all its strikes, and then rounds of some
// seconds, each beside a bystander of the same cost.
func (s *siege) storm(t *testing.T, a attack, peace phase) {
	t.Helper()
	const rounds, each = 3, 2 * time.Second
	if a.many > 0 {
		p, r := s.squad(t, a.name, a.many, 3*time.Minute)
		s.judge(t, a, p, r)
		// The last strikes of an identity that is cut off do not arrive, and do not count.
		if r.Strikes < a.many-a.many/100 {
			t.Errorf("%d of %d strikes in three minutes", r.Strikes, a.many)
		}
	}
	if !a.pace {
		return
	}
	idle := peace.victim.Seconds() / float64(len(peace.times)) // of the node, per request
	var ratios []float64
	for i := range rounds {
		p, r := s.squad(t, a.name, 0, each)
		s.judge(t, a, p, r)
		extra := max(0, p.victim.Seconds()-idle*float64(len(p.times)))
		share := (r.CPU.Seconds() + extra) / p.wall.Seconds()
		b := s.bystander(t, min(share, float64(runtime.NumCPU())), min(p.wall, 2*each))
		ratios = append(ratios, p.at(.99).Seconds()/b.at(.99).Seconds())
		t.Logf("beside a bystander of %.2f processors: %d requests, p50 %s, p99 %s; ratio of p99 %.2f", share, len(b.times), b.at(.5), b.at(.99), ratios[i])
	}
	slices.Sort(ratios)
	if ratios[rounds/2] > 2 {
		t.Errorf("p99 of honest requests is %.2f times that beside a bystander, at most 2", ratios[rounds/2])
	}
}
