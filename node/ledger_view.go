package node

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/node/api"
)

var _ api.Ledger = (*Node)(nil)

// LedgerStatus tells where the chain stands.
func (n *Node) LedgerStatus(ctx context.Context) (api.LedgerStatus, error) {
	var s api.LedgerStatus
	if n.chain == nil {
		return s, api.ErrNoLedger
	}
	if n.chain.store == nil {
		head, err := n.chain.light.Head(ctx)
		if err != nil {
			return s, err
		}
		s = api.LedgerStatus{Light: true, Height: head.Height - 1, BlockTime: head.Time, AppHash: hex.EncodeToString(head.AppHash),
			Validators: head.Validators, Peers: len(n.chain.fullPeers())}
		if !head.Witnessed {
			s.Error = "one full node is connected: nobody confirms what it says of the newest blocks"
		}
	} else if full, err := n.chain.running(); err != nil {
		s.Height, s.Doing = n.chain.store.Height(), n.chain.said()
		if s.CatchingUp = s.Doing != ""; !s.CatchingUp {
			s.Error = err.Error()
		}
		return s, nil
	} else {
		now, err := full.Status()
		if err != nil {
			return s, err
		}
		s = api.LedgerStatus{Height: now.Height, BlockTime: now.Time, AppHash: hex.EncodeToString(now.AppHash), CatchingUp: now.CatchingUp,
			Validator: now.Validator, Power: share(uint64(now.Power), uint64(now.Total)), Peers: now.Peers, Waiting: now.Waiting,
			Validators: now.Validators, Error: now.Problem, Doing: cmp.Or(now.Doing, n.chain.said())}
		if s.Height == 0 {
			return s, nil
		}
	}
	r, err := n.read(ctx)
	if err != nil {
		return s, err
	}
	e, err := r.Epoch()
	p, err2 := r.Params()
	if _, err3 := r.end(); errors.Join(err, err2, err3) != nil {
		return s, errors.Join(err, err2, err3)
	}
	s.Epoch, s.EpochFirst, s.EpochNext = mesh.Epoch(e.GetEpoch()), mesh.Height(e.GetStart()), mesh.Height(e.GetStart()+p.GetEpochBlocks())
	return s, nil
}

func share(part, all uint64) float64 {
	if all == 0 {
		return 0
	}
	return float64(part) / float64(all)
}

// Wallet shows an account.
func (n *Node) Wallet(ctx context.Context, address mesh.Address) (api.Wallet, error) {
	self := n.core.Net.Address()
	if address.IsZero() {
		address = self
	}
	r, err := n.read(ctx)
	if err != nil {
		return api.Wallet{}, err
	}
	w, err := n.wallet(r, address)
	height, ended := r.end()
	if err := errors.Join(ended, err); err != nil {
		return api.Wallet{}, fmt.Errorf("read account %s: %w", address.Short(), err)
	}
	w.Height, w.Proven = height, r.proven
	return w, nil
}

func (n *Node) wallet(r *reading, address mesh.Address) (api.Wallet, error) {
	w := api.Wallet{Address: address, Escrows: []api.Escrow{}}
	account, err := r.Account(address)
	if err != nil {
		return w, err
	}
	w.Balance, w.Nonce = mesh.Amount(account.GetBalance()), account.GetNonce()
	vesting, err := r.Vesting(address)
	if err != nil {
		return w, err
	}
	for _, e := range vesting.GetEntries() {
		w.Vesting += mesh.Amount(e.GetTotal() - e.GetReleased())
	}
	host, err := r.Host(address)
	if err != nil {
		return w, err
	}
	if host != nil {
		w.Staked = mesh.Amount(host.GetCollateral())
		unbonding, err := r.Unbonding()
		if err != nil {
			return w, err
		}
		w.Unbonding = unbonding[address]
	}
	for _, id := range n.purse.escrows(address) {
		e, _, err := r.Escrow(id)
		if err != nil {
			return w, err
		}
		if e != nil {
			w.Escrows = append(w.Escrows, n.escrowOf(id, e))
		}
	}
	return w, nil
}

