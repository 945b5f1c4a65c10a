package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/gonka-mesh/mesh"
)

// LedgerStatus is where the chain stands, as this node sees it.
type LedgerStatus struct {
	Height     mesh.Height `json:"height"`
	BlockTime  time.Time   `json:"block_time"`
	AppHash    string      `json:"app_hash"` // after that height
	Epoch      mesh.Epoch  `json:"epoch"`
	EpochFirst mesh.Height `json:"epoch_first"`
	EpochNext  mesh.Height `json:"epoch_next"` // first height of the next epoch
	Light      bool        `json:"light"`      // verified by headers and proofs, not computed here
	CatchingUp bool        `json:"catching_up"`
	Doing      string      `json:"doing,omitempty"` // what it does to catch up, or waits for
	Validators int         `json:"validators"`
	Validator  bool        `json:"validator"` // this node is one
	Power      float64     `json:"power"`     // its share of the voting power, 0 to 1
	Peers      int         `json:"peers"`     // that it exchanges blocks with
	Waiting    int         `json:"waiting"`   // transactions
	Error      string      `json:"error,omitempty"`
}

// Wallet is an account and what belongs to it.
type Wallet struct {
	Address   mesh.Address `json:"address"`
	Balance   mesh.Amount  `json:"balance_ngonka"`
	Nonce     uint64       `json:"nonce"`
	Vesting   mesh.Amount  `json:"vesting_ngonka"` // still to be released
	Staked    mesh.Amount  `json:"staked_ngonka"`  // collateral of the host of this address
	Unbonding mesh.Amount  `json:"unbonding_ngonka"`
	Escrows   []Escrow     `json:"escrows"` // that this node opened and remembers
	Height    mesh.Height  `json:"height"`
	Proven    bool         `json:"proven"` // by a header that this node verified
}

// Escrow is money set aside for hosts that answer.
type Escrow struct {
	Escrow  mesh.Hash    `json:"escrow"`
	Owner   mesh.Address `json:"owner"`
	Amount  mesh.Amount  `json:"amount_ngonka"`
	Lanes   mesh.Amount  `json:"lanes_ngonka"` // of it, for hosts by name
	Pool    mesh.Amount  `json:"pool_ngonka"`  // of it, for any host in this epoch
	Spent   mesh.Amount  `json:"spent_ngonka"` // by vouchers of this node, not settled yet
	Closing mesh.Epoch   `json:"closing"`      // 0: open
}

// LedgerHost is a host as the ledger knows it.
type LedgerHost struct {
	Host         mesh.Address `json:"host"`
	Owner        mesh.Address `json:"owner"`
	Since        mesh.Epoch   `json:"since"`
	Collateral   mesh.Amount  `json:"collateral_ngonka"`
	Unbonding    mesh.Amount  `json:"unbonding_ngonka"`
	Weight       uint64       `json:"weight"` // of the last epoch that was closed
	Power        float64      `json:"power"`  // share of the voting power, 0 to 1
	JailedUntil  mesh.Epoch   `json:"jailed_until"`
	Tombstoned   bool         `json:"tombstoned"`
	Missed       uint64       `json:"missed"` // blocks of the last window
	ConsensusKey string       `json:"consensus_key"`
	Delegates    []Delegate   `json:"delegates,omitempty"`
	Own          bool         `json:"own"`    // this node
	Proven       bool         `json:"proven"` // by a header that this node verified, as light nodes do; missed and delegates are then not known
}

// Delegate votes for a host what that has from work on a model.
type Delegate struct {
	Model mesh.ModelID `json:"model"` // empty: each without a delegate of its own
	To    mesh.Address `json:"to"`
}

// Epoch is one epoch and what came of it.
type Epoch struct {
	Epoch       mesh.Epoch    `json:"epoch"`
	First       mesh.Height   `json:"first"`
	Last        mesh.Height   `json:"last"` // 0 while it runs
	Closed      bool          `json:"closed"`
	Seed        string        `json:"seed"`
	Emission    mesh.Amount   `json:"emission_ngonka"`
	Paid        mesh.Amount   `json:"paid_ngonka"`
	Settlements uint64        `json:"settlements"`
	Receipts    uint64        `json:"receipts"`
	Hosts       uint64        `json:"hosts"`
	Weight      uint64        `json:"weight"`
	RewardsRoot string        `json:"rewards_root"`
	Rewards     []EpochReward `json:"rewards,omitempty"`
}

// EpochReward is a host's part of an epoch.
type EpochReward struct {
	Host   mesh.Address `json:"host"`
	Weight uint64       `json:"weight"`
	Reward mesh.Amount  `json:"reward_ngonka"` // vests
	Paid   mesh.Amount  `json:"paid_ngonka"`   // by payers, at once
	Power  float64      `json:"power"`         // share of the voting power of the set that it was chosen for
}

