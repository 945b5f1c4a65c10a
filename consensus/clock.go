package consensus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	sm "github.com/cometbft/cometbft/state"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/p2p"
)

// ErrClock tells that this machine's clock is off.
var ErrClock = errors.New("the clock of this machine is off")

// skew finds out whether the clock is off. The evidence, the strongest first:
//
//   - The time of a block is a median over more than two thirds of the validators. One
//     that lies in the future proves that this clock is behind. One of just now proves
//     that it is right, whatever peers say.
//   - Where the last block is old (the ledger stood still, or this clock is ahead), the
//     clocks of the other validators decide: more than a third of the power, and two of
//     them, have to be off to the same side.
//
// Nobody else is asked: whoever runs many peers could stop the validators otherwise, and
// with them the blocks that would prove him a liar. Of more than a third one is honest,
// or the ledger is lost anyway.
type skew struct {
	c *Chain

	mu   sync.Mutex
	last time.Time // of the last block; guarded by mu
	// said is what peers gave as their time less this clock's; guarded by mu
	said  map[mesh.Address]answer
	power map[mesh.Address]uint64 // of the validators; guarded by mu
}

// voters is an application that knows the nodes of the validators, and their power.
type voters interface {
	Voters() (map[mesh.Address]uint64, error)
}

type answer struct {
	ahead time.Duration
	at    time.Time // when it was asked
	ok    bool      // it answered
}

const (
	clockName    = "clock"
	clockPeers   = 16 // asked in one round
	clockLeast   = 2  // answers that decide, of more than a third of the power
	clockTimeout = 3 * time.Second
	clockEvery   = time.Minute // the same peer is asked
	clockHolds   = 3 * time.Minute
)

func newSkew(c *Chain) *skew { return &skew{c: c, said: make(map[mesh.Address]answer)} }

// saw notes the time of a block.
func (s *skew) saw(block time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if block.After(s.last) {
		s.last = block
	}
}

// atStart refuses to start with a clock that is behind the ledger.
func (s *skew) atStart(state sm.State) error {
	if state.LastBlockHeight > 0 {
		s.saw(state.LastBlockTime)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.behind(s.c.cfg.now())
}

// behind reports a last block that lies in the future. mu is held.
func (s *skew) behind(now time.Time) error {
	if ahead := s.last.Sub(now); !s.last.IsZero() && ahead > s.c.cfg.clockSkew() {
		return fmt.Errorf("%w: it is %s behind the last block of the ledger, which is of %s; set the clock (timedatectl set-ntp true)",
			ErrClock, ahead.Round(time.Second), s.last.UTC().Format(time.RFC3339))
	}
	return nil
}

// check reports a clock that is off by what is known.
func (s *skew) check() error {
	now := s.c.cfg.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.behind(now); err != nil {
		return err
	}
	if !s.last.IsZero() && now.Sub(s.last) <= s.c.cfg.clockSkew() {
		return nil
	}
	s.forget()
	side := "behind"
	least, n := s.off(1)
	if n == 0 {
		side = "ahead of"
		least, n = s.off(-1)
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%w: it is at least %s %s the clocks of %d validators; set the clock (timedatectl set-ntp true)", ErrClock, least.Round(time.Second), side, n)
}

// off returns how many validators say that this clock is off to one side, and the least
// of what they say; 0 where they are not enough. mu is held.
func (s *skew) off(sign time.Duration) (least time.Duration, n int) {
	var all, those uint64
	for a, power := range s.power {
		all += power
		said := s.said[a]
		by := sign * said.ahead
		if !said.ok || by <= s.c.cfg.clockSkew() {
			continue
		}
		if those += power; n == 0 || by < least {
			least = by
		}
		n++
	}
	if n < clockLeast || those <= all/3 {
		return 0, 0
	}
	return least, n
}

// forget drops answers that are old. mu is held.
func (s *skew) forget() {
	for a, said := range s.said {
		if time.Since(said.at) > clockHolds {
			delete(s.said, a)
		}
	}
}

// serve answers peers that ask for the time.
func (s *skew) serve(p *parts) error {
	if s.c.cfg.Net == nil {
		return nil
	}
	ln, err := s.c.cfg.Net.Listen(clockName, p2p.Limits{PerPeer: 2, Total: 64, MaxMessage: 64, Rate: 1, Burst: 8, Idle: clockTimeout})
	if err != nil {
		return fmt.Errorf("serve the clock: %w", err)
	}
	p.clock = ln
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go s.tell(conn)
		}
	}()
	return nil
}

// tell gives the time when the peer sent a byte.
func (s *skew) tell(c net.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(clockTimeout))
	var ask [1]byte
	if _, err := io.ReadFull(c, ask[:]); err != nil {
		return
	}
	c.Write(binary.BigEndian.AppendUint64(nil, uint64(s.c.cfg.now().UnixNano())))
}

// measure asks connected validators for the time that were not asked lately.
func (s *skew) measure(ctx context.Context) {
	app, ok := s.c.cfg.App.(voters)
	if s.c.cfg.Net == nil || !ok {
		return
	}
	power, err := app.Voters()
	if err != nil {
		return // the state says so itself
	}
	var ask []mesh.Address
	s.mu.Lock()
	s.power = power
	s.forget()
	for _, info := range s.c.cfg.Net.Peers() {
		if said, ok := s.said[info.Address]; power[info.Address] > 0 && (!ok || time.Since(said.at) > clockEvery) {
			ask = append(ask, info.Address)
		}
	}
	s.mu.Unlock()
	rand.Shuffle(len(ask), func(i, j int) { ask[i], ask[j] = ask[j], ask[i] })
	ctx, cancel := context.WithTimeout(ctx, clockTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, a := range ask[:min(len(ask), clockPeers)] {
		wg.Go(func() {
			ahead, err := s.ask(ctx, a) // it may be stopping, or not serve yet
			s.mu.Lock()
			defer s.mu.Unlock()
			s.said[a] = answer{ahead, time.Now(), err == nil}
		})
	}
	wg.Wait()
}

// ask returns by how much a peer's clock is ahead, to half of the round trip.
func (s *skew) ask(ctx context.Context, a mesh.Address) (time.Duration, error) {
	c, err := s.c.cfg.Net.Dial(ctx, a, clockName)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(clockTimeout))
	before := s.c.cfg.now()
	if _, err := c.Write([]byte{1}); err != nil {
		return 0, err
	}
	var b [8]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return 0, err
	}
	after := s.c.cfg.now()
	theirs := time.Unix(0, int64(binary.BigEndian.Uint64(b[:])))
	return theirs.Sub(before.Add(after.Sub(before) / 2)), nil
}

// Voters returns the nodes of the validators, by the last block's state.
func (a *App) Voters() (map[mesh.Address]uint64, error) {
	v := a.cfg.Store.View()
	all, err := ledger.NewView(v).Validators()
	if err = errors.Join(err, v.Err(), v.Close()); err != nil {
		return nil, err
	}
	power := make(map[mesh.Address]uint64, len(all))
	for _, host := range all {
		power[host.Address] = host.Record.GetPower()
	}
	return power, nil
}