func (n *Node) escrowOf(id mesh.Hash, e *ledgerpb.Escrow) api.Escrow {
	out := api.Escrow{Escrow: id, Amount: mesh.Amount(e.GetAmount()), Lanes: mesh.Amount(e.GetLanes()), Pool: mesh.Amount(e.GetPool()),
		Closing: mesh.Epoch(e.GetClosing()), Spent: n.purse.spent(id)}
	copy(out.Owner[:], e.GetOwner())
	return out
}

// Hosts lists the hosts on the ledger.
func (n *Node) Hosts(ctx context.Context) ([]api.LedgerHost, error) {
	r, err := n.read(ctx)
	if err != nil {
		return nil, err
	}
	out, err := n.hosts(r)
	if _, ended := r.end(); errors.Join(ended, err) != nil {
		return nil, fmt.Errorf("read the hosts: %w", errors.Join(ended, err))
	}
	return out, nil
}

func delegatesOf(v ledger.View, host mesh.Address) ([]api.Delegate, error) {
	all, err := v.Delegations(host)
	var out []api.Delegate
	for _, d := range all {
		out = append(out, api.Delegate{Model: d.Model, To: d.To})
	}
	return out, err
}

func (n *Node) hosts(r *reading) ([]api.LedgerHost, error) {
	epoch, err := r.Epoch()
	if err != nil {
		return nil, err
	}
	weights := make(map[mesh.Address]uint64)
	for back := uint64(1); back <= 2 && back <= epoch.GetEpoch(); back++ {
		rewards, err := r.Rewards(mesh.Epoch(epoch.GetEpoch() - back))
		if err != nil {
			return nil, err
		}
		if rewards != nil {
			for _, w := range rewards.GetRewards() {
				weights[mesh.AddressOf(w.GetHost())] = w.GetWeight()
			}
			break
		}
	}
	all, err := r.Hosts()
	if err != nil {
		return nil, err
	}
	unbonding, err := r.Unbonding()
	if err != nil {
		return nil, err
	}
	var power uint64
	for _, h := range all {
		power += h.Record.GetPower()
	}
	out := []api.LedgerHost{}
	for _, h := range all {
		doc := api.LedgerHost{Host: h.Address, Since: mesh.Epoch(h.Record.GetSince()), Collateral: mesh.Amount(h.Record.GetCollateral()),
			Unbonding: unbonding[h.Address],
			Weight:    weights[h.Address], Power: share(h.Record.GetPower(), power), JailedUntil: mesh.Epoch(h.Record.GetJailedUntil()),
			Tombstoned: h.Record.GetTombstoned(), ConsensusKey: hex.EncodeToString(h.Record.GetConsensusKey()), Own: h.Address == n.core.Net.Address(), Proven: r.proven}
		copy(doc.Owner[:], h.Record.GetOwner())
		if !r.proven { // windows of missed blocks and delegates are not among the proven records
			var err2 error
			doc.Missed, err = r.Missed(h.Address)
			if doc.Delegates, err2 = delegatesOf(r.View, h.Address); errors.Join(err, err2) != nil {
				return nil, errors.Join(err, err2)
			}
		}
		out = append(out, doc)
	}
	return out, nil
}

// Epochs lists the newest epochs, the one that runs first.
func (n *Node) Epochs(ctx context.Context, limit int) ([]api.Epoch, error) {
	r, err := n.read(ctx)
	if err != nil {
		return nil, err
	}
	out, err := func() ([]api.Epoch, error) {
		now, err := r.Epoch()
		if err != nil {
			return nil, err
		}
		out := []api.Epoch{}
		for e := int64(now.GetEpoch()); e >= 0 && len(out) < limit; e-- {
			doc, err := epochOf(r, now, mesh.Epoch(e), false)
			if errors.Is(err, api.ErrNotFound) {
				break // pruned
			}
			if err != nil {
				return nil, err
			}
			out = append(out, doc)
		}
		return out, nil
	}()
	if _, ended := r.end(); errors.Join(ended, err) != nil {
		return nil, fmt.Errorf("read the epochs: %w", errors.Join(ended, err))
	}
	return out, nil
}