// Proposal is a question to those who do the work.
type Proposal struct {
	ID       uint64            `json:"id"`
	Title    string            `json:"title"`
	Text     string            `json:"text"`
	Proposer mesh.Address      `json:"proposer"`
	Kind     string            `json:"kind"` // params, model, upgrade, spend, text
	Change   json.RawMessage   `json:"change,omitempty"`
	Deposit  mesh.Amount       `json:"deposit_ngonka"`
	Opened   mesh.Height       `json:"opened"`
	Ends     mesh.Height       `json:"ends"`
	Status   string            `json:"status"`
	Reason   string            `json:"reason,omitempty"`
	Tally    map[string]uint64 `json:"tally"` // yes, no, abstain, veto, all; by weight
	Ballots  []Ballot          `json:"ballots,omitempty"`
	Proven   bool              `json:"proven"` // by a header that this node verified, as light nodes do; ballots are then not known
}

// Ballot is one host's vote.
type Ballot struct {
	Host   mesh.Address `json:"host"`
	Option string       `json:"option"`
}

// Rules are what governance decides.
type Rules struct {
	Params  map[string]uint64 `json:"params"`
	Models  []LedgerModel     `json:"models"`
	Upgrade *Upgrade          `json:"upgrade,omitempty"`
}

// LedgerModel is a model that work may count for.
type LedgerModel struct {
	Model       mesh.ModelID `json:"model"`
	Name        string       `json:"name"`
	Coefficient uint64       `json:"coefficient"`
	Since       mesh.Epoch   `json:"since"`
	Retired     mesh.Epoch   `json:"retired"` // 0: approved
}

// Upgrade is a planned change of the software.
type Upgrade struct {
	Name   string      `json:"name"`
	Height mesh.Height `json:"height"`
	Info   string      `json:"info,omitempty"`
	Known  bool        `json:"known"` // this software carries it out
}

// Submitted is a transaction that is in a block.
type Submitted struct {
	ID     mesh.Hash    `json:"id"`
	Kind   string       `json:"kind"`
	Sender mesh.Address `json:"sender"`
	Height mesh.Height  `json:"height"`
	Fee    mesh.Amount  `json:"fee_ngonka"`
	Escrow mesh.Hash    `json:"escrow"` // of an open_escrow
}

// Submit is the body of POST /mesh/v1/tx: an action that the node signs with its own
// key, in the JSON form of ledgerpb.Tx; or a transaction that was signed elsewhere.
type Submit struct {
	Action json.RawMessage `json:"action,omitempty"`
	Fee    mesh.Amount     `json:"fee_ngonka,omitempty"` // for the action; default the least
	Signed []byte          `json:"signed,omitempty"`
}

// ErrNoLedger is the answer to every question about money on a network without a ledger.
var ErrNoLedger = errors.New("this network has no ledger yet; `mesh dev` makes one that has")

// Ledger is what the routes of the ledger show and do. Every method fails with
// ErrNoLedger where the network has none.
type Ledger interface {
	LedgerStatus(ctx context.Context) (LedgerStatus, error)
	Wallet(ctx context.Context, address mesh.Address) (Wallet, error) // zero: this node's
	Hosts(ctx context.Context) ([]LedgerHost, error)
	Epochs(ctx context.Context, limit int) ([]Epoch, error) // the newest first
	Epoch(ctx context.Context, n mesh.Epoch) (Epoch, error)
	Proposals(ctx context.Context) ([]Proposal, error) // the newest first
	Proposal(ctx context.Context, id uint64) (Proposal, error)
	Rules(ctx context.Context) (Rules, error)
	Submit(ctx context.Context, in Submit) (Submitted, error)
}

