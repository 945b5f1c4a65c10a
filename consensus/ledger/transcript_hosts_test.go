package ledger

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

var updateHosts = flag.Bool("update-hosts", false, "write what happens into testdata/hosts_*.txt")

// TestHostTranscripts runs the stories of testdata/hosts_*.txt. A line is a command, the
// indented lines after it are what comes of it. Every line with a name's action is a
// block; "; " separates several in one.
//
//	genesis NAME ... [and NAME ...] [with PARAM=VALUE ...]   hosts with 100 GNK of work and collateral, and others
//	NAME register N [owner=NAME] [same=consensus|bls M] [bad=consensus|bls]   its N-th keys
//	NAME owner HOST NEW        NAME stake HOST GNK      NAME unstake HOST GNK      NAME unjail
//	work HOST N                from now on
//	sleep HOST N               does not sign N blocks
//	evidence HOST N            in the next block, of its N-th keys
//	vote PARAM=VALUE ...       parameters of the next epoch, as if by a vote
//	blocks N                   close: to where the next epoch is closed
//	show ...                   set, host NAME, balance NAME, unbonding NAME, missed NAME, kept, totals
func TestHostTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/hosts_*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := &hostStory{t: t}
			var got strings.Builder
			for line := range strings.Lines(string(b)) {
				if strings.HasPrefix(line, "  ") {
					continue
				}
				got.WriteString(line)
				if text := strings.TrimSpace(line); text != "" && !strings.HasPrefix(text, "#") {
					s.run(text)
				}
				for _, said := range s.said {
					got.WriteString("  " + s.named(said) + "\n")
				}
				s.said = nil
			}
			if *updateHosts {
				if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got.String() != string(b) {
				t.Errorf("%s is not what happens; with -update-hosts it is written anew:\n%s", file, got.String())
			}
		})
	}
}

type hostStory struct {
	t    testing.TB
	w    *world
	said []string
}

func (s *hostStory) say(format string, args ...any) {
	s.said = append(s.said, fmt.Sprintf(format, args...))
}

func (s *hostStory) named(text string) string {
	for _, name := range s.w.names {
		a := s.w.address(name)
		text = strings.ReplaceAll(strings.ReplaceAll(text, a.String(), name), a.Short(), name)
	}
	return text
}

func (s *hostStory) number(text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *hostStory) amount(text string) uint64 {
	n, err := mesh.ParseAmount(text)
	if err != nil {
		s.t.Fatal(err)
	}
	return uint64(n)
}

func (s *hostStory) run(line string) {
	s.t.Helper()
	f := strings.Fields(line)
	if s.w != nil {
		s.w.hosts["nobody"] = mesh.Address{}
	}
	switch f[0] {
	case "genesis":
		s.genesis(f[1:])
	case "work":
		s.w.work[s.w.address(f[1])] = s.number(f[2])
	case "sleep":
		s.w.sleeps[f[1]] = int(s.number(f[2]))
	case "evidence":
		k := s.w.newKeys(f[1], int(s.number(f[2])))
		s.w.evidence = append(s.w.evidence, Evidence{k.address(), s.w.height})
	case "vote":
		s.vote(f[1:])
	case "blocks":
		for range s.number(f[1]) {
			s.w.block()
			s.events()
		}
	case "close":
		for closed := false; !closed; {
			s.w.block()
			closed = s.events()
		}
	case "show":
		s.show(f[1:])
	default:
		var txs [][]byte
		for text := range strings.SplitSeq(line, "; ") {
			f := strings.Fields(text)
			txs = append(txs, s.w.tx(f[0], txs, s.action(f)))
		}
		for i, r := range s.w.block(txs...).Results[1:] {
			if r.Err != nil {
				s.say("%d refused: %v", i+1, r.Err)
			}
		}
		s.events()
	}
}

func (s *hostStory) genesis(f []string) {
	params := worldParams()
	var hosts, others []string
	to := &hosts
	for i, word := range f {
		switch word {
		case "and":
			to = &others
		case "with":
			for name, value := range s.values(f[i+1:]) {
				params[name] = value
			}
			s.w = newWorld(s.t, params, hosts, others...)
			return
		default:
			*to = append(*to, word)
		}
	}
	s.w = newWorld(s.t, params, hosts, others...)
}

func (s *hostStory) values(f []string) map[string]uint64 {
	out := make(map[string]uint64)
	for _, word := range f {
		name, value, _ := strings.Cut(word, "=")
		out[name] = s.number(value)
	}
	return out
}

func (s *hostStory) vote(f []string) {
	o := newOverlay(s.w.state)
	change := new(ledgerpb.ParamsChange)
	for name, value := range s.values(f) {
		change.Set = append(change.Set, &ledgerpb.ParamChange{Name: name, Value: value})
	}
	slices.SortFunc(change.Set, func(a, b *ledgerpb.ParamChange) int { return strings.Compare(a.Name, b.Name) })
	p, err := NewView(s.w.state).Params()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.w.m.enactParams(o, &blockState{params: p}, change); err != nil {
		s.t.Fatal(err)
	}
	s.w.state.write(s.t, o.changes())
}

