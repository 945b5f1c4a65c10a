package p2p

import (
	"cmp"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

// How full a node is may not decide who can join: everybody else is behind the few
// nodes that a newcomer knows.
const (
	stormFactor = 4                      // connections of each direction, as a multiple of HighConns
	settledIn   = time.Second            // after which a peer has had time to learn of others
	doorEvery   = 100 * time.Millisecond // between looks while the node is too full
)

// watchDoor makes room while more than three quarters of the connections that a node
// can hold are taken. The connection manager comes at its own pace and spares the
// young ones, so that a storm of joins would shut out whoever comes after it.
func (s *hellos) watchDoor() {
	tick := time.NewTicker(doorEvery)
	defer tick.Stop()
	for {
		settled, inbound := s.settled(time.Now())
		if inbound < s.crowd() {
			return
		}
		for _, c := range settled[:min(len(settled), inbound-s.crowd()*2/3)] {
			c.CloseWithError(network.ConnGarbageCollected)
		}
		select {
		case <-s.h.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// crowd is the number of connections at which room is made: three quarters of what
// the node can hold of one direction.
func (s *hellos) crowd() int { return stormFactor * s.h.cfg.HighConns * 3 / 4 }

// settled returns the inbound connections that may be closed to make room, the least
// valuable first and among those the oldest, and the number of all inbound ones. Below
// a crowd the watch ends with the count: a connection that comes after it starts
// another.
func (s *hellos) settled(now time.Time) (out []network.Conn, inbound int) {
	conns := s.h.host.ConnManager()
	value := make(map[network.Conn]int)
	s.mu.Lock()
	for c, g := range s.conns {
		if c.Stat().Direction != network.DirInbound {
			continue
		}
		inbound++
		if g.decided() && now.Sub(c.Stat().Opened) >= settledIn {
			out = append(out, c)
		}
	}
	s.atDoor = inbound >= s.crowd()
	s.mu.Unlock()
	out = slices.DeleteFunc(out, func(c network.Conn) bool { return conns.IsProtected(c.RemotePeer(), "") })
	for _, c := range out {
		if tags := conns.GetTagInfo(c.RemotePeer()); tags != nil {
			value[c] = tags.Value
		}
	}
	slices.SortFunc(out, func(a, b network.Conn) int {
		return cmp.Or(cmp.Compare(value[a], value[b]), a.Stat().Opened.Compare(b.Stat().Opened))
	})
	return out, inbound
}