func ledgerRoutes(mux *http.ServeMux, l Ledger, g Guard) {
	mux.HandleFunc("GET /mesh/v1/ledger", func(w http.ResponseWriter, r *http.Request) {
		doc, err := l.LedgerStatus(r.Context())
		answer(w, doc, err)
	})
	mux.HandleFunc("GET /mesh/v1/wallet", g.Control(func(w http.ResponseWriter, r *http.Request) {
		var address mesh.Address
		if text := r.URL.Query().Get("address"); text != "" {
			var err error
			if address, err = mesh.ParseAddress(text); err != nil {
				refuse(w, http.StatusBadRequest, "invalid_address", err.Error())
				return
			}
		}
		doc, err := l.Wallet(r.Context(), address)
		answer(w, doc, err)
	}))
	mux.HandleFunc("GET /mesh/v1/hosts", func(w http.ResponseWriter, r *http.Request) {
		doc, err := l.Hosts(r.Context())
		answer(w, doc, err)
	})
	mux.HandleFunc("GET /mesh/v1/epochs", func(w http.ResponseWriter, r *http.Request) {
		limit, err := strconv.Atoi(r.URL.Query().Get("limit"))
		if err != nil || limit < 1 || limit > 1000 {
			limit = 20
		}
		doc, err := l.Epochs(r.Context(), limit)
		answer(w, doc, err)
	})
	mux.HandleFunc("GET /mesh/v1/epochs/{n}", numbered(func(ctx context.Context, n uint64) (any, error) { return l.Epoch(ctx, mesh.Epoch(n)) }))
	mux.HandleFunc("GET /mesh/v1/proposals", func(w http.ResponseWriter, r *http.Request) {
		doc, err := l.Proposals(r.Context())
		answer(w, doc, err)
	})
	mux.HandleFunc("GET /mesh/v1/proposals/{n}", numbered(func(ctx context.Context, n uint64) (any, error) { return l.Proposal(ctx, n) }))
	mux.HandleFunc("GET /mesh/v1/rules", func(w http.ResponseWriter, r *http.Request) {
		doc, err := l.Rules(r.Context())
		answer(w, doc, err)
	})
	mux.HandleFunc("POST /mesh/v1/tx", g.Control(func(w http.ResponseWriter, r *http.Request) {
		var in Submit
		dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&in); err != nil || (in.Action == nil) == (in.Signed == nil) || in.Fee > 0 && in.Signed != nil {
			refuse(w, http.StatusBadRequest, "invalid_body", `want {"action": {…}}, with "fee_ngonka" or without, or {"signed": "…"}`)
			return
		}
		doc, err := l.Submit(r.Context(), in)
		answer(w, doc, err)
	}))
}

func numbered(fn func(ctx context.Context, n uint64) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseUint(r.PathValue("n"), 10, 64)
		if err != nil {
			refuse(w, http.StatusBadRequest, "invalid_number", "want a number, not "+short(r.PathValue("n")))
			return
		}
		doc, err := fn(r.Context(), n)
		answer(w, doc, err)
	}
}

// LedgerStatus returns where the chain stands.
func (c *Client) LedgerStatus(ctx context.Context) (out LedgerStatus, err error) {
	err = c.call(ctx, http.MethodGet, "/mesh/v1/ledger", nil, &out)
	return out, err
}

// Wallet returns an account; that of the node for the zero address.
func (c *Client) Wallet(ctx context.Context, address mesh.Address) (out Wallet, err error) {
	path := "/mesh/v1/wallet"
	if !address.IsZero() {
		path += "?address=" + url.QueryEscape(address.String())
	}
	err = c.call(ctx, http.MethodGet, path, nil, &out)
	return out, err
}

// Hosts returns the hosts on the ledger.
func (c *Client) Hosts(ctx context.Context) (out []LedgerHost, err error) {
	err = c.call(ctx, http.MethodGet, "/mesh/v1/hosts", nil, &out)
	return out, err
}

// Epochs returns the newest epochs.
func (c *Client) Epochs(ctx context.Context, limit int) (out []Epoch, err error) {
	err = c.call(ctx, http.MethodGet, "/mesh/v1/epochs?limit="+strconv.Itoa(limit), nil, &out)
	return out, err
}

// Epoch returns one epoch.
func (c *Client) Epoch(ctx context.Context, n uint64) (out Epoch, err error) {
	err = c.call(ctx, http.MethodGet, "/mesh/v1/epochs/"+strconv.FormatUint(n, 10), nil, &out)
	return out, err
}

// Proposals returns the proposals, the newest first.
func (c *Client) Proposals(ctx context.Context) (out []Proposal, err error) {
	err = c.call(ctx, http.MethodGet, "/mesh/v1/proposals", nil, &out)
	return out, err
}

// Proposal returns one proposal with its ballots.
func (c *Client) Proposal(ctx context.Context, id uint64) (out Proposal, err error) {
	err = c.call(ctx, http.MethodGet, "/mesh/v1/proposals/"+strconv.FormatUint(id, 10), nil, &out)
	return out, err
}

// Rules returns parameters, models and a planned upgrade.
func (c *Client) Rules(ctx context.Context) (out Rules, err error) {
	err = c.call(ctx, http.MethodGet, "/mesh/v1/rules", nil, &out)
	return out, err
}

// Submit puts a transaction on the chain and waits for its block.
func (c *Client) Submit(ctx context.Context, in Submit) (out Submitted, err error) {
	err = c.call(ctx, http.MethodPost, "/mesh/v1/tx", in, &out)
	return out, err
}
