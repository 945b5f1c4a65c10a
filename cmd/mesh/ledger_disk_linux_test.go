package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// testDiskFull gives a host a disk of its own and fills it: below the floor the host does
// not vote and says why, with room again it votes, and before a write could fail its
// ledger stops. Making a disk takes root.
func (n *network) testDiskFull(t *testing.T) {
	n.t = t
	const i = 3
	home := n.hosts[i].Ready.Home
	n.hosts[i].stop()
	n.hosts[i] = nil
	before := home + ".before"
	if err := os.Rename(home, before); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", home, "tmpfs", 0, "size=400m,mode=0700"); err != nil {
		t.Skipf("a disk of its own: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(home, syscall.MNT_DETACH) })
	if err := os.CopyFS(home, os.DirFS(before)); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"node.key", "consensus.key"} {
		if err := os.Chmod(filepath.Join(home, key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h := n.startValidator(i)
	t.Cleanup(h.stop)
	c, others := n.client(h), n.living()
	votes(t, h.Ready.Peer, others[0])

	ballast := filepath.Join(home, "ballast")
	fill := func(free int64) {
		t.Helper()
		if err := os.Remove(ballast); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		var st syscall.Statfs_t
		if err := syscall.Statfs(home, &st); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(ballast, make([]byte, int64(st.Bavail)*st.Bsize-free), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	problem := func() string {
		s, err := c.LedgerStatus(t.Context())
		if err != nil {
			return err.Error()
		}
		return s.Error
	}
	fill(200 << 20)
	within(t, patience, "the host says that its disk is nearly full", func() bool { return strings.Contains(problem(), "the disk is nearly full") })
	if metric(t, h.Ready.API, "mesh_ledger_unfit") != 1 {
		t.Error("the metric mesh_ledger_unfit is not 1")
	}
	if code, stdout, _ := meshCommand(t, "doctor", "--home", home); code != exitFailed || !strings.Contains(stdout, "nearly full") {
		t.Errorf("doctor: exit code %d: %s", code, stdout)
	}
	at := heightOf(others[0])
	reach(t, at+3, append(others, c)...) // the others decide, and it follows
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	within(t, patience, "the problem is over", func() bool { return problem() == "" })
	votes(t, h.Ready.Peer, others[0])

	fill(100 << 20)
	within(t, patience, "the ledger stops", func() bool { return strings.Contains(problem(), "the ledger has stopped here") })
	if p := problem(); !strings.Contains(p, "make room and start again") {
		t.Errorf("the host says %q", p)
	}
	reach(t, heightOf(others[0])+2, others...)
}
