// Package api is the local control API of a node: the JSON documents, the routes
// under /mesh/v1/, the guard that keeps web pages and strangers out, and the
// client that the command line uses. docs/json.md tables every document; fields
// are add-only.
package api

import (
	"time"

	"github.com/gonka-mesh/mesh"
)

// Status is what one node says about itself.
type Status struct {
	Version      string         `json:"version"`
	Protocol     int            `json:"protocol"`
	Peer         mesh.Address   `json:"peer"`
	Role         string         `json:"role"`
	Network      mesh.NetworkID `json:"network"`
	Genesis      mesh.Hash      `json:"genesis"`
	Epoch        mesh.Epoch     `json:"epoch"`
	Owner        mesh.Address   `json:"owner"`
	Home         string         `json:"home"`
	API          string         `json:"api"`
	PID          int            `json:"pid"`
	Started      time.Time      `json:"started"`
	UptimeS      int64          `json:"uptime_s"`
	Addrs        []string       `json:"addrs"`
	Peers        int            `json:"peers"`
	Reachability Reachability   `json:"reachability"`
	Engines      []Engine       `json:"engines"`
	Served       Served         `json:"served"`
	PricePrompt  mesh.Amount    `json:"price_prompt_ngonka"` // of a token
	PriceOutput  mesh.Amount    `json:"price_output_ngonka"`
	MemoryBytes  int64          `json:"memory_bytes"`   // resident set
	KVLimitBytes int64          `json:"kv_limit_bytes"` // for keys and values of all models
	GPUs         []GPU          `json:"gpus"`
	GPUReason    string         `json:"gpu_reason,omitempty"` // why there are none
	Ledger       *LedgerStatus  `json:"ledger,omitempty"`     // absent on a network without one
}

// GPU is an accelerator of this machine, as its driver tells. What it does not tell
// is null, or 0 bytes.
type GPU struct {
	Index       int      `json:"index"`
	Name        string   `json:"name"`
	UUID        string   `json:"uuid"` // its first part
	PCI         string   `json:"pci"`
	Driver      string   `json:"driver"`
	CUDA        string   `json:"cuda"`
	MemoryBytes uint64   `json:"memory_bytes"`
	UsedBytes   uint64   `json:"used_bytes"`
	Utilisation *int     `json:"utilisation"` // per cent of the time
	Temperature *int     `json:"temperature_c"`
	Power       *float64 `json:"power_w"`
	Fault       string   `json:"fault,omitempty"`
}

// Reachability says whether strangers can dial this node, and why.
type Reachability struct {
	State    string   `json:"state"` // public, private, relayed, unknown
	Reason   string   `json:"reason"`
	Remedy   string   `json:"remedy,omitempty"`
	External []string `json:"external"`
	PortMap  string   `json:"port_map"` // what the router said to a request for a port
}

// Engine is one model that this node serves.
type Engine struct {
	Model   mesh.ModelID `json:"model"`
	Name    string       `json:"name"`
	Class   string       `json:"class"`
	Engine  string       `json:"engine"`
	Weights string       `json:"weights"`
	Context int          `json:"context"` // tokens
	Slots   int          `json:"slots"`
	Active  int          `json:"active"` // requests being decoded
	Queued  int          `json:"queued"`
	Bytes   int64        `json:"bytes"`
	KVBytes int64        `json:"kv_bytes"` // its share of kv_limit_bytes

	ModelContext int `json:"model_context"` // tokens; Context is less where the memory is
}

// Served counts what this node has computed for others and for itself since it started.
type Served struct {
	Receipts     int         `json:"receipts"`
	PromptTokens int64       `json:"prompt_tokens"`
	OutputTokens int64       `json:"output_tokens"`
	Earned       mesh.Amount `json:"earned_ngonka"` // by receipts, unsettled
}

// Peer is another node that this one is connected to.
type Peer struct {
	Peer      mesh.Address `json:"peer"`
	Role      string       `json:"role"`
	Agent     string       `json:"agent"`
	Addrs     []string     `json:"addrs"`
	Direction string       `json:"direction"` // in, out
	Transport string       `json:"transport"` // tcp, quic, relay
	LatencyMS float64      `json:"latency_ms"`
	Since     time.Time    `json:"since"`
	Score     float64      `json:"score"` // penalty points; 0 is good
	Models    []PeerModel  `json:"models"`
}

// PeerModel is a model in a peer's advert.
type PeerModel struct {
	Model   mesh.ModelID `json:"model"`
	Name    string       `json:"name"`
	Class   string       `json:"class"`
	Context int          `json:"context"`
}

// Model is one that this node has, or knows of.
type Model struct {
	Model   mesh.ModelID `json:"model"`
	Name    string       `json:"name"`
	Root    mesh.Hash    `json:"root"` // of its file, for `mesh model pull`
	Bytes   int64        `json:"bytes"`
	Arch    string       `json:"arch,omitempty"`
	Weights string       `json:"weights,omitempty"`
	Context int          `json:"context"`
	Class   string       `json:"class,omitempty"`
	Served  bool         `json:"served"` // by this node
	Builtin bool         `json:"builtin"`
	Path    string       `json:"path,omitempty"`
	Hosts   int          `json:"hosts"` // other nodes that serve it, as far as known
}

