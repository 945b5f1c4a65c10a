package ledger

import (
	"bytes"
	"crypto/ed25519"
	"math"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// generator makes blocks of random transactions of every kind: most make sense in the
// state that it sees, the others are wrong in one of many ways.
type generator struct {
	t      testing.TB
	rng    *rand.Rand
	m      *Machine
	state  *memState
	height mesh.Height
	people []mesh.Address // the first hosts of them are hosts from the start
	keys   map[mesh.Address]ed25519.PrivateKey
	next   map[mesh.Address]uint64 // nonces within the block
	before [][]byte                // transactions of blocks before
	jailed []mesh.Address

	validators map[string]int64 // as consensus has them: power by key
	kinds      []string
	seen       map[string]*tally // by kind
	count      int
	hash       mesh.Hash // of all outcomes
}

type tally struct{ done, refused, idle int }

const (
	testHosts  = 10
	testPeople = 40
)

// newGenerator begins a network whose hosts have work on one or two models.
func newGenerator(t testing.TB, seed uint64) *generator {
	g := &generator{
		t: t, rng: rand.New(rand.NewPCG(seed, 7)), m: testMachine(),
		keys: make(map[mesh.Address]ed25519.PrivateKey), seen: make(map[string]*tally),
	}
	for n := range testPeople {
		k := testKey(n)
		g.people = append(g.people, addressOf(k))
		g.keys[addressOf(k)] = k
	}
	first, err := g.m.Genesis(g.genesis())
	if err != nil {
		t.Fatal(err)
	}
	g.state = newMemState()
	g.state.write(t, first.Changes)
	g.validators = make(map[string]int64)
	g.updateSet(first.Validators)
	oneof := new(ledgerpb.Tx).ProtoReflect().Descriptor().Oneofs().ByName("action")
	for i := range oneof.Fields().Len() {
		g.kinds = append(g.kinds, string(oneof.Fields().Get(i).Name()))
	}
	return g
}

// run makes and applies blocks until so many transactions were made, and tells after
// each block.
func (g *generator) run(txs int, after func(b Block, out *Outcome)) {
	g.t.Helper()
	for g.count < txs {
		b := g.block()
		g.apply(b, after)
	}
}

func (g *generator) apply(b Block, after func(b Block, out *Outcome)) {
	g.t.Helper()
	out, err := g.m.Apply(g.state, b)
	if err != nil {
		g.t.Fatalf("block %d: %v", b.Height, err)
	}
	if len(out.Results) != len(b.Txs) {
		g.t.Fatalf("block %d: %d results of %d transactions", b.Height, len(out.Results), len(b.Txs))
	}
	for _, r := range out.Results {
		n := g.seen[r.Kind]
		if n == nil {
			n = new(tally)
			g.seen[r.Kind] = n
		}
		switch {
		case r.idle:
			n.idle++
		case r.Err != nil:
			n.refused++
		default:
			n.done++
		}
	}
	g.state.write(g.t, out.Changes)
	g.updateSet(out.Validators)
	g.hash = digest(g.hash, out)
	g.height = b.Height
	g.count += len(b.Txs) - 1
	if after != nil {
		after(b, out)
	}
}

// updateSet does what CometBFT does with changes of the validator set, which stops at
// a key that is named twice, at the removal of one that is not there, and at an empty
// set. What it has then is what the state says.
func (g *generator) updateSet(updates []ValidatorUpdate) {
	g.t.Helper()
	seen := make(map[string]bool)
	for _, u := range updates {
		k := string(u.ConsensusKey)
		_, known := g.validators[k]
		if seen[k] || u.Power < 0 || (u.Power == 0 && !known) || len(k) != 32 {
			g.t.Fatalf("block %d: CometBFT refuses power %d for key %x: named before %t, in the set %t", g.height+1, u.Power, k, seen[k], known)
		}
		seen[k] = true
		if g.validators[k] = u.Power; u.Power == 0 {
			delete(g.validators, k)
		}
	}
	n := 0
	for _, k := range g.state.under(key(tableHost)) {
		if host, _ := load[ledgerpb.Host](newOverlay(g.state), []byte(k)); host.GetPower() > 0 {
			n++
			if have := g.validators[string(host.GetConsensusKey())]; have != int64(host.GetPower()) {
				g.t.Fatalf("block %d: host %x has power %d, consensus has %d", g.height+1, k[1:], host.GetPower(), have)
			}
		}
	}
	if n == 0 || n != len(g.validators) {
		g.t.Fatalf("block %d: %d hosts with power, %d validators in consensus", g.height+1, n, len(g.validators))
	}
}

// block makes the next one, of 0 to 500 transactions.
func (g *generator) block() Block {
	b := Block{Height: g.height + 1}
	var validators []mesh.Address
	g.jailed = nil
	for _, k := range g.state.under(key(tableHost)) {
		host := new(ledgerpb.Host)
		if err := decode(g.state.records[k], host); err != nil {
			g.t.Fatal(err)
		}
		if host.GetJailedUntil() > 0 && !host.GetTombstoned() && g.keys[mesh.AddressOf([]byte(k[1:]))] != nil {
			g.jailed = append(g.jailed, mesh.AddressOf([]byte(k[1:])))
		}
		if host.GetPower() > 0 {
			validators = append(validators, mesh.AddressOf([]byte(k[1:])))
			address := ConsensusAddressOf(host.GetConsensusKey())
			// One in eight sleeps through some blocks, at other times another.
			lazy := mesh.HashOf(address[:], be64(uint64(b.Height)/30))[0]%8 == 0
			if g.rng.IntN(12) > 0 && (!lazy || g.rng.IntN(4) == 0) {
				b.Signed = append(b.Signed, address)
			} else {
				b.Missed = append(b.Missed, address)
			}
			if g.rng.IntN(4000) == 0 {
				b.Evidence = append(b.Evidence, Evidence{address, g.height})
			}
		}
	}
	if len(validators) == 0 {
		g.t.Fatalf("block %d: nobody is left to propose it", b.Height)
	}
	proposer := validators[g.rng.IntN(len(validators))]
	record, err := NewView(g.state).Host(proposer)
	if err != nil {
		g.t.Fatal(err)
	}
	b.Proposer = ConsensusAddressOf(record.GetConsensusKey())
	b.Txs = append(b.Txs, beaconTx(g.t, b.Height, proposer))
	g.next = make(map[mesh.Address]uint64)
	n := g.rng.IntN(501)
	if g.rng.IntN(8) == 0 {
		n = 0
	}
	for range n {
		b.Txs = append(b.Txs, g.tx(b.Txs))
	}
	if len(b.Txs) > 1 {
		g.before = append(g.before, b.Txs[1+g.rng.IntN(n)])
	}
	return b
}

// hostly are kinds that mostly hosts send.
var hostly = map[string]bool{"unstake": true, "unjail": true, "settle": true, "commit_work": true, "vote": true, "delegate": true}

// tx makes a transaction: in nine of ten cases one in form, in order and with its fee.
func (g *generator) tx(block [][]byte) []byte {
	kind := g.kinds[g.rng.IntN(len(g.kinds))]
	switch {
	case kind == "propose" && g.rng.IntN(3) > 0, g.rng.IntN(5) == 0:
		kind = "vote"
	case g.rng.IntN(8) == 0:
		kind = "settle"
	}
	sender := g.people[g.rng.IntN(len(g.people))]
	if hostly[kind] && g.rng.IntN(5) > 0 {
		sender = mesh.AddressOf(g.some(tableHost))
	}
	if len(g.jailed) > 0 && kind == "unjail" {
		sender = g.jailed[g.rng.IntN(len(g.jailed))]
	}
	account := newOverlay(g.state).account(sender)
	nonce, ok := g.next[sender]
	if !ok {
		nonce = account.GetNonce()
	}
	tx := &ledgerpb.Tx{Sender: sender[:], Nonce: nonce, Fee: 20_000}
	g.act(tx, kind, sender)
	if body, err := encode(tx); err == nil {
		tx.Fee = max(tx.Fee, uint64(len(body)+200)*10)
	}
	switch g.rng.IntN(60) {
	case 0:
		tx.Nonce += uint64(1 + g.rng.IntN(3))
	case 1:
		tx.Nonce -= uint64(g.rng.IntN(3))
	case 2:
		tx.Fee = g.amount(account.GetBalance())
	case 3:
		raw := fakeSign(g.t, tx)
		raw[g.rng.IntN(len(raw))] ^= 1 << g.rng.IntN(8)
		return raw
	case 4:
		raw := fakeSign(g.t, tx)
		return raw[:g.rng.IntN(len(raw))]
	case 5:
		return append(fakeSign(g.t, tx), byte(g.rng.Uint32()))
	case 6:
		if len(g.before) > 0 {
			return g.before[g.rng.IntN(len(g.before))]
		}
		return []byte{}
	case 7:
		return block[g.rng.IntN(len(block))]
	case 8:
		g.scramble(tx.ProtoReflect(), 3)
	default:
		g.next[sender] = nonce + 1
	}
	return fakeSign(g.t, tx)
}

// scramble sets a random field somewhere in a message to something random.
func (g *generator) scramble(m protoreflect.Message, depth int) {
	var set []protoreflect.FieldDescriptor
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		if f := fields.Get(i); m.Has(f) || f.ContainingOneof() == nil {
			set = append(set, f)
		}
	}
	if len(set) == 0 {
		return
	}
	f := set[g.rng.IntN(len(set))]
	switch {
	case f.IsList():
		if l := m.Mutable(f).List(); l.Len() > 0 && f.Kind() == protoreflect.MessageKind {
			g.scramble(l.Get(g.rng.IntN(l.Len())).Message(), depth-1)
			if g.rng.IntN(2) == 0 {
				l.Append(l.Get(0))
			}
		}
	case f.Kind() == protoreflect.MessageKind:
		if m.Has(f) && depth > 0 {
			g.scramble(m.Mutable(f).Message(), depth-1)
		}
	case f.Kind() == protoreflect.BytesKind:
		m.Set(f, protoreflect.ValueOfBytes(g.bytes(g.rng.IntN(70))))
	case f.Kind() == protoreflect.StringKind:
		m.Set(f, protoreflect.ValueOfString("scrambled\x00"))
	case f.Kind() == protoreflect.Uint64Kind:
		m.Set(f, protoreflect.ValueOfUint64(g.amount(1000)))
	case f.Kind() == protoreflect.Uint32Kind:
		m.Set(f, protoreflect.ValueOfUint32(g.rng.Uint32()))
	case f.Kind() == protoreflect.EnumKind:
		m.Set(f, protoreflect.ValueOfEnum(protoreflect.EnumNumber(g.rng.IntN(9)-2)))
	}
}

