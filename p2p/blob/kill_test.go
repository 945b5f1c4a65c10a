package blob

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
)

// childEnv makes the test binary a process that fetches a blob, to be killed:
// "DIR ROOT HOST:PORT,HOST:PORT".
const childEnv = "MESH_BLOB_TEST_CHILD"

func TestMain(m *testing.M) {
	if args := os.Getenv(childEnv); args != "" {
		if err := fetchInChild(strings.Fields(args)); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func fetchInChild(args []string) error {
	store, err := Open(args[0], nil)
	if err != nil {
		return err
	}
	root, err := mesh.ParseHash(args[1])
	if err != nil {
		return err
	}
	n := &testNet{peers: make(map[mesh.Address]*testPeer), penalties: make(map[mesh.Address]int)}
	var peers []*testPeer
	for i, where := range strings.Split(args[2], ",") {
		p := &testPeer{where: where, addr: mesh.Address{1, byte(i + 1)}}
		n.peers[p.addr] = p
		peers = append(peers, p)
	}
	path, err := n.fetcher(store, peers...).Fetch(context.Background(), root, Options{
		Progress: func(done, _ uint64, _ int) { fmt.Println("done", done) }})
	fmt.Println("path", path)
	return err
}

// A process that fetches is killed with SIGKILL again and again. No chunk that
// its journal named is asked for a second time, and the result is right.
func TestKilled(t *testing.T) {
	const chunks = 24 << 20 / testChunk
	origin, root, data := testBlob(t, chunks*testChunk, testChunk)
	n := newNet(t, false)
	pace := slow(500 * time.Microsecond)
	peers := []*testPeer{n.add(t, origin, pace), n.add(t, origin, pace)}
	dir := testStore(t, testChunk).dir
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))

	asked := func() []int { return append(peers[0].asked(), peers[1].asked()...) }
	var kept []bool
	for run := 0; ; run++ {
		before := []int{len(peers[0].asked()), len(peers[1].asked())}
		killAt := uint64(run*chunks/8+rng.IntN(20)) * testChunk
		if run == 8 {
			killAt = 1 << 60
		}
		path := runChild(t, fmt.Sprintf("%s %s %s,%s", dir, root, peers[0].where, peers[1].where), killAt)
		for i, p := range peers {
			for _, chunk := range p.asked()[before[i]:] {
				if kept != nil && kept[chunk] {
					t.Fatalf("run %d asked for chunk %d, which was there", run, chunk)
				}
			}
		}
		if path != "" {
			wantFile(t, path, data)
			break
		}
		kept = keptIn(t, dir, root, chunks)
	}
	all := asked()
	slices.Sort(all)
	if len(slices.Compact(slices.Clone(all))) != chunks {
		t.Errorf("not every chunk was asked for")
	}
	// Each kill may cost what was under way: asked ahead, received, being written.
	if limit := chunks + 8*(len(peers)*depth+14); len(all) > limit {
		t.Errorf("%d requests for %d chunks", len(all), chunks)
	}
	t.Logf("%d requests for %d chunks", len(all), chunks)
}

// runChild returns the path that the child printed, or "" when it was killed.
func runChild(t *testing.T, args string, killAt uint64) (path string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"="+args)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var done uint64
		switch {
		case strings.HasPrefix(lines.Text(), "error "):
			t.Fatalf("child: %s", lines.Text())
		case strings.HasPrefix(lines.Text(), "path "):
			path = lines.Text()[len("path "):]
		default:
			fmt.Sscanf(lines.Text(), "done %d", &done)
			if done >= killAt {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				return ""
			}
		}
	}
	return path
}

// keptIn returns what the journal of a killed process names.
func keptIn(t *testing.T, dir string, root mesh.Hash, chunks int) []bool {
	t.Helper()
	f, err := os.Open(dir + "/" + root.String() + "/" + journalFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	kept, err := readJournal(f, chunks)
	if err != nil {
		t.Fatal(err)
	}
	return kept
}
