package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh/node/api"
)

// newLedger starts a network of validators as `mesh dev` has it, each of which a test may
// kill and start again.
func newLedger(t *testing.T, hosts int, block time.Duration, epoch int64) *network {
	t.Helper()
	dir := t.TempDir()
	d := &devNet{home: dir, block: block, epoch: epoch}
	if err := d.genesis(hosts); err != nil {
		t.Fatal(err)
	}
	n := &network{t: t, dir: dir, genesis: d.genesisPath(), hosts: make([]*child, hosts)}
	t.Cleanup(func() {
		stopAll(append(slices.Clone(n.hosts), n.light))
		if t.Failed() {
			n.printLogs()
		}
	})
	n.startLedger()
	return n
}

// startLedger starts all hosts.
func (n *network) startLedger() {
	n.t.Helper()
	n.hosts[0] = n.startValidator(0)
	var wg sync.WaitGroup
	for i := 1; i < len(n.hosts); i++ {
		wg.Go(func() {
			c, err := n.tryStart("host-"+strconv.Itoa(i), n.hosts[0].Ready.Addrs, "--threads", "1")
			if err != nil {
				n.t.Error(err)
				return
			}
			n.hosts[i] = c
		})
	}
	wg.Wait()
	if n.t.Failed() {
		n.t.FailNow()
	}
}

// startValidator starts one host again; it joins through those that live.
func (n *network) startValidator(i int) *child {
	n.t.Helper()
	var through []string
	for j, h := range n.hosts {
		if h != nil && j != i {
			through = append(through, h.Ready.Addrs...)
		}
	}
	c, err := n.tryStart("host-"+strconv.Itoa(i), through, "--threads", "1")
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

func (n *network) tryStart(name string, through []string, args ...string) (*child, error) {
	args = append([]string{"--network", n.genesis, "--listen", "127.0.0.1:0", "--api", "127.0.0.1:0", "--no-mdns", "--no-portmap"}, args...)
	for _, a := range through {
		args = append(args, "--bootstrap", a)
	}
	c, err := startChild(context.Background(), filepath.Join(n.dir, name), args...)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return c, nil
}

// living returns the clients of the hosts that run.
func (n *network) living() (out []*api.Client) {
	for _, h := range n.hosts {
		if h != nil {
			out = append(out, n.client(h))
		}
	}
	return out
}
