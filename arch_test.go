package mesh

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/gonka-mesh/mesh"

// layers says what each package of this module may import of it, itself excepted.
// A package that is missing here fails the test: new rooms are drawn on the plan
// first. "..." stands for everything.
var layers = map[string][]string{
	".":                                {},
	"internal/atomicfile":              {},
	"internal/merkle":                  {"."},
	"internal/keyfile":                 {"internal/atomicfile"},
	"internal/plainly":                 {},
	"p2p/p2ppb":                        {},
	"p2p":                              {".", "internal/atomicfile", "p2p/p2ppb"},
	"p2p/p2psim":                       {},
	"p2p/blob":                         {".", "internal/atomicfile", "internal/merkle", "p2p", "p2p/p2ppb"},
	"inference/inferencepb":            {},
	"inference":                        {".", "internal/merkle", "inference/inferencepb"},
	"inference/grammar":                {},
	"inference/kernel":                 {},
	"inference/kernel/internal/asmgen": {},
	"inference/model":                  {".", "internal/atomicfile", "internal/merkle", "inference/model/jinja"},
	"inference/model/jinja":            {},
	"inference/model/builtin":          {".", "inference/model"},
	"inference/native":                 {".", "internal/atomicfile", "internal/merkle", "inference", "inference/grammar", "inference/inferencepb", "inference/kernel", "inference/model"},
	"inference/gpu":                    {},
	"inference/adapter":                {".", "internal/plainly", "inference", "inference/inferencepb"},
	"inference/adapter/standin":        {},
	"inference/receipts":               {".", "inference", "inference/inferencepb"},
	"inference/host":                   {".", "inference", "inference/inferencepb", "p2p"},
	"inference/router":                 {".", "internal/plainly", "inference", "inference/inferencepb", "p2p"},
	"inference/openai":                 {".", "inference", "inference/grammar", "inference/inferencepb"},
	"internal/bls":                     {},
	"consensus/chaintest":              {".", "consensus"},
	"consensus/ledger/ledgerpb":        {},
	"consensus/ledger":                 {".", "internal/merkle", "internal/bls", "inference", "inference/inferencepb", "consensus/ledger/ledgerpb"},
	"consensus/state":                  {".", "internal/atomicfile", "consensus/ledger", "consensus/state/proof"},
	"consensus/state/proof":            {"."},
	"consensus/light":                  {".", "internal/atomicfile", "internal/merkle", "p2p", "consensus/ledger", "consensus/ledger/ledgerpb", "consensus/state/proof", "consensus/light/lightpb"},
	"consensus/light/lightpb":          {},
	"consensus":                        {".", "internal/atomicfile", "internal/bls", "internal/keyfile", "p2p", "consensus/ledger", "consensus/ledger/ledgerpb", "consensus/state", "consensus/state/proof", "consensus/light", "consensus/light/lightpb"},

	// A program that embeds the SDK is a light node without an API: key, receipts, vouchers,
	// router and light client belong together as node puts them, and a second assembly here
	// would have to be kept equal to it.
	"client": {".", "inference", "inference/inferencepb", "consensus/ledger/ledgerpb", "node", "node/api"},

	"client/examples/paid": {".", "client"},
	"node":                 {"..."},
	"node/api":             {".", "internal/plainly"},
	"node/sim":             {"..."},
	"cmd/mesh":             {"..."},
}

// outside names the one place for libraries that must not spread.
var outside = map[string]string{
	"github.com/libp2p/":       "p2p",
	"github.com/multiformats/": "p2p",
	"github.com/marcopolo/":    "p2p",
	"github.com/cometbft/":     "consensus",
	"github.com/spf13/":        "cmd/mesh",
	"go.etcd.io/bbolt":         "inference/receipts",
	"filippo.io/age":           "internal/keyfile",
	"github.com/NVIDIA/":       "inference/gpu",
}

// TestImportsPointDown parses every file, tests included, in this process: a test
// that asks the go command would pass from the cache after an import was added.
func TestImportsPointDown(t *testing.T) {
	seen := 0
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if file != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "e2e" || name == "peers" || name == "tools" || name == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		seen++
		pkg := filepath.ToSlash(filepath.Dir(file))
		allowed, known := layers[pkg]
		if !known {
			t.Errorf("%s: package %s is not on the plan in arch_test.go", file, pkg)
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			checkImport(t, file, pkg, imported, allowed)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 10 {
		t.Fatalf("only %d files seen: the walk is broken", seen)
	}
}

func checkImport(t *testing.T, file, pkg, imported string, allowed []string) {
	for prefix, owner := range outside {
		if strings.HasPrefix(imported, prefix) && pkg != owner && !strings.HasPrefix(pkg, owner+"/") {
			t.Errorf("%s imports %s, which only %s may name", file, imported, owner)
		}
	}
	rel, inside := strings.CutPrefix(imported, module)
	if !inside {
		return
	}
	rel = path.Clean("./" + strings.TrimPrefix(rel, "/"))
	test := strings.HasSuffix(file, "_test.go")
	switch {
	case rel == pkg, slices.Contains(allowed, rel), slices.Contains(allowed, "..."):
	case test && slices.Contains(testOnly[pkg], rel):
	default:
		t.Errorf("%s imports %s: that arrow is not on the plan in arch_test.go", file, rel)
	}
}

// testOnly are arrows that tests alone may follow.
var testOnly = map[string][]string{
	"consensus/light":   {"consensus/state"},
	"p2p":               {"p2p/p2psim"},
	"inference/native":  {"inference/model/builtin"},
	"inference/router":  {"inference/host"},
	"inference/adapter": {"inference/adapter/standin"},
	"client":            {"consensus", "internal/keyfile"}, // they make a network to join
	"consensus":         {"p2p/p2psim"},
	"consensus/ledger":  {"consensus/state/proof"}, // what a proof can hold
}
