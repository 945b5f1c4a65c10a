package node

import (
	"bytes"
	"crypto/rand"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/gonka-mesh/mesh"
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

	hash mesh.Hash
}

// maxGenesis bounds a genesis file.
const maxGenesis = 1 << 20

// LoadGenesis returns the preset `main` or `dev`, or the genesis in a file.
func LoadGenesis(network string) (*Genesis, error) {
	if b, err := presets.ReadFile("genesis/" + network + ".json"); err == nil {
		return ParseGenesis(b)
	}
	info, err := os.Stat(network)
	if err != nil {
		return nil, fmt.Errorf("network %q: want main, dev or a genesis file: %w", network, err)
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
	}
	return g, g.Network().Validate()
}

// NewDevGenesis makes the genesis of a network that nobody else has.
func NewDevGenesis(now time.Time) ([]byte, error) {
	var salt [16]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return nil, fmt.Errorf("draw salt: %w", err)
	}
	return json.MarshalIndent(&Genesis{
		Name: "dev", Created: now.UTC().Truncate(time.Second), EpochSeconds: 60,
		Note: "made by mesh dev", Salt: hex.EncodeToString(salt[:]),
	}, "", "  ")
}

// Hash returns the SHA-256 of the document.
func (g *Genesis) Hash() mesh.Hash { return g.hash }

// Network returns the network's ID.
func (g *Genesis) Network() mesh.NetworkID { return mesh.NewNetworkID(g.Name, g.hash) }

// Epoch returns the epoch at a time. Until the ledger counts them, epochs follow
// the clock; only DHT keys depend on it, and a lookup asks the neighbours too.
func (g *Genesis) Epoch(now time.Time) mesh.Epoch {
	if now.Before(g.Created) {
		return 0
	}
	return mesh.Epoch(now.Sub(g.Created) / (time.Duration(g.EpochSeconds) * time.Second))
}