func (s *hostStory) action(f []string) *ledgerpb.Tx {
	switch f[1] {
	case "register":
		return &ledgerpb.Tx{Action: &ledgerpb.Tx_RegisterHost{RegisterHost: s.registration(f[0], f[2:])}}
	case "owner":
		host, owner := s.w.address(f[2]), s.w.address(f[3])
		return &ledgerpb.Tx{Action: &ledgerpb.Tx_RegisterHost{RegisterHost: &ledgerpb.RegisterHost{Host: host[:], Owner: owner[:]}}}
	case "stake":
		host := s.w.address(f[2])
		return &ledgerpb.Tx{Action: &ledgerpb.Tx_Stake{Stake: &ledgerpb.Stake{Host: host[:], Amount: s.amount(f[3])}}}
	case "unstake":
		host := s.w.address(f[2])
		return &ledgerpb.Tx{Action: &ledgerpb.Tx_Unstake{Unstake: &ledgerpb.Unstake{Host: host[:], Amount: s.amount(f[3])}}}
	case "unjail":
		return &ledgerpb.Tx{Action: &ledgerpb.Tx_Unjail{Unjail: &ledgerpb.Unjail{}}}
	}
	s.t.Fatalf("unknown step %v", f)
	return nil
}

func (s *hostStory) registration(name string, f []string) *ledgerpb.RegisterHost {
	k := s.w.newKeys(name, int(s.number(f[0])))
	for i, word := range f[1:] {
		if what, ok := strings.CutPrefix(word, "same="); ok { // one of the keys is that of another registration
			other := s.w.newKeys(name, int(s.number(f[i+2])))
			mixed := &hostKeys{name, k.consensus, other.bls}
			if what == "consensus" {
				mixed = &hostKeys{name, other.consensus, k.bls}
			}
			k = mixed
		}
	}
	t := s.w.registration(testNetwork, k)
	for _, word := range f[1:] {
		switch key, value, _ := strings.Cut(word, "="); {
		case key == "owner":
			owner := s.w.address(value)
			t.Owner = owner[:]
		case word == "bad=consensus":
			t.ConsensusProof[9] ^= 1
		case word == "bad=bls":
			t.BlsProof = s.w.registration(testNetwork, s.w.newKeys(name, 1000)).BlsProof
		}
	}
	return t
}

// events tells what the last block did, and reports whether it closed an epoch.
func (s *hostStory) events() (closed bool) {
	for _, e := range s.w.out.Events {
		text := fmt.Sprintf("block %d: %s", s.w.height, e.Kind)
		for _, a := range e.Attrs {
			text += " " + a[0] + " " + a[1]
		}
		s.say("%s", text)
		closed = closed || e.Kind == "epoch" && e.Attrs[0][0] == "closed"
	}
	if len(s.w.out.Validators) > 0 {
		var all []string
		for _, v := range s.w.out.Validators {
			all = append(all, fmt.Sprintf("%s %d", s.keyName(v.ConsensusKey), v.Power))
		}
		slices.Sort(all)
		s.say("block %d: consensus is told %s", s.w.height, strings.Join(all, ", "))
	}
	return closed
}

// keyName is a host's name and which of its keys it is.
func (s *hostStory) keyName(k []byte) string {
	host := s.w.keys[ConsensusAddressOf(k)].host // those that were ever registered
	for n := range 20 {
		if string(s.w.newKeys(host, n).public()) == string(k) {
			return fmt.Sprintf("%s/%d", host, n)
		}
	}
	return host + "/?"
}

func (s *hostStory) show(f []string) {
	v := NewView(s.w.state)
	must := func(err error) {
		if err != nil {
			s.t.Fatal(err)
		}
	}
	switch f[0] {
	case "set":
		hosts, err := v.Hosts()
		must(err)
		var all []string
		for _, h := range hosts {
			if h.Record.GetPower() > 0 {
				all = append(all, fmt.Sprintf("%s %d", h.Address, h.Record.GetPower()))
			}
		}
		for i := range all {
			all[i] = s.named(all[i])
		}
		slices.Sort(all)
		s.say("%s", strings.Join(all, ", "))
	case "host":
		h := s.w.record(f[1])
		s.say("collateral %s, power %d, jailed until %d, tombstoned %t, owner %s, key %s, since %d", mesh.Amount(h.GetCollateral()),
			h.GetPower(), h.GetJailedUntil(), h.GetTombstoned(), mesh.AddressOf(h.GetOwner()), s.keyName(h.GetConsensusKey()), h.GetSince())
	case "balance":
		s.say("%s", mesh.Amount(s.w.account(f[1]).GetBalance()))
	case "unbonding":
		all, err := v.Unbonding()
		must(err)
		s.say("%s", all[s.w.address(f[1])])
	case "missed":
		n, err := v.Missed(s.w.address(f[1]))
		must(err)
		s.say("%d", n)
	case "kept":
		for _, table := range []byte{tableEpoch, tableRewards, tableSet, tableCommitted, tableSigning} {
			var at []string
			for _, k := range s.w.state.under(key(table)) {
				if table == tableSigning {
					at = append(at, mesh.AddressOf([]byte(k[1:])).Short())
				} else {
					at = append(at, strconv.FormatUint(uint64FromKey(k), 10))
				}
			}
			s.say("%c: %s", table, strings.Join(at, " "))
		}
	case "totals":
		t, err := v.Totals()
		must(err)
		s.say("community %s, collateral %s, vesting %s, unemitted %s", mesh.Amount(t.GetCommunity()), mesh.Amount(t.GetCollateral()),
			mesh.Amount(t.GetVesting()), mesh.Amount(t.GetUnemitted()))
	default:
		s.t.Fatalf("unknown %v", f)
	}
}

func uint64FromKey(k string) (n uint64) {
	for _, b := range []byte(k[1:9]) {
		n = n<<8 | uint64(b)
	}
	return n
}