// Epoch shows one epoch.
func (n *Node) Epoch(ctx context.Context, e mesh.Epoch) (api.Epoch, error) {
	r, err := n.read(ctx)
	if err != nil {
		return api.Epoch{}, err
	}
	now, err := r.Epoch()
	var out api.Epoch
	if err == nil {
		out, err = epochOf(r, now, e, true)
	}
	if _, ended := r.end(); errors.Join(ended, err) != nil {
		return out, errors.Join(ended, err)
	}
	return out, nil
}

func epochOf(r *reading, now *ledgerpb.EpochState, e mesh.Epoch, whole bool) (api.Epoch, error) {
	out := api.Epoch{Epoch: e}
	if uint64(e) > now.GetEpoch() {
		return out, fmt.Errorf("epoch %d has not begun, this is epoch %d: %w", e, now.GetEpoch(), api.ErrNotFound)
	}
	if uint64(e) == now.GetEpoch() {
		out.First, out.Seed = mesh.Height(now.GetStart()), hex.EncodeToString(now.GetSeed())
		return out, nil
	}
	result, err := r.EpochResult(e)
	if err != nil {
		return out, err
	}
	if result == nil {
		ended, err := r.Ended()
		if err != nil {
			return out, err
		}
		if ended != nil && ended.GetEpoch() == uint64(e) { // being settled
			out.First, out.Last, out.Seed = mesh.Height(ended.GetFirst()), mesh.Height(ended.GetLast()), hex.EncodeToString(ended.GetSeed())
			return out, nil
		}
		return out, fmt.Errorf("epoch %d is not kept any more: %w", e, api.ErrNotFound)
	}
	out = api.Epoch{Epoch: e, First: mesh.Height(result.GetFirst()), Last: mesh.Height(result.GetLast()), Closed: true,
		Seed: hex.EncodeToString(result.GetSeed()), Emission: mesh.Amount(result.GetEmission()), Paid: mesh.Amount(result.GetPaid()),
		Settlements: result.GetSettlements(), Receipts: result.GetReceipts(), Hosts: result.GetHosts(), Weight: result.GetWeight(),
		RewardsRoot: hex.EncodeToString(result.GetRewards())}
	if !whole {
		return out, nil
	}
	rewards, err := r.Rewards(e)
	if err != nil {
		return out, err
	}
	var power uint64
	for _, w := range rewards.GetRewards() {
		power += w.GetPower()
	}
	for _, w := range rewards.GetRewards() {
		out.Rewards = append(out.Rewards, api.EpochReward{Host: mesh.AddressOf(w.GetHost()), Weight: w.GetWeight(),
			Reward: mesh.Amount(w.GetReward()), Paid: mesh.Amount(w.GetPaid()), Power: share(w.GetPower(), power)})
	}
	return out, nil
}

// Proposals lists the proposals, the newest first.
func (n *Node) Proposals(ctx context.Context) ([]api.Proposal, error) {
	r, err := n.read(ctx)
	if err != nil {
		return nil, err
	}
	out, err := proposals(r)
	if _, ended := r.end(); errors.Join(ended, err) != nil {
		return nil, fmt.Errorf("read the proposals: %w", errors.Join(ended, err))
	}
	slices.SortFunc(out, func(a, b api.Proposal) int { return cmp.Compare(b.ID, a.ID) })
	return out, nil
}

// proposals reads all proposals, and the ballots of those whose vote is open.
func proposals(r *reading) ([]api.Proposal, error) {
	all, err := r.Proposals()
	out := []api.Proposal{}
	for _, p := range all {
		doc := proposalOf(p)
		doc.Proven = r.proven
		if p.GetStatus() == ledger.StatusVoting && !r.proven {
			ballots, berr := r.Ballots(p.GetId())
			err = errors.Join(err, berr)
			doc.Ballots = ballotsOf(ballots)
		}
		out = append(out, doc)
	}
	return out, err
}

func ballotsOf(all []ledger.HostBallot) (out []api.Ballot) {
	for _, b := range all {
		out = append(out, api.Ballot{Host: b.Host, Option: strings.ToLower(b.Option.String())})
	}
	return out
}