func (g *generator) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(g.rng.Uint32())
	}
	return b
}

// amount returns one around a sum, or at the edges of what there is.
func (g *generator) amount(around uint64) uint64 {
	switch g.rng.IntN(24) {
	case 0:
		return 0
	case 1:
		return around
	case 2:
		return around + 1
	case 3:
		return math.MaxUint64 - g.rng.Uint64N(3)
	case 4:
		return uint64(mesh.MaxSupply)
	case 5:
		return g.rng.Uint64()
	}
	return g.rng.Uint64N(around/16 + 2)
}

// some returns the rest of a random key of a table, or random bytes where it is empty.
func (g *generator) some(table byte) []byte {
	keys := g.state.under(key(table))
	if len(keys) == 0 || g.rng.IntN(40) == 0 {
		return g.bytes(32)
	}
	return []byte(keys[g.rng.IntN(len(keys))][1:])
}

func (g *generator) someone() []byte {
	a := g.people[g.rng.IntN(len(g.people))]
	return a[:]
}

// recent returns one of the newest proposals.
func (g *generator) recent() uint64 {
	keys := g.state.under(key(tableProposal))
	if len(keys) == 0 {
		return 1
	}
	return uint64(max(1, len(keys)-g.rng.IntN(min(len(keys), 40))))
}

