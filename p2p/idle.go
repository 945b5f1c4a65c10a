package p2p

import "time"

// quietFor is how long nothing has to move on a stream for it to count as idle. A call
// that runs says something every second.
const quietFor = 10 * time.Second

// quiet returns how long nothing moved on a stream.
func (c *Conn) quiet(now time.Time) time.Duration { return now.Sub(time.Unix(0, c.active.Load())) }

// checkIdle resets a stream on which nothing moved for the idle time of its protocol,
// be it that the peer is silent or that it does not read, and sooner when its peer
// holds too many such streams.
func (c *Conn) checkIdle() {
	now := time.Now()
	quiet := c.quiet(now)
	if quiet >= c.idle || quiet >= quietFor && c.lane.tooIdle(c, now) {
		c.Reset(CodeIdle)
		return
	}
	next := min(c.idle, quietFor)
	if quiet >= next {
		next = min(c.idle-quiet, quietFor)
	} else {
		next -= quiet
	}
	c.timer.Reset(next)
}

// hold keeps the books of a stream that is open.
func (l *lane) hold(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held[c] = true
}

// tooIdle reports whether the peer of an idle stream has its share of idle streams
// without this one.
func (l *lane) tooIdle(c *Conn, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for o := range l.held {
		if o != c && o.peer == c.peer && o.quiet(now) >= quietFor {
			n++
		}
	}
	return n >= l.limits.IdlePerPeer
}

// makeRoom ends the stream that is idle for longest, whoever holds it, and reports
// whether there was one.
func (l *lane) makeRoom() bool {
	now := time.Now()
	l.mu.Lock()
	var worst *Conn
	for c := range l.held {
		if c.quiet(now) >= quietFor && (worst == nil || c.quiet(now) > worst.quiet(now)) {
			worst = c
		}
	}
	l.mu.Unlock()
	if worst == nil {
		return false
	}
	worst.Reset(CodeIdle)
	return true
}
