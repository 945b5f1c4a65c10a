package ledger

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

var updateGov = flag.Bool("update-gov", false, "write what happens into testdata/gov_*.txt")

// TestGovTranscripts runs the stories of testdata/gov_*.txt. A line is a command, the
// indented lines after it are what it says:
//
//	NAME propose WHAT ...   params NAME=VALUE..., model m0 [NAME] COEFFICIENT, upgrade NAME HEIGHT, spend NAME GNK, words
//	NAME vote N OPTION      or NAME delegate MODEL|all [NAME]
//	to HEIGHT               empty blocks up to a height
//	epoch N                 as if it began now
//	jail NAME, unjail NAME  as if it happened
//	deposit GNK             puts down in later proposals
//	know NAME...            the software is replaced by one that knows these upgrades; forget all: by one that knows none
//	show ...                proposal N, tally N, ballots N, model m0, pending, param NAME, plan, upgrades, balance NAME, community, delegations NAME
//
// Each command of a name is a block of one transaction.
func TestGovTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/gov_*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := newGovStory(t)
			var got strings.Builder
			for line := range strings.Lines(string(b)) {
				if strings.HasPrefix(line, "  ") {
					continue
				}
				got.WriteString(line)
				if words := strings.Fields(line); len(words) > 0 && !strings.HasPrefix(line, "#") {
					s.run(words)
				}
				for _, said := range s.said {
					got.WriteString("  " + said + "\n")
				}
				s.said = nil
			}
			if *updateGov {
				if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got.String() != string(b) {
				t.Errorf("%s tells another story:\n%s", file, got.String())
			}
		})
	}
}

// govStory is a network of five hosts. ann has weight 400 and bob 300 from m0, cat 100
// each from m0 and m1, dan 100 from m1, eve none; joe is a user.
type govStory struct {
	t       *testing.T
	m       *Machine
	state   *memState
	height  mesh.Height
	deposit uint64
	names   map[string]mesh.Address
	said    []string
}

var govNames = []string{"ann", "bob", "cat", "dan", "eve", "joe"}

func newGovStory(t *testing.T) *govStory {
	s := &govStory{t: t, m: testMachine(), deposit: 100, names: make(map[string]mesh.Address)}
	for n, name := range govNames {
		s.names[name] = addressOf(testKey(100 + n))
	}
	p := quickParams()
	p.FeePerByte, p.EpochBlocks, p.SettleBlocks, p.VoteBlocks, p.DepositMin = 0, 100, 50, 10, 100e9
	work := func(counts ...uint64) (all []GenesisWork) {
		for n, count := range counts {
			if count > 0 {
				all = append(all, GenesisWork{testModel(n), count})
			}
		}
		slices.SortFunc(all, func(a, b GenesisWork) int { return strings.Compare(a.Model.String(), b.Model.String()) })
		return all
	}
	var hosts []hostOfTest
	for n, w := range [][]GenesisWork{work(400), work(300), work(100, 200), work(0, 200), nil} {
		hosts = append(hosts, hostOfTest{s.names[govNames[n]], w})
	}
	s.state = prepare(t, p, hosts, []mesh.Address{s.names["joe"]})
	return s
}

func (s *govStory) say(format string, args ...any) {
	s.said = append(s.said, fmt.Sprintf(format, args...))
}

func (s *govStory) number(w string) uint64 {
	n, err := strconv.ParseUint(w, 10, 64)
	if err != nil {
		s.t.Fatalf("%q is no number", w)
	}
	return n
}

func (s *govStory) who(name string) mesh.Address {
	a, ok := s.names[name]
	if !ok {
		s.t.Fatalf("nobody is called %q", name)
	}
	return a
}

func (s *govStory) model(w string) mesh.ModelID {
	return testModel(int(s.number(strings.TrimPrefix(w, "m"))))
}