// own returns a random escrow or run of an owner, or any.
func (g *generator) own(table byte, owner mesh.Address) []byte {
	var own [][]byte
	for _, k := range g.state.under(key(table)) {
		if o := newOverlay(g.state); table == tableEscrow {
			if r, _ := load[ledgerpb.Escrow](o, []byte(k)); bytes.Equal(r.GetOwner(), owner[:]) {
				own = append(own, []byte(k[1:]))
			}
		} else if r, _ := load[ledgerpb.Run](o, []byte(k)); bytes.Equal(r.GetOwner(), owner[:]) {
			own = append(own, []byte(k[1:]))
		}
	}
	if len(own) == 0 || g.rng.IntN(20) == 0 {
		return g.some(table)
	}
	return own[g.rng.IntN(len(own))]
}

// act fills in an action.
func (g *generator) act(tx *ledgerpb.Tx, kind string, sender mesh.Address) {
	gnk := uint64(mesh.GNK)
	epoch, _ := NewView(g.state).Epoch()
	switch kind {
	case "transfer":
		tx.Action = &ledgerpb.Tx_Transfer{Transfer: &ledgerpb.Transfer{To: g.someone(), Amount: g.amount(10_000 * gnk), Memo: "memo"}}
	case "register_host":
		tx.Action = &ledgerpb.Tx_RegisterHost{RegisterHost: g.registration(sender)}
	case "stake":
		tx.Action = &ledgerpb.Tx_Stake{Stake: &ledgerpb.Stake{Host: g.some(tableHost), Amount: g.amount(5_000 * gnk)}}
	case "unstake":
		tx.Action = &ledgerpb.Tx_Unstake{Unstake: &ledgerpb.Unstake{Host: sender[:], Amount: g.amount(5_000 * gnk)}}
	case "unjail":
		tx.Action = &ledgerpb.Tx_Unjail{Unjail: &ledgerpb.Unjail{}}
	case "open_escrow":
		t := &ledgerpb.OpenEscrow{Amount: g.amount(3_000 * gnk)}
		for _, k := range g.state.under(key(tableHost)) {
			if g.rng.IntN(6) == 0 {
				t.Lanes = append(t.Lanes, &ledgerpb.Lane{Host: []byte(k[1:]), Cap: g.amount(t.GetAmount())})
			}
		}
		tx.Action = &ledgerpb.Tx_OpenEscrow{OpenEscrow: t}
	case "top_escrow":
		tx.Action = &ledgerpb.Tx_TopEscrow{TopEscrow: &ledgerpb.TopEscrow{Escrow: g.own(tableEscrow, sender), Amount: g.amount(1_000 * gnk)}}
	case "set_lane":
		tx.Action = &ledgerpb.Tx_SetLane{SetLane: &ledgerpb.SetLane{
			Escrow: g.own(tableEscrow, sender), Lane: &ledgerpb.Lane{Host: g.some(tableHost), Cap: g.amount(100 * gnk)},
		}}
	case "close_escrow":
		tx.Action = &ledgerpb.Tx_CloseEscrow{CloseEscrow: &ledgerpb.CloseEscrow{Escrow: g.own(tableEscrow, sender)}}
	case "settle":
		tx.Action = &ledgerpb.Tx_Settle{Settle: g.settlement(sender, epoch.GetEpoch()-uint64(g.rng.IntN(8)/7+1))}
	case "commit_work":
		tx.Action = &ledgerpb.Tx_CommitWork{CommitWork: &ledgerpb.CommitWork{
			Epoch: epoch.GetEpoch() - 1, Work: []*ledgerpb.Work{{Model: g.some(tableModel), Count: g.amount(1 << 20), Root: g.bytes(32)}},
		}}
	case "propose":
		tx.Action = &ledgerpb.Tx_Propose{Propose: g.proposal()}
	case "vote":
		option := ledgerpb.Option(1 + g.rng.IntN(4))
		if g.rng.IntN(3) > 0 {
			option = ledgerpb.Option_YES
		}
		tx.Action = &ledgerpb.Tx_Vote{Vote: &ledgerpb.Vote{Proposal: g.recent(), Option: option}}
	case "delegate":
		t := new(ledgerpb.Delegate)
		if g.rng.IntN(2) == 0 {
			t.Model = g.some(tableModel)
		}
		if g.rng.IntN(4) > 0 {
			t.To = g.some(tableHost)
		}
		tx.Action = &ledgerpb.Tx_Delegate{Delegate: t}
	case "open_run":
		tx.Action = &ledgerpb.Tx_OpenRun{OpenRun: &ledgerpb.OpenRun{
			Descriptor_: g.bytes(32), Bond: g.amount(100 * gnk), MembersMax: g.rng.Uint32N(20), Reward: g.amount(1000 * gnk),
		}}
	case "join_run":
		tx.Action = &ledgerpb.Tx_JoinRun{JoinRun: &ledgerpb.JoinRun{Run: g.some(tableRun)}}
	case "leave_run":
		tx.Action = &ledgerpb.Tx_LeaveRun{LeaveRun: &ledgerpb.LeaveRun{Run: g.joined(sender)}}
	case "commit_trace":
		tx.Action = &ledgerpb.Tx_CommitTrace{CommitTrace: &ledgerpb.CommitTrace{Run: g.joined(sender), Round: g.rng.Uint64N(4), Root: g.bytes(32)}}
	case "post_checkpoint":
		tx.Action = &ledgerpb.Tx_PostCheckpoint{PostCheckpoint: &ledgerpb.PostCheckpoint{Run: g.joined(sender), Round: g.rng.Uint64N(4), Hash: make([]byte, 32)}}
	case "close_run":
		tx.Action = &ledgerpb.Tx_CloseRun{CloseRun: &ledgerpb.CloseRun{Run: g.own(tableRun, sender)}}
	default:
		g.t.Fatalf("no transactions of kind %s are generated", kind)
	}
}

