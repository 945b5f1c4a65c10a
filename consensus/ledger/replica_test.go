package ledger

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/gonka-mesh/mesh"
)

// Names of the environment of a replica in a process of its own.
const (
	envReplica = "MESH_TEST_REPLICA" // generate, or replay
	envFile    = "MESH_TEST_REPLICA_FILE"
	seedOfRun  = 3
)

// replicaSize is how many transactions replicas compare: all are computed three times.
func replicaSize(t *testing.T) int {
	txs, _ := randomSize(t)
	if os.Getenv("MESH_LONG") == "" {
		txs /= 2
	}
	return txs
}

// recording is a state and the blocks that follow on it.
type recording struct {
	Records []Change
	Blocks  []Block
}

// TestReplicas compares all changes, results, events and validators of all blocks of
// three replicas: this process; another with its own map seeds and one thread, which
// makes and applies the same blocks; and a third that reads a state halfway from a
// file, decodes and encodes each of its records, and replays the other blocks.
func TestReplicas(t *testing.T) {
	txs := replicaSize(t)
	g := newGenerator(t, seedOfRun)
	g.run(txs/2, nil)
	var half recording
	for _, k := range g.state.keys {
		half.Records = append(half.Records, Change{[]byte(k), g.state.records[k]})
	}
	var second mesh.Hash
	g.run(txs, func(b Block, out *Outcome) {
		half.Blocks = append(half.Blocks, b)
		second = digest(second, out)
	})
	file := filepath.Join(t.TempDir(), "recording")
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(half); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, replica := range []struct {
		kind, threads string
		want          mesh.Hash
	}{{"generate", "1", g.hash}, {"replay", "7", second}} {
		if got := replicaProcess(t, replica.kind, replica.threads, file); got != replica.want.String() {
			t.Errorf("the replica that is to %s computes %s, this process %s", replica.kind, got, replica.want)
		}
	}
}

// replicaProcess runs this test binary again and returns the hash that it prints.
func replicaProcess(t *testing.T, kind, threads, file string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestReplicaProcess$", "-test.v", fmt.Sprintf("-test.short=%t", testing.Short()))
	cmd.Env = append(os.Environ(), envReplica+"="+kind, envFile+"="+file, "GOMAXPROCS="+threads)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("replica to %s: %v\n%s", kind, err, out)
	}
	hash := regexp.MustCompile(`replica hash ([0-9a-f]{64})`).FindSubmatch(out)
	if hash == nil {
		t.Fatalf("the replica to %s says no hash:\n%s", kind, out)
	}
	return string(hash[1])
}

// TestReplicaProcess is the replica in a process of its own.
func TestReplicaProcess(t *testing.T) {
	switch os.Getenv(envReplica) {
	case "generate":
		txs := replicaSize(t)
		g := newGenerator(t, seedOfRun)
		g.run(txs/2, nil) // as the other does: in two parts
		g.run(txs, nil)
		fmt.Printf("replica hash %s\n", g.hash)
	case "replay":
		fmt.Printf("replica hash %s\n", replay(t, os.Getenv(envFile)))
	default:
		t.Skip("run by TestReplicas")
	}
}

// replay applies a recording to a state whose records were decoded and encoded again.
func replay(t *testing.T, file string) (hash mesh.Hash) {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var half recording
	if err := gob.NewDecoder(bytes.NewReader(b)).Decode(&half); err != nil {
		t.Fatal(err)
	}
	for i, r := range half.Records {
		if r.Value == nil { // gob does not tell an empty value from none
			half.Records[i].Value = []byte{}
		}
		record := recordOf(r.Key)
		if record == nil {
			continue
		}
		if err := decode(r.Value, record); err != nil {
			t.Errorf("record %.80q: %v", r.Key, err)
		}
		again, err := encode(record)
		if err != nil {
			t.Fatal(err)
		}
		half.Records[i].Value = append([]byte{}, again...)
	}
	s := newMemState()
	s.write(t, half.Records)
	m := testMachine()
	for _, block := range half.Blocks {
		out, err := m.Apply(s, block)
		if err != nil {
			t.Fatalf("block %d: %v", block.Height, err)
		}
		s.write(t, out.Changes)
		hash = digest(hash, out)
	}
	if err := CheckInvariants(s); err != nil {
		t.Error(err)
	}
	return hash
}
