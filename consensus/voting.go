package consensus

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	cs "github.com/cometbft/cometbft/consensus"
	sm "github.com/cometbft/cometbft/state"
)

// voteReactor is CometBFT's reactor of consensus, which begins when the blocks are fetched.
// Where it cannot, because the log that it keeps on disk is broken, that one panics in a
// goroutine of blocksync, which would end the process at every start.
type voteReactor struct {
	*cs.Reactor
	c      *Chain
	broken atomic.Bool // consensus did not begin
}

// machineErrors are why a log that is whole does not open. The reactor tells them as text alone.
var machineErrors = []error{syscall.EMFILE, syscall.ENFILE, syscall.EACCES, syscall.EPERM, syscall.ENOSPC, syscall.EROFS, syscall.ENOMEM}

// SwitchToConsensus is called by blocksync.
func (r *voteReactor) SwitchToConsensus(state sm.State, skipWAL bool) {
	defer func() {
		if v := recover(); v != nil {
			r.broken.Store(true)
			r.c.fail(notBegun(r.c.cfg.Home, r.c.wal(), fmt.Sprint(v)))
		}
	}()
	r.Reactor.SwitchToConsensus(state, skipWAL)
}

// notBegun is the error for why consensus did not begin: a broken log, or what is wrong around it.
func notBegun(home, wal, panicked string) error {
	why, _, _ := strings.Cut(panicked, "\n") // all that the reactor knows follows
	if slices.ContainsFunc(machineErrors, func(e error) bool { return strings.Contains(why, e.Error()) }) {
		return fmt.Errorf("%s; its log is %s", why, wal)
	}
	return &DamagedError{home, fmt.Errorf("%s (its log is %s, move that away too)", why, wal)}
}

// Stop does not wait for what did not begin.
func (r *voteReactor) Stop() error {
	if r.broken.Load() {
		return nil
	}
	return r.Reactor.Stop()
}