// joined returns a random run that someone is a member of, or any.
func (g *generator) joined(sender mesh.Address) []byte {
	var runs [][]byte
	for _, k := range g.state.under(key(tableMember)) {
		if bytes.HasSuffix([]byte(k), sender[:]) {
			runs = append(runs, []byte(k[1:33]))
		}
	}
	if len(runs) == 0 || g.rng.IntN(20) == 0 {
		return g.some(tableRun)
	}
	return runs[g.rng.IntN(len(runs))]
}

// proposal makes one whose change keeps the network of a test going.
func (g *generator) proposal() *ledgerpb.Propose {
	t := &ledgerpb.Propose{Title: "title", Text: "a text\nof two lines", Deposit: 10e9 + g.rng.Uint64N(5e9)}
	switch g.rng.IntN(6) {
	case 0:
		all := []struct {
			name        string
			least, most uint64
		}{
			{"deposit_min", 1e9, 10e9}, {"epoch_blocks", 12, 30}, {"fee_per_byte", 1, 10}, {"keep_epochs", 2, 5},
			{"max_validators", 4, 20}, {"quorum_bp", 1, 4000}, {"settle_blocks", 2, 11}, {"threshold_bp", 5000, 6000},
			{"unbonding_epochs", 1, 3}, {"vesting_epochs", 1, 6}, {"veto_bp", 2000, 5000}, {"vote_blocks", 2, 20},
		}
		change := new(ledgerpb.ParamsChange)
		for _, p := range all {
			if g.rng.IntN(4) == 0 {
				change.Set = append(change.Set, &ledgerpb.ParamChange{Name: p.name, Value: p.least + g.rng.Uint64N(p.most-p.least+1)})
			}
		}
		t.Change = &ledgerpb.Propose_Params{Params: change}
	case 1, 2:
		id := testModel(g.rng.IntN(12))
		change := &ledgerpb.ModelChange{Model: id[:], Name: "model", Coefficient: 400 + g.rng.Uint64N(700)}
		if g.rng.IntN(4) == 0 {
			change.Coefficient = 0
		}
		t.Change = &ledgerpb.Propose_Model{Model: change}
	case 3:
		change := &ledgerpb.Upgrade{Name: "v" + string('1'+byte(g.rng.IntN(9))), Height: uint64(g.height) + 30 + g.rng.Uint64N(40), Info: "where to get it"}
		if g.rng.IntN(4) == 0 {
			change.Height = 0
		}
		t.Change = &ledgerpb.Propose_Upgrade{Upgrade: change}
	case 4:
		totals, _ := NewView(g.state).Totals()
		t.Change = &ledgerpb.Propose_Spend{Spend: &ledgerpb.Spend{To: g.someone(), Amount: g.amount(totals.GetCommunity())}}
	}
	return t
}
