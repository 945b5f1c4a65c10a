package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/node/api"
)

// TestLedgerGoverned has hosts decide, by the commands: a parameter, a model that is
// approved and then retired by force, a vote that is delegated, and an upgrade, before
// which the old version stops and the new one goes on. A stranger joins meanwhile.
func TestLedgerGoverned(t *testing.T) {
	v2 := buildVersion(t, "v1.1.0", "testdata/upgrades_v2.go.txt") // always, as nothing else compiles that file
	if os.Getenv("MESH_LONG") == "" {
		t.Skip("a minute of five processes; MESH_LONG=1 runs it")
	}
	v1 := buildVersion(t, "v1.0.0", "")
	runVersion(t, v1)
	n := newLedger(t, 4, 250*time.Millisecond, 24)
	all := n.living()
	reach(t, 2, all...)
	n.stranger(t)

	// The last host lets the third vote for it, and says nothing itself.
	n.mesh(t, 3, "host", "delegate", "all", n.hosts[2].Ready.Peer.String())
	model := mesh.HashOf([]byte("a model"))
	fee := n.propose(t, 0, "title: Fees\nparams: {fee_per_byte: 11}\n")
	approve := n.propose(t, 1, fmt.Sprintf("title: A model\nmodel: {id: %s, name: a-model, coefficient: 500}\n", model))
	n.vote(t, fee, 0, 1, 2)
	n.vote(t, approve, 0, 2)
	for id, yes := range map[uint64]uint64{fee: 4000, approve: 3000} {
		if p := n.decided(t, id); p.Status != "passed" || p.Tally["yes"] != yes || p.Tally["all"] != 4000 {
			t.Errorf("proposal %d: %s (%s), %v; want %d for it", id, p.Status, p.Reason, p.Tally, yes)
		}
	}
	var rules api.Rules
	within(t, patience, "the new parameter and the model", func() bool {
		var err error
		rules, err = all[0].Rules(t.Context())
		return err == nil && rules.Params["fee_per_byte"] == 11 && len(rules.Models) == 2
	})
	// The next fees follow it.
	n.mesh(t, 0, "wallet", "send", n.hosts[1].Ready.Peer.String(), "1")

	retire := n.propose(t, 0, fmt.Sprintf("title: No such model\nmodel: {id: %s, coefficient: 0}\n", model))
	n.vote(t, retire, 0, 1, 2)
	n.decided(t, retire)
	within(t, patience, "the model is retired", func() bool {
		rules, err := all[2].Rules(t.Context())
		return err == nil && slices.ContainsFunc(rules.Models, func(m api.LedgerModel) bool { return m.Model == mesh.ModelID(model) && m.Retired > 0 })
	})

	s, err := all[0].LedgerStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	at := s.Height + mesh.Height(rules.Params["vote_blocks"]+rules.Params["epoch_blocks"]) + 8
	id := n.propose(t, 0, fmt.Sprintf("title: Upgrade\nupgrade: {name: v2, height: %d, info: it is at home}\n", at))
	n.vote(t, id, 0, 1, 2)
	if p := n.decided(t, id); p.Status != "passed" {
		t.Fatalf("the upgrade: %s, %s", p.Status, p.Reason)
	}
	if _, stdout, _ := meshCommand(t, "gov", "rules", "--home", n.hosts[0].Ready.Home); !strings.Contains(stdout, "does not know it") {
		t.Errorf("gov rules before the upgrade:\n%s", stdout)
	}
	for i, c := range all {
		within(t, patience, "the old version stops", func() bool {
			s, err := c.LedgerStatus(t.Context())
			return err == nil && strings.Contains(s.Error, "install a version that does")
		})
		code, stdout, _ := meshCommand(t, "status", "--home", n.hosts[i].Ready.Home)
		if code != exitDone || !strings.Contains(stdout, `upgrades to "v2"`) || !strings.Contains(stdout, "it is at home") || !strings.Contains(stdout, fmt.Sprintf("height %d,", at-1)) {
			t.Errorf("host %d stopped before height %d: exit code %d:\n%s", i, at, code, stdout)
		}
	}

	stopAll(n.hosts)
	runVersion(t, v2)
	n.startLedger()
	reach(t, at+2, n.living()...)
	agreeNow(t, n.living()...)
	if rules, err := n.living()[0].Rules(t.Context()); err != nil || rules.Upgrade != nil || rules.Params["fee_per_byte"] != 12 {
		t.Errorf("after the upgrade: %+v, %v", rules, err)
	}
	for _, c := range n.living() {
		if s, err := c.Status(t.Context()); err != nil || s.Version != "v1.1.0" {
			t.Errorf("after the upgrade: version %q, %v", s.Version, err)
		}
	}

	// The old version, started by mistake, follows nothing.
	n.hosts[3].stop()
	runVersion(t, v1)
	n.hosts[3] = n.startValidator(3)
	within(t, patience, "the old version says that it is too old", func() bool {
		s, err := n.client(n.hosts[3]).LedgerStatus(t.Context())
		return err == nil && strings.Contains(s.Error, `upgrades to "v2"`)
	})
	reach(t, heightOf(n.client(n.hosts[0]))+2, n.living()[:3]...)
}