// Receipt is one segment of an answer that this node gave or got.
type Receipt struct {
	Request      mesh.Hash    `json:"request"`
	Choice       int          `json:"choice"`
	Model        mesh.ModelID `json:"model"`
	Host         mesh.Address `json:"host"`
	First        int          `json:"first"`
	End          int          `json:"end"`
	ChainBefore  mesh.Hash    `json:"chain_before"`
	ChainAfter   mesh.Hash    `json:"chain_after"`
	Finish       string       `json:"finish"` // empty: the host was lost, this is its last word
	PromptTokens int          `json:"prompt_tokens"`
	OutputTokens int          `json:"output_tokens"`
	Price        mesh.Amount  `json:"price_ngonka"`
	Escrow       mesh.Hash    `json:"escrow"` // that pays the price; zero: nobody does
	Class        string       `json:"class"`
	Engine       string       `json:"engine"`
	Contract     string       `json:"contract,omitempty"`
	HiddenRoot   mesh.Hash    `json:"hidden_root"`
	Positions    int          `json:"positions"`
	Started      time.Time    `json:"started"`
	FirstToken   time.Time    `json:"first_token"`
	Ended        time.Time    `json:"ended"`
	PrefixHost   mesh.Address `json:"prefix_host"`
	Valid        bool         `json:"valid"`  // signature and form
	Joins        bool         `json:"joins"`  // it begins the answer, or goes on where a receipt before it ends
	Signed       []byte       `json:"signed"` // as the host signed it, base64
}

// Progress is one line of a long operation's answer; the last has Done or Error.
type Progress struct {
	Stage   string `json:"stage"` // hash, fetch, load
	Bytes   int64  `json:"bytes"`
	Total   int64  `json:"total"`
	Sources int    `json:"sources,omitempty"`
	Done    bool   `json:"done,omitempty"`
	Error   string `json:"error,omitempty"`
	Model   *Model `json:"model,omitempty"`
}

// Check is one line of `mesh doctor`.
type Check struct {
	Name   string `json:"name"`
	State  string `json:"state"` // ok, warn, fail
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

// Ready is the first line of `mesh up --json` and `mesh dev --json`.
type Ready struct {
	Event string       `json:"event"` // ready
	Peer  mesh.Address `json:"peer"`
	API   string       `json:"api"`
	Addrs []string     `json:"addrs"`
	Home  string       `json:"home"`
	Hosts []DevHost    `json:"hosts,omitempty"`
}

// DevHost is one host process of `mesh dev`.
type DevHost struct {
	Index int          `json:"index"`
	PID   int          `json:"pid"`
	Peer  mesh.Address `json:"peer"`
	API   string       `json:"api"`
	Addrs []string     `json:"addrs"`
	Home  string       `json:"home"`
}

// Verification says what is right and wrong with the receipts of one answer.
type Verification struct {
	Request  mesh.Hash      `json:"request"`
	OK       bool           `json:"ok"` // nothing is wrong, though something may be unsettled
	Segments []SegmentCheck `json:"segments"`
	Height   mesh.Height    `json:"height,omitempty"` // of the ledger's state that was read
	Proven   bool           `json:"proven,omitempty"` // by proofs against verified headers
}

// SegmentCheck is what is known of one receipt.
type SegmentCheck struct {
	Choice int          `json:"choice"`
	First  int          `json:"first"`
	End    int          `json:"end"`
	Host   mesh.Address `json:"host"`
	Price  mesh.Amount  `json:"price_ngonka"`
	Epoch  mesh.Epoch   `json:"epoch"`
	Escrow mesh.Hash    `json:"escrow"`
	Signed bool         `json:"signed"` // form and signature of the host are right
	Joins  bool         `json:"joins"`  // it begins the answer, or goes on where a receipt before it ends
	State  string       `json:"state"`
	Reason string       `json:"reason"`
}

// States of a receipt.
const (
	ReceiptInvalid    = "invalid"     // form, signature or chain is wrong
	ReceiptFree       = "free"        // nothing to settle
	ReceiptPending    = "pending"     // not settled yet
	ReceiptSettled    = "settled"     // proven to be in its host's settlement, with its price
	ReceiptUnsettled  = "unsettled"   // its epoch closed without a settlement of its host
	ReceiptAbsent     = "absent"      // it is not in its host's settlement
	ReceiptWrongPrice = "wrong_price" // the settlement has another price for it
	ReceiptUnproven   = "unproven"    // its host gives no proof now
	ReceiptPruned     = "pruned"      // the ledger does not keep its epoch any more
	ReceiptUnknown    = "unknown"     // the ledger cannot be read
)