func (s *govStory) run(words []string) {
	s.t.Helper()
	switch arg := words[1]; words[0] {
	case "to":
		for s.height < mesh.Height(s.number(arg)) && s.block() {
		}
	case "epoch":
		s.change(func(o *overlay) {
			k := miscKey(miscEpoch)
			e, _ := load[ledgerpb.EpochState](o, k)
			e.Epoch, e.Start = s.number(arg), uint64(s.height)
			o.save(k, e)
		})
	case "jail", "unjail":
		s.change(func(o *overlay) {
			h, _ := load[ledgerpb.Host](o, hostKey(s.who(arg)))
			h.JailedUntil, h.Power = 0, 10
			if words[0] == "jail" {
				h.JailedUntil, h.Power = 9, 0
			}
			o.save(hostKey(s.who(arg)), h)
		})
	case "deposit":
		s.deposit = s.number(arg)
	case "know":
		cfg := s.m.cfg
		cfg.Upgrades = make(map[string]Migration)
		for _, name := range words[1:] {
			cfg.Upgrades[name] = s.migrate
		}
		s.m = New(cfg)
	case "forget":
		cfg := s.m.cfg
		cfg.Upgrades = nil
		s.m = New(cfg)
	case "show":
		s.show(words[1:])
	default:
		s.block(s.tx(s.who(words[0]), words[1:]))
	}
}

// migrate makes a parameter of the state another, as an upgrade may.
func (s *govStory) migrate(st Store) error {
	o := newOverlay(st)
	p, _ := load[ledgerpb.Params](o, key(tableParams))
	p.MaxValidators = 7
	b, err := encode(p)
	if err == nil {
		st.Set(key(tableParams), b)
	}
	return err
}

func (s *govStory) change(fn func(o *overlay)) {
	o := newOverlay(s.state)
	fn(o)
	s.state.write(s.t, o.changes())
}

// block makes the next one and reports whether it was applied.
func (s *govStory) block(txs ...[]byte) bool {
	s.t.Helper()
	b := Block{Height: s.height + 1, Txs: append([][]byte{beaconTx(s.t, s.height+1, s.who("ann"))}, txs...)}
	b.Proposer = ConsensusAddressOf(consensusKeyOf(s.who("ann")))
	ready := s.m.Ready(s.state)
	out, err := s.m.Apply(s.state, b)
	if needed := (*UpgradeNeeded)(nil); errors.As(err, &needed) {
		if ready == nil || ready.Error() != err.Error() {
			s.t.Errorf("ready says %v", ready)
		}
		s.say("stopped before %d: %v", b.Height, err)
		return false
	}
	if err != nil {
		s.t.Fatal(err)
	}
	if ready != nil {
		s.t.Errorf("block %d is applied although: %v", b.Height, ready)
	}
	s.state.write(s.t, out.Changes)
	s.height = b.Height
	for _, r := range out.Results[1:] {
		if r.Err != nil {
			s.say("refused: %v", r.Err)
		}
	}
	for _, e := range out.Events {
		if e.Kind == "proposal" || e.Kind == "upgrade" {
			line := fmt.Sprintf("%d: %s", s.height, e.Kind)
			for _, a := range e.Attrs {
				if a[1] != "" {
					line += " " + a[0] + "=" + a[1]
				}
			}
			s.say("%s", line)
		}
	}
	if err := CheckInvariants(s.state); err != nil {
		s.t.Fatal(err)
	}
	return true
}

func (s *govStory) tx(from mesh.Address, words []string) []byte {
	s.t.Helper()
	tx := &ledgerpb.Tx{Sender: from[:], Nonce: newOverlay(s.state).account(from).GetNonce()}
	switch words[0] {
	case "propose":
		tx.Action = &ledgerpb.Tx_Propose{Propose: s.proposal(words[1:])}
	case "vote":
		option, ok := ledgerpb.Option_value[strings.ToUpper(words[2])]
		if !ok {
			option = 99
		}
		tx.Action = &ledgerpb.Tx_Vote{Vote: &ledgerpb.Vote{Proposal: s.number(words[1]), Option: ledgerpb.Option(option)}}
	case "delegate":
		t := new(ledgerpb.Delegate)
		if words[1] != "all" {
			id := s.model(words[1])
			t.Model = id[:]
		}
		if len(words) > 2 {
			to := s.who(words[2])
			t.To = to[:]
		}
		tx.Action = &ledgerpb.Tx_Delegate{Delegate: t}
	default:
		s.t.Fatalf("no command %q", words)
	}
	return fakeSign(s.t, tx)
}

