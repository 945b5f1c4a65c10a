package p2p

import (
	"context"
	"net"
	"testing"

	"github.com/gonka-mesh/mesh"
)

// TestStreamsAreWorthTheirConnection holds that a peer with open streams is worth more
// than one without, on both sides, by no more than three streams, and only as long.
func TestStreamsAreWorthTheirConnection(t *testing.T) {
	a, b := startPair(t)
	b.Handle("work", Limits{}, func(ctx context.Context, _ mesh.Address, c net.Conn) {
		b := make([]byte, 1)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
			c.Write(b)
		}
	})
	value := func(h, other *Host) int {
		tags := h.host.ConnManager().GetTagInfo(other.host.ID())
		if tags == nil {
			return 0
		}
		return tags.Tags[streamTag]
	}
	var open []net.Conn
	for i := range 5 {
		c, err := a.Dial(t.Context(), b.Address(), "work")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
		want := streamValue * min(i+1, mostValued)
		if got := value(a, b); got != want {
			t.Errorf("%d streams are worth %d to the one that opened them, want %d", i+1, got, want)
		}
		if got := value(b, a); got != want {
			t.Errorf("%d streams are worth %d to the other side, want %d", i+1, got, want)
		}
	}
	for _, c := range open {
		c.Close()
	}
	eventually(t, "closed streams are worth nothing", func() bool { return value(a, b) == 0 && value(b, a) == 0 })
}
