package node

import (
	"bytes"
	"crypto/rand"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/inference/model/builtin"
	"github.com/gonka-mesh/mesh/internal/plainly"
)

//go:embed genesis/*.json
var presets embed.FS

// Genesis is the document that a network begins with. Its bytes are hashed as they
// stand, and the hash is part of the network's ID.
type Genesis struct {
	Name         string    `json:"name"`
	Created      time.Time `json:"created"`
	EpochSeconds int64     `json:"epoch_seconds"`
	Note         string    `json:"note"`
	Salt         string    `json:"salt"` // makes the networks of `mesh dev` differ

	// The ledger; a network without one pays nothing.
	Ledger       *ledger.Genesis `json:"ledger,omitempty"`
	BlockMS      int64           `json:"block_ms,omitempty"`      // from a block to the next
	TrustSeconds int64           `json:"trust_seconds,omitempty"` // how long light nodes believe signatures: less than collateral takes to unbond

	hash mesh.Hash
}

// maxGenesis bounds a genesis file.
const maxGenesis = 1 << 20

// LoadGenesis returns the preset `main` or `dev`, or the genesis in a file. A document
// in the place of a name is read as it is: programs may carry theirs.
func LoadGenesis(network string) (*Genesis, error) {
	if strings.HasPrefix(network, "{") {
		return ParseGenesis([]byte(network))
	}
	if b, err := presets.ReadFile("genesis/" + network + ".json"); err == nil {
		return ParseGenesis(b)
	}
	info, err := os.Stat(network)
	if err != nil {
		return nil, fmt.Errorf("network %q: want main, dev or a genesis file: %w", network, plainly.Said(err))
	}
	if info.Size() > maxGenesis {
		return nil, fmt.Errorf("genesis %s has %d bytes, at most %d", network, info.Size(), maxGenesis)
	}
	b, err := os.ReadFile(network)
	if err != nil {
		return nil, fmt.Errorf("open genesis: %w", err)
	}
	g, err := ParseGenesis(b)
	if err != nil {
		return nil, fmt.Errorf("genesis %s: %w", network, err)
	}
	return g, nil
}

// ParseGenesis reads and checks a genesis document.
func ParseGenesis(b []byte) (*Genesis, error) {
	g := &Genesis{hash: mesh.HashOf(b)}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(g); err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	switch {
	case g.EpochSeconds < 1 || g.EpochSeconds > 1<<31:
		return nil, fmt.Errorf("epoch_seconds is %d, want 1 or more", g.EpochSeconds)
	case g.Created.IsZero():
		return nil, fmt.Errorf("created is missing")
	case g.Ledger != nil && (g.BlockMS < 100 || g.BlockMS > 600_000):
		return nil, fmt.Errorf("block_ms is %d, want 100 to 600000", g.BlockMS)
	case g.Ledger != nil && (g.TrustSeconds < 60 || g.TrustSeconds > 1<<31):
		return nil, fmt.Errorf("trust_seconds is %d, want 60 or more", g.TrustSeconds)
	}
	return g, g.Network().Validate()
}

// DevHost is a host of a network on one machine.
type DevHost struct {
	Address mesh.Address
	Key     *consensus.Key
}

// DevNetwork is a network on one machine. Without hosts it has no ledger.
type DevNetwork struct {
	Hosts       []DevHost    // that share the coins and the work
	Client      mesh.Address // that gets coins to pay with
	EpochBlocks int64
	Block       time.Duration // from a block to the next
}

// NewDevGenesis makes the genesis of a network that nobody else has.
func NewDevGenesis(now time.Time, d DevNetwork) ([]byte, error) {
	var salt [16]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return nil, fmt.Errorf("draw salt: %w", err)
	}
	g := &Genesis{
		Name: "dev", Created: now.UTC().Truncate(time.Second), EpochSeconds: 60,
		Note: "made by mesh dev", Salt: hex.EncodeToString(salt[:]),
	}
	if len(d.Hosts) > 0 {
		if err := g.devLedger(d); err != nil {
			return nil, err
		}
	}
	return json.MarshalIndent(g, "", "  ")
}

// devLedger gives a network on one machine its ledger.
func (g *Genesis) devLedger(d DevNetwork) error {
	model := builtin.ID()
	g.EpochSeconds = max(1, d.EpochBlocks*d.Block.Milliseconds()/1000)
	g.BlockMS, g.TrustSeconds = d.Block.Milliseconds(), int64(devTrust/time.Second)
	g.Ledger = &ledger.Genesis{
		Params: map[string]uint64{
			"epoch_blocks": uint64(d.EpochBlocks), "settle_blocks": uint64(max(8, d.EpochBlocks/6)), "fee_per_byte": 10, "register_fee": 1e9,
			"collateral_per_weight": 1e9, "unbonding_epochs": 2, "vesting_epochs": 10, "downtime_window": 120, "downtime_max_missed": 90,
			"escrow_min": 1e6, "deposit_min": 10e9, "vote_blocks": uint64(max(4, d.EpochBlocks/2)), "keep_epochs": 30,
		},
		Models: []ledger.GenesisModel{{ID: model, Name: builtin.Name, Coefficient: 1000}},
	}
	give := func(a mesh.Address, group string, amount mesh.Amount, vest uint64) {
		g.Ledger.Allocations = append(g.Ledger.Allocations, ledger.Allocation{
			Address: a, Amount: strings.TrimSuffix(amount.String(), " GNK"), Group: group, VestEpochs: vest})
	}
	liquid := ledger.Share(ledger.GroupLiquidity)
	each := liquid / mesh.Amount(2*len(d.Hosts))
	give(d.Client, ledger.GroupLiquidity, liquid-each*mesh.Amount(len(d.Hosts)), 0)
	give(d.Hosts[0].Address, ledger.GroupTeam, ledger.Share(ledger.GroupTeam), 1000)
	give(d.Hosts[0].Address, ledger.GroupEarly, ledger.Share(ledger.GroupEarly), 100)
	for _, h := range d.Hosts {
		give(h.Address, ledger.GroupLiquidity, each, 0)
		entry, err := h.Key.Genesis(g.Name, h.Address)
		if err != nil {
			return err
		}
		entry.Collateral = "1000"
		entry.Work = []ledger.GenesisWork{{Model: model, Count: 1000}}
		g.Ledger.Hosts = append(g.Ledger.Hosts, entry)
	}
	return nil
}

// devTrust is long, so that a network that was stopped for a holiday starts again.
const devTrust = 30 * 24 * time.Hour

// Hash returns the SHA-256 of the document.
func (g *Genesis) Hash() mesh.Hash { return g.hash }

// trust is for how long validators answer for what they sign.
func (g *Genesis) trust() time.Duration { return time.Duration(g.TrustSeconds) * time.Second }

// Network returns the network's ID.
func (g *Genesis) Network() mesh.NetworkID { return mesh.NewNetworkID(g.Name, g.hash) }

// trustBlocks returns for how many blocks light nodes believe a header, at the least: no
// block comes sooner than block_ms after another.
func (g *Genesis) trustBlocks() uint64 {
	ms := g.TrustSeconds * 1000
	return uint64((ms + g.BlockMS - 1) / g.BlockMS)
}

// Epoch returns the epoch at a time. Until the ledger counts them, epochs follow
// the clock; only DHT keys depend on it, and a lookup asks the neighbours too.
func (g *Genesis) Epoch(now time.Time) mesh.Epoch {
	if now.Before(g.Created) {
		return 0
	}
	return mesh.Epoch(now.Sub(g.Created) / (time.Duration(g.EpochSeconds) * time.Second))
}