func (s *govStory) proposal(words []string) *ledgerpb.Propose {
	t := &ledgerpb.Propose{Title: strings.Join(words, " "), Deposit: s.deposit * uint64(mesh.GNK)}
	switch args := words[1:]; words[0] {
	case "params":
		change := new(ledgerpb.ParamsChange)
		for _, a := range args {
			name, value, _ := strings.Cut(a, "=")
			change.Set = append(change.Set, &ledgerpb.ParamChange{Name: name, Value: s.number(value)})
		}
		t.Change = &ledgerpb.Propose_Params{Params: change}
	case "model":
		id := s.model(args[0])
		change := &ledgerpb.ModelChange{Model: id[:], Coefficient: s.number(args[len(args)-1])}
		if len(args) > 2 {
			change.Name = args[1]
		}
		t.Change = &ledgerpb.Propose_Model{Model: change}
	case "upgrade":
		t.Change = &ledgerpb.Propose_Upgrade{Upgrade: &ledgerpb.Upgrade{Name: args[0], Height: s.number(args[1]), Info: "mesh.example"}}
	case "spend":
		to := s.who(args[0])
		t.Change = &ledgerpb.Propose_Spend{Spend: &ledgerpb.Spend{To: to[:], Amount: s.number(args[1]) * uint64(mesh.GNK)}}
	}
	return t
}

func (s *govStory) name(a []byte) string {
	for _, name := range govNames {
		if s.names[name] == mesh.AddressOf(a) {
			return name
		}
	}
	return "nobody"
}

func (s *govStory) modelName(id mesh.ModelID) string {
	for n := range 10 {
		if testModel(n) == id {
			return "m" + strconv.Itoa(n)
		}
	}
	return "all"
}

func (s *govStory) show(words []string) {
	s.t.Helper()
	v := NewView(s.state)
	must := func(err error) {
		if err != nil {
			s.t.Fatal(err)
		}
	}
	switch words[0] {
	case "proposal", "tally":
		p, err := v.Proposal(s.number(words[1]))
		if words[0] == "tally" {
			p, err = s.m.Tally(s.state, s.number(words[1]))
		}
		must(err)
		sums := fmt.Sprintf("yes %d, no %d, abstain %d, veto %d of %d", p.GetYes(), p.GetNo(), p.GetAbstain(), p.GetVeto(), p.GetWeight())
		s.say("%s", strings.TrimSuffix(p.GetStatus()+", "+sums+": "+p.GetReason(), ": "))
	case "ballots":
		all, err := v.Ballots(s.number(words[1]))
		must(err)
		slices.SortFunc(all, func(a, b HostBallot) int { return strings.Compare(s.name(a.Host[:]), s.name(b.Host[:])) })
		for _, b := range all {
			s.say("%s %s", s.name(b.Host[:]), strings.ToLower(b.Option.String()))
		}
	case "model":
		m, err := v.Model(s.model(words[1]))
		must(err)
		var at []string
		for epoch := range mesh.Epoch(6) {
			at = append(at, strconv.FormatUint(CoefficientAt(m, epoch), 10))
		}
		s.say("%q, coefficient %d, since %d, retired %d, in epochs 0 to 5: %s", m.GetName(), m.GetCoefficient(), m.GetSince(), m.GetRetired(), strings.Join(at, " "))
	case "pending":
		p, err := read[ledgerpb.Params](v, key(tablePending))
		must(err)
		now, err := v.Params()
		must(err)
		if p == nil {
			s.say("none")
			return
		}
		fields := p.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			if a, b := now.ProtoReflect().Get(f).Uint(), p.ProtoReflect().Get(f).Uint(); a != b {
				s.say("%s %d, next %d", f.Name(), a, b)
			}
		}
	case "param":
		p, err := v.Params()
		must(err)
		f := p.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(words[1]))
		s.say("%d", p.ProtoReflect().Get(f).Uint())
	case "plan":
		u, err := v.Plan()
		must(err)
		if u == nil {
			s.say("none")
			return
		}
		s.say("%s at %d", u.GetName(), u.GetHeight())
	case "upgrades":
		all, err := v.Upgrades()
		must(err)
		p, err := v.Params()
		must(err)
		for _, u := range all {
			s.say("%s at %d", u.GetName(), u.GetHeight())
		}
		s.say("max_validators %d", p.GetMaxValidators())
	case "balance":
		a, err := v.Account(s.who(words[1]))
		must(err)
		s.say("%s", mesh.Amount(a.GetBalance()))
	case "community":
		totals, err := v.Totals()
		must(err)
		s.say("%s, deposits %s", mesh.Amount(totals.GetCommunity()), mesh.Amount(totals.GetDeposits()))
	case "delegations":
		all, err := v.Delegations(s.who(words[1]))
		must(err)
		for _, d := range all {
			s.say("%s to %s", s.modelName(d.Model), s.name(d.To[:]))
		}
	default:
		s.t.Fatalf("nothing to show: %q", words)
	}
}
