package node

import "github.com/gonka-mesh/mesh/consensus/ledger"

// upgrades are those of the ledger that this version carries out, by name: a proposal
// names one, and every version from then on has it. See docs/operate.md.
var upgrades = map[string]ledger.Migration{}