// buildVersion builds mesh as a version of its own; upgrades, if given, takes the place of
// node/upgrades.go.
func buildVersion(t *testing.T, version, upgrades string) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "mesh")
	args := []string{"build", "-ldflags", "-X github.com/gonka-mesh/mesh.Version=" + version, "-o", file}
	if upgrades != "" {
		root, err := filepath.Abs("../..")
		if err != nil {
			t.Fatal(err)
		}
		overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{
			filepath.Join(root, "node", "upgrades.go"): filepath.Join(root, "cmd", "mesh", upgrades)}})
		if err != nil {
			t.Fatal(err)
		}
		list := filepath.Join(t.TempDir(), "overlay.json")
		if err := os.WriteFile(list, overlay, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-overlay", list)
	}
	if out, err := exec.Command("go", append(args, ".")...).CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", version, err, out)
	}
	return file
}

// runVersion makes the nodes that start from now on processes of a build.
func runVersion(t *testing.T, file string) {
	was := childFile
	childFile = func() (string, error) { return file, nil }
	t.Cleanup(func() { childFile = was })
}

// mesh runs a command at a host.
func (n *network) mesh(t *testing.T, i int, args ...string) string {
	t.Helper()
	code, stdout, stderr := meshCommand(t, append(args, "--home", n.hosts[i].Ready.Home)...)
	if code != exitDone {
		t.Fatalf("mesh %s: exit code %d: %s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}

// propose puts a proposal to the vote and returns its number.
func (n *network) propose(t *testing.T, i int, text string) uint64 {
	t.Helper()
	c := n.client(n.hosts[i])
	file := filepath.Join(t.TempDir(), "proposal.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	n.mesh(t, i, "gov", "propose", file)
	all, err := c.Proposals(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if p.Proposer == n.hosts[i].Ready.Peer && strings.HasPrefix(text, "title: "+p.Title+"\n") {
			return p.ID
		}
	}
	t.Fatalf("no proposal like %q among %+v", text, all)
	return 0
}

// vote lets hosts vote yes, side by side.
func (n *network) vote(t *testing.T, id uint64, hosts ...int) {
	t.Helper()
	var wg sync.WaitGroup
	for _, i := range hosts {
		wg.Go(func() {
			if code, _, stderr := meshCommand(t, "gov", "vote", fmt.Sprint(id), "yes", "--home", n.hosts[i].Ready.Home); code != exitDone {
				t.Errorf("host %d votes on %d: exit code %d: %s", i, id, code, stderr)
			}
		})
	}
	wg.Wait()
}

// decided waits for the end of a vote.
func (n *network) decided(t *testing.T, id uint64) (p api.Proposal) {
	t.Helper()
	within(t, patience, fmt.Sprintf("the end of vote %d", id), func() bool {
		var err error
		p, err = n.client(n.hosts[0]).Proposal(t.Context(), id)
		return err == nil && heightOf(n.client(n.hosts[0])) >= p.Ends && p.Status != "open" && p.Status != "voting"
	})
	return p
}

// stranger joins as one that the genesis does not know: it follows, registers with
// collateral, and has no power while it has no weight.
func (n *network) stranger(t *testing.T) {
	t.Helper()
	c, err := n.tryStart("stranger", n.hosts[0].Ready.Addrs, "--threads", "1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.stop()
	node := n.client(c)
	within(t, patience, "the stranger follows", func() bool {
		s, err := node.LedgerStatus(t.Context())
		return err == nil && s.Height > 0 && !s.CatchingUp
	})
	n.mesh(t, 0, "wallet", "send", c.Ready.Peer.String(), "500")
	within(t, patience, "the stranger's money", func() bool {
		w, err := node.Wallet(t.Context(), c.Ready.Peer)
		return err == nil && w.Balance > 0
	})
	if code, _, stderr := meshCommand(t, "host", "stake", "100", "--home", c.Ready.Home); code != exitDone {
		t.Fatalf("stake: exit code %d: %s", code, stderr)
	}
	reach(t, heightOf(node), n.client(n.hosts[0])) // which may be a block behind
	hosts, err := n.client(n.hosts[0]).Hosts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		if h.Host == c.Ready.Peer {
			if h.Collateral != 100*mesh.GNK || h.Power != 0 || h.Weight != 0 || h.Owner != c.Ready.Peer {
				t.Errorf("the stranger is %+v", h)
			}
			if s, err := node.LedgerStatus(t.Context()); err != nil || s.Validator || s.Validators != 4 {
				t.Errorf("the stranger's ledger: %+v, %v", s, err)
			}
			agreeNow(t, append(n.living(), node)...)
			return
		}
	}
	t.Errorf("the stranger is not among %+v", hosts)
}