// Proposal shows one proposal and its ballots. One that is not there may be in a block that
// others have already.
func (n *Node) Proposal(ctx context.Context, id uint64) (api.Proposal, error) {
	limit := time.Now().Add(2 * n.blockTime())
	for {
		p, err := n.proposal(ctx, id)
		if !errors.Is(err, api.ErrNotFound) || time.Now().After(limit) {
			return p, err
		}
		select {
		case <-ctx.Done():
			return p, err
		case <-time.After(n.blockTime() / 4):
		}
	}
}

// blockTime is how long it takes from a block to the next, and no longer than a person waits.
func (n *Node) blockTime() time.Duration {
	return min(time.Duration(n.genesis.BlockMS)*time.Millisecond, 5*time.Second)
}

func (n *Node) proposal(ctx context.Context, id uint64) (api.Proposal, error) {
	r, err := n.read(ctx)
	if err != nil {
		return api.Proposal{}, err
	}
	p, err := r.Proposal(id)
	var ballots []ledger.HostBallot
	if err == nil && p != nil && !r.proven {
		ballots, err = r.Ballots(id)
	}
	if _, ended := r.end(); errors.Join(ended, err) != nil {
		return api.Proposal{}, fmt.Errorf("read proposal %d: %w", id, errors.Join(ended, err))
	}
	if p == nil {
		return api.Proposal{}, fmt.Errorf("proposal %d: %w", id, api.ErrNotFound)
	}
	out := proposalOf(p)
	out.Proven, out.Ballots = r.proven, ballotsOf(ballots)
	return out, nil
}

func proposalOf(p *ledgerpb.Proposal) api.Proposal {
	body := p.GetBody()
	out := api.Proposal{ID: p.GetId(), Title: body.GetTitle(), Text: body.GetText(), Kind: "text", Deposit: mesh.Amount(body.GetDeposit()),
		Opened: mesh.Height(p.GetOpened()), Ends: mesh.Height(p.GetEnds()), Status: p.GetStatus(), Reason: p.GetReason(),
		Tally: map[string]uint64{"yes": p.GetYes(), "no": p.GetNo(), "abstain": p.GetAbstain(), "veto": p.GetVeto(), "all": p.GetWeight()}}
	copy(out.Proposer[:], p.GetProposer())
	m := body.ProtoReflect()
	if f := m.WhichOneof(m.Descriptor().Oneofs().ByName("change")); f != nil {
		out.Kind = string(f.Name())
		if b, err := protojson.Marshal(m.Get(f).Message().Interface()); err == nil {
			out.Change = json.RawMessage(b)
		}
	}
	return out
}

// Rules shows what governance decides.
func (n *Node) Rules(ctx context.Context) (api.Rules, error) {
	r, err := n.read(ctx)
	if err != nil {
		return api.Rules{}, err
	}
	out, err := rulesOf(r)
	if _, ended := r.end(); errors.Join(ended, err) != nil {
		return out, fmt.Errorf("read the rules: %w", errors.Join(ended, err))
	}
	return out, nil
}

func rulesOf(r *reading) (api.Rules, error) {
	out := api.Rules{Params: make(map[string]uint64), Models: []api.LedgerModel{}}
	params, err := r.Params()
	if err != nil {
		return out, err
	}
	m := params.ProtoReflect()
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		if f := fields.Get(i); f.Kind() == protoreflect.Uint64Kind {
			out.Params[string(f.Name())] = m.Get(f).Uint()
		}
	}
	models, err := r.Models()
	if err != nil {
		return out, err
	}
	for _, m := range models {
		out.Models = append(out.Models, api.LedgerModel{Model: m.ID, Name: m.GetName(), Coefficient: m.GetCoefficient(),
			Since: mesh.Epoch(m.GetSince()), Retired: mesh.Epoch(m.GetRetired())})
	}
	plan, err := r.Plan()
	if err != nil || plan == nil {
		return out, err
	}
	_, known := upgrades[plan.GetName()]
	out.Upgrade = &api.Upgrade{Name: plan.GetName(), Height: mesh.Height(plan.GetHeight()), Info: plan.GetInfo(), Known: known}
	return out, nil
}
