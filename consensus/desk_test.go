package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
	"github.com/cometbft/cometbft/types"
	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/light"
	"github.com/gonka-mesh/mesh/consensus/light/lightpb"
	"github.com/gonka-mesh/mesh/consensus/state"
	"github.com/gonka-mesh/mesh/p2p"
)

// deskStore has a state of two heights with 2,500 records that can be proven.
func deskStore(t testing.TB) *state.Store {
	t.Helper()
	s, err := state.Open(state.Config{Memory: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	for h := mesh.Height(1); h <= 2; h++ {
		var changes []ledger.Change
		for i := range 2500 {
			changes = append(changes, ledger.Change{Key: fmt.Appendf(nil, "A%05d", i), Value: fmt.Appendf(nil, "%d of %d", i, h)})
		}
		changes = append(changes, ledger.Change{Key: []byte("B1"), Value: make([]byte, light.MaxAnswer)}, ledger.Change{Key: []byte("a1"), Value: []byte("flat")})
		if _, err := s.Stage(h, changes); err != nil {
			t.Fatal(err)
		}
		if err := s.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

var deskPeer = mesh.Address{7}

func noChain() (*Chain, error) { return nil, errors.New("the ledger is still starting here") }

// halfPipe is one end of a pipe that can say that it has said all.
type halfPipe struct{ net.Conn }

func (halfPipe) CloseWrite() error { return nil }

// deskDialer reaches a desk without a network.
type deskDialer struct{ desk *Desk }

func (d deskDialer) Dial(_ context.Context, peer mesh.Address, protocol string) (net.Conn, error) {
	a, b := net.Pipe()
	if protocol == "tx" {
		go d.desk.ServeTx(context.Background(), peer, b)
	} else {
		go d.desk.ServeLight(context.Background(), peer, b)
	}
	return halfPipe{a}, nil
}

// TestDesk lets a light client verify the headers of a real chain over a desk.
func TestDesk(t *testing.T) {
	n := newToyNet(t, 1, 0, nil)
	n.start()
	chain := n.nodes[0]
	n.reach(5, chain)
	points := 0
	desk := &Desk{Chain: func() (*Chain, error) { return chain.Chain, nil }, Store: deskStore(t), Penalise: func(_ mesh.Address, _ string, p int) { points += p }}
	first := types.NewValidatorSet([]*types.Validator{types.NewValidator(n.genesis.Validators[0].PubKey, 10)})
	c, err := light.New(light.Config{
		Network: n.network, Root: light.Root{Validators: first, Time: n.genesis.GenesisTime}, Period: time.Hour,
		Dialer: deskDialer{desk}, Peers: func() []mesh.Address { return []mesh.Address{deskPeer} },
		Penalise: func(_ mesh.Address, reason string, _ int) { t.Errorf("the desk is called a liar: %s", reason) },
		Fresh:    time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	head, err := c.Head(t.Context())
	if err != nil || head.Height < 5 {
		t.Fatalf("%+v, %v", head, err)
	}
	for _, h := range []mesh.Height{2, head.Height} {
		b, err := c.LightBlock(t.Context(), h)
		if err != nil {
			t.Fatal(err)
		}
		if own, err := chain.LightBlock(t.Context(), h); err != nil || string(own.Hash()) != string(b.Hash()) {
			t.Errorf("block %d is another one, %v", h, err)
		}
	}
	if _, err := c.LightBlock(t.Context(), head.Height+1000); !errors.Is(err, ErrNoBlock) {
		t.Errorf("a block that is not there yet: %v", err)
	}
	if r := desk.answer(t.Context(), deskPeer, &lightpb.Ask{Want: &lightpb.Ask_Tip{Tip: 1 << 63}}).GetError(); r.GetCode() != lightpb.Error_TOO_HIGH {
		t.Errorf("a height beyond all: %v", r)
	}
	if points > 0 {
		t.Errorf("%d points for questions in order", points)
	}
	// Evidence that does not hold costs something.
	b, err := chain.LightBlock(t.Context(), 3)
	if err != nil {
		t.Fatal(err)
	}
	ev := &types.LightClientAttackEvidence{ConflictingBlock: b, CommonHeight: 2, TotalVotingPower: 10, Timestamp: b.Time}
	pb, err := types.EvidenceToProto(ev)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := pb.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if r := desk.answer(t.Context(), deskPeer, &lightpb.Ask{Want: &lightpb.Ask_Evidence{Evidence: raw}}).GetError(); r.GetCode() != lightpb.Error_INVALID || points != pointsEvidence {
		t.Errorf("evidence against the chain itself: %v, %d points", r, points)
	}
	if r := desk.answer(t.Context(), deskPeer, &lightpb.Ask{Want: &lightpb.Ask_Evidence{Evidence: []byte("evidence")}}).GetError(); r.GetCode() != lightpb.Error_INVALID || points != pointsEvidence+pointsForm {
		t.Errorf("no evidence: %v, %d points", r, points)
	}
	// A transaction is answered when it is in a block, or refused.
	for _, tx := range []string{"tx of a light peer", "fail one", "bad one"} {
		conn, err := deskDialer{desk}.Dial(t.Context(), deskPeer, "tx")
		if err != nil {
			t.Fatal(err)
		}
		answer := new(lightpb.TxAnswer)
		if err := errors.Join(p2p.WriteMessage(conn, &lightpb.TxAsk{Tx: []byte(tx)}), p2p.ReadMessage(conn, light.MaxAsk, answer)); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if good, bad := strings.HasPrefix(tx, "tx"), strings.HasPrefix(tx, "bad"); answer.GetDone() != good || answer.GetAccepted() == bad || answer.GetHeight() == 0 != bad || answer.GetReason() == "" != good {
			t.Errorf("%s: %v", tx, answer)
		}
	}
	// One that no state of the ledger makes good costs points, one for which there is no
	// room now is not refused.
	for tx, want := range map[string]int{"forged one": pointsForm, "later one": 0, "bad two": 0} {
		points = 0
		conn, err := deskDialer{desk}.Dial(t.Context(), deskPeer, "tx")
		if err != nil {
			t.Fatal(err)
		}
		answer := new(lightpb.TxAnswer)
		if err := errors.Join(p2p.WriteMessage(conn, &lightpb.TxAsk{Tx: []byte(tx)}), p2p.ReadMessage(conn, light.MaxAsk, answer)); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if points != want || answer.GetAccepted() || answer.GetUnable() != strings.HasPrefix(tx, "later") {
			t.Errorf("%s: %d points, %v", tx, points, answer)
		}
	}
}

// gatedApp puts transactions into blocks once it is open.
type gatedApp struct {
	*toyApp
	open atomic.Bool
}

func (a *gatedApp) PrepareProposal(ctx context.Context, r *abci.RequestPrepareProposal) (*abci.ResponsePrepareProposal, error) {
	if !a.open.Load() {
		return &abci.ResponsePrepareProposal{}, nil
	}
	return a.toyApp.PrepareProposal(ctx, r)
}

// TestDeskWaits: who hands in what another waits for waits too, and where too many wait
// the answer comes at once. Neither is a refusal.
func TestDeskWaits(t *testing.T) {
	var app *gatedApp
	n := newToyNet(t, 1, 0, func(_ int, cfg *Config) {
		app = &gatedApp{toyApp: cfg.App.(*toyApp)}
		cfg.App = app
	})
	n.start()
	chain := n.nodes[0]
	n.reach(1, chain)
	desk := &Desk{Chain: func() (*Chain, error) { return chain.Chain, nil }}
	hand := func(tx string) *lightpb.TxAnswer {
		height, err := desk.submit(t.Context(), []byte(tx))
		return outcome(height, err)
	}
	answers := make(chan *lightpb.TxAnswer, 3)
	for range cap(answers) {
		go func() { answers <- hand("tx of three") }()
	}
	eventually(t, "three wait", func() bool {
		chain.pool.mu.Lock()
		defer chain.pool.mu.Unlock()
		return len(chain.pool.byKey[types.Tx("tx of three").Key()]) == 3
	})
	desk.waiting.Add(maxWaiting)
	for range 2 {
		if a := hand("tx of a crowd"); !a.GetAccepted() || a.GetHeight() != 0 || a.GetDone() {
			t.Errorf("in a crowd: %v", a)
		}
	}
	if a := hand("bad one"); a.GetAccepted() || a.GetUnable() || a.GetReason() == "" {
		t.Errorf("a bad one in a crowd: %v", a)
	}
	app.open.Store(true)
	for range cap(answers) {
		if a := <-answers; !a.GetDone() || a.GetHeight() == 0 {
			t.Errorf("one of three: %v", a)
		}
	}
	if left := desk.waiting.Load(); left != maxWaiting {
		t.Errorf("%d wait for nothing", left-maxWaiting)
	}
}

// TestOutcome: only what the ledger refuses is refused.
func TestOutcome(t *testing.T) {
	for _, c := range []struct {
		err                      error
		accepted, unable, refuse bool
	}{
		{err: &Refused{Code: 1, Log: "the fee is too low"}, refuse: true},
		{err: fmt.Errorf("%w: of 3 MB", ErrTooLarge), refuse: true},
		{err: &Refused{Code: 1, Log: "no such escrow", Height: 7}, accepted: true},
		{err: fmt.Errorf("%w: %w", ErrNotInTime, context.DeadlineExceeded), accepted: true},
		{err: fmt.Errorf("%w: %w", ErrNotInTime, ErrNotRunning), accepted: true},
		{err: ErrDuplicate, accepted: true},
		{err: ErrPoolFull, unable: true},
		{err: ErrSyncing, unable: true},
		{err: ErrNotRunning, unable: true},
		{err: errors.New("the ledger is still starting here"), unable: true},
	} {
		a := outcome(0, c.err)
		if a.GetAccepted() != c.accepted || a.GetUnable() != c.unable || a.GetDone() || a.GetReason() == "" || c.refuse == (c.accepted || c.unable) {
			t.Errorf("%v: %v", c.err, a)
		}
	}
}

// TestDeskMalformed: bytes that are no message are counted once, by p2p.
func TestDeskMalformed(t *testing.T) {
	desk := &Desk{Chain: noChain, Penalise: func(mesh.Address, string, int) { t.Error("counted a second time") }}
	for name, serve := range map[string]func(context.Context, mesh.Address, net.Conn){"light": desk.ServeLight, "tx": desk.ServeTx} {
		a, b := net.Pipe()
		ended := make(chan struct{})
		go func() { serve(t.Context(), deskPeer, b); close(ended) }()
		if _, err := a.Write([]byte{2, 0xff, 0xff}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		<-ended
		a.Close()
	}
}

// TestDeskState answers questions about records, also while there is no chain.
func TestDeskState(t *testing.T) {
	s := deskStore(t)
	desk := &Desk{Chain: noChain, Store: s, Penalise: func(mesh.Address, string, int) { t.Error("nothing is wrong") }}
	ask := func(a *lightpb.Ask) *lightpb.Answer {
		t.Helper()
		a2, b := net.Pipe()
		go desk.ServeLight(t.Context(), deskPeer, b)
		defer a2.Close()
		answer := new(lightpb.Answer)
		if err := errors.Join(p2p.WriteMessage(a2, a), p2p.ReadMessage(a2, light.MaxAnswer+64, answer)); err != nil {
			t.Fatal(err)
		}
		return answer
	}
	record := func(key string, height uint64) *lightpb.Ask {
		return &lightpb.Ask{Want: &lightpb.Ask_Record{Record: &lightpb.Record{Key: []byte(key), Height: height}}}
	}
	if p := ask(record("A00042", 1)).GetProof(); !strings.Contains(string(p), "42 of 1") {
		t.Errorf("proof %q", p)
	}
	unknown := new(lightpb.Ask) // a question of a kind that there is not
	if err := proto.Unmarshal([]byte{5 << 3, 1}, unknown); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		ask  *lightpb.Ask
		code lightpb.Error_Code
	}{
		"flat record":     {record("a1", 1), lightpb.Error_INVALID},
		"no key":          {record("", 1), lightpb.Error_INVALID},
		"long key":        {record("A"+strings.Repeat("x", maxDeskKey), 1), lightpb.Error_INVALID},
		"later state":     {record("A00042", 3), lightpb.Error_TOO_HIGH},
		"too large":       {record("B1", 2), lightpb.Error_OTHER},
		"flat table":      {&lightpb.Ask{Want: &lightpb.Ask_Keys{Keys: &lightpb.Keys{Prefix: []byte("a")}}}, lightpb.Error_INVALID},
		"all tables":      {&lightpb.Ask{Want: &lightpb.Ask_Keys{Keys: &lightpb.Keys{}}}, lightpb.Error_INVALID},
		"nothing":         {&lightpb.Ask{}, lightpb.Error_INVALID},
		"no chain, block": {&lightpb.Ask{Want: &lightpb.Ask_Block{Block: 1}}, lightpb.Error_NO_LEDGER},
		"no chain, tip":   {&lightpb.Ask{Want: &lightpb.Ask_Tip{}}, lightpb.Error_NO_LEDGER},
		"unknown":         {unknown, lightpb.Error_INVALID},
	} {
		if e := ask(c.ask).GetError(); e == nil || e.GetCode() != c.code {
			t.Errorf("%s: %v, want %s", name, e, c.code)
		}
	}
	// Of what is not there the answer is short, however large the records beside it are.
	for i := 0; ; i++ { // until B1 is beside the key
		key := fmt.Sprintf("A absent %d", i)
		p, err := s.Prove([]byte(key), 2)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(p.Commitment, []byte("\x0a\x02B1")) {
			continue
		}
		if got := ask(record(key, 2)).GetProof(); !bytes.Equal(got, p.Marshal()) || len(got) > 8<<10 {
			t.Errorf("proof of absence beside a large record: %d bytes", len(got))
		}
		break
	}
	var all [][]byte
	for {
		keys := &lightpb.Keys{Prefix: []byte("A"), Limit: 1 << 30}
		if len(all) > 0 {
			keys.After = all[len(all)-1]
		}
		page := ask(&lightpb.Ask{Want: &lightpb.Ask_Keys{Keys: keys}}).GetKeys().GetKeys()
		if len(page) > light.MaxKeys {
			t.Fatalf("%d keys in one answer", len(page))
		}
		if len(page) == 0 {
			break
		}
		all = append(all, page...)
	}
	if len(all) != 2500 || !slices.IsSortedFunc(all, slices.Compare) {
		t.Errorf("%d keys of 2500", len(all))
	}
	// A key before the table begins it; after one beyond it nothing comes.
	for after, want := range map[string]string{"0": "A00000", "Z": "", "B": ""} {
		list := ask(&lightpb.Ask{Want: &lightpb.Ask_Keys{Keys: &lightpb.Keys{Prefix: []byte("A"), After: []byte(after), Limit: 1}}}).GetKeys()
		if list == nil || string(bytes.Join(list.GetKeys(), nil)) != want {
			t.Errorf("keys after %q: %q, want %q", after, list.GetKeys(), want)
		}
	}
}

// FuzzDesk gives a desk any question.
func FuzzDesk(f *testing.F) {
	for _, a := range []*lightpb.Ask{
		{Want: &lightpb.Ask_Block{Block: 1}}, {Want: &lightpb.Ask_Tip{}}, {Want: &lightpb.Ask_Evidence{Evidence: []byte{10, 0}}},
		{Want: &lightpb.Ask_Record{Record: &lightpb.Record{Key: []byte("A00001"), Height: 2}}}, {Want: &lightpb.Ask_Keys{Keys: &lightpb.Keys{Prefix: []byte("A"), After: []byte("A00100"), Limit: 7}}},
	} {
		raw, err := proto.Marshal(a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	desk := &Desk{Chain: noChain, Store: deskStore(f), Penalise: func(mesh.Address, string, int) {}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		ask := new(lightpb.Ask)
		if proto.Unmarshal(raw, ask) != nil {
			return
		}
		answer := desk.answer(t.Context(), deskPeer, ask)
		if answer.GetGot() == nil {
			t.Fatal("no answer")
		}
		if len(answer.GetKeys().GetKeys()) > light.MaxKeys {
			t.Fatal("more keys than an answer may have")
		}
		if e, _ := answer.GetGot().(*lightpb.Answer_Error); e == nil && !ledger.Proven(ask.GetRecord().GetKey()) && !ledger.Proven(ask.GetKeys().GetPrefix()) {
			t.Fatalf("an answer without a chain: %v", answer)
		}
	})
}
