// Package e2e runs the official OpenAI SDK against real mesh processes. It is a
// module of its own, so that the SDK is no dependency of the program. MESH_BIN
// names the binary; run.sh sets it.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

// network is a `mesh dev`: hosts in processes of their own, and a light node with
// the API.
type network struct {
	Event string `json:"event"`
	Peer  string `json:"peer"`
	API   string `json:"api"`
	Hosts []struct {
		Index int    `json:"index"`
		PID   int    `json:"pid"`
		Peer  string `json:"peer"`
		API   string `json:"api"`
	} `json:"hosts"`

	cmd    *exec.Cmd
	ended  chan error
	stderr bytes.Buffer
}

// start runs a network until stop; it is ready when start returns.
func start(hosts int) (*network, error) {
	bin := os.Getenv("MESH_BIN")
	if bin == "" {
		return nil, errors.New("MESH_BIN is not set; it has to name the mesh binary")
	}
	n := &network{ended: make(chan error, 1)}
	n.cmd = exec.Command(bin, "dev", "--hosts", fmt.Sprint(hosts), "--json", "--api", "127.0.0.1:0")
	n.cmd.Stderr = &n.stderr
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := n.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", bin, err)
	}
	ready := make(chan error, 1)
	go func() {
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		first := true
		for lines.Scan() { // to the end: a full pipe would stop the process
			if first {
				first = false
				ready <- json.Unmarshal(lines.Bytes(), n)
			}
		}
		if first {
			ready <- errors.New("it ended without a line")
		}
		n.ended <- n.cmd.Wait()
	}()
	select {
	case err = <-ready:
	case <-time.After(60 * time.Second):
		err = errors.New("it was not ready after 60 s")
	}
	if err == nil && (n.Event != "ready" || n.API == "" || len(n.Hosts) != hosts) {
		err = fmt.Errorf("the first line is not that of a ready network of %d hosts: %+v", hosts, n)
	}
	if err != nil {
		return nil, fmt.Errorf("mesh dev: %w\n%s", err, errors.Join(n.stop(), errors.New(n.stderr.String())))
	}
	return n, nil
}

// stop ends the network the way a user does, and says if that left something
// running. Whatever is left is killed.
func (n *network) stop() error {
	_ = n.cmd.Process.Signal(os.Interrupt)
	var err error
	select {
	case <-n.ended:
	case <-time.After(20 * time.Second):
		err = errors.New("mesh dev did not stop within 20 s of SIGINT")
		_ = n.cmd.Process.Kill()
	}
	for _, h := range n.Hosts {
		if syscall.Kill(h.PID, 0) == nil {
			err = errors.Join(err, fmt.Errorf("host %d (process %d) outlived mesh dev", h.Index, h.PID))
			_ = syscall.Kill(h.PID, syscall.SIGKILL)
		}
	}
	return err
}

// client is an SDK client of the light node. It does not retry: what a call
// returns is what the node said first.
func (n *network) client() openai.Client {
	return openai.NewClient(option.WithBaseURL(n.API+"/v1"), option.WithAPIKey("none"), option.WithMaxRetries(0))
}

// busy returns how many requests the hosts work on or hold back.
func (n *network) busy(ctx context.Context) (int, error) {
	total := 0
	for _, h := range n.Hosts {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.API+"/mesh/v1/status", nil)
		if err != nil {
			return 0, err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, err
		}
		var status struct {
			Engines []struct {
				Active *int `json:"active"`
				Queued *int `json:"queued"`
			} `json:"engines"`
		}
		err = json.NewDecoder(res.Body).Decode(&status)
		_ = res.Body.Close()
		if err != nil {
			return 0, fmt.Errorf("status of host %d: %w", h.Index, err)
		}
		if len(status.Engines) == 0 {
			return 0, fmt.Errorf("status of host %d has no engines", h.Index)
		}
		for _, e := range status.Engines {
			if e.Active == nil || e.Queued == nil {
				return 0, fmt.Errorf("status of host %d has no engines[].active or .queued", h.Index)
			}
			total += *e.Active + *e.Queued
		}
	}
	return total, nil
}

// shared is the network of all tests that leave it as it is.
var shared *network

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if shared, err = start(2); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := shared.stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if code != 0 {
		fmt.Fprintf(os.Stderr, "stderr of mesh dev:\n%s\n", shared.stderr.String())
	}
	return code
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}
