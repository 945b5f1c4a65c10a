package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/gonka-mesh/mesh/node/api"
)

// startLimit is how long a child may take to be ready.
const startLimit = 30 * time.Second

// stopLimit is how long a child may take to stop before it is killed.
const stopLimit = 15 * time.Second

// childFile is the binary that children run: this one, but for a test of two versions.
var childFile = os.Executable

// child is a node in a process of its own, which ends with this one.
type child struct {
	Ready api.Ready
	PID   int

	cmd   *exec.Cmd
	alive io.Closer // its standard input, open as long as the child may live
	ended chan struct{}
	err   error // how it ended; set before ended is closed
}

// startChild runs `mesh up ARGS` with a home of its own until it is ready. Its log
// goes to mesh.log in that home.
func startChild(ctx context.Context, home string, args ...string) (*child, error) {
	exe, err := childFile()
	if err != nil {
		return nil, fmt.Errorf("find my own file: %w", err)
	}
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(home, "mesh.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(exe, append([]string{"up", "--json", "--home", home}, args...)...)
	cmd.Env = append(os.Environ(), parentEnv+"=1", "MESH_API=", "MESH_API_KEY=", "MESH_HOME=")
	// A process group of its own: Ctrl-C on the terminal reaches us alone, and we
	// stop the children in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = log
	alive, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{cmd: cmd, PID: cmd.Process.Pid, alive: alive, ended: make(chan struct{})}
	first := make(chan error, 1)
	go func() {
		first <- c.follow(stdout)
		c.err = cmd.Wait()
		close(c.ended)
	}()
	if err := c.waitReady(ctx, first); err != nil {
		c.stop()
		return nil, fmt.Errorf("%w; its log ends: %s", err, lastLine(log.Name()))
	}
	return c, nil
}

func (c *child) follow(stdout io.Reader) error {
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err != nil {
		return errors.New("it ended before it was ready")
	}
	return json.Unmarshal(line, &c.Ready)
}

func (c *child) waitReady(ctx context.Context, first <-chan error) error {
	limit := time.NewTimer(startLimit)
	defer limit.Stop()
	select {
	case err := <-first:
		return err
	case <-limit.C:
		return fmt.Errorf("not ready after %s", startLimit)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stop ends the child, by force if it takes too long.
func (c *child) stop() {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.ended:
	case <-time.After(stopLimit):
		_ = c.cmd.Process.Kill()
		<-c.ended
	}
}

// stopAll ends children side by side.
func stopAll(children []*child) {
	done := make(chan struct{})
	for _, c := range children {
		go func() {
			if c != nil {
				c.stop()
			}
			done <- struct{}{}
		}()
	}
	for range children {
		<-done
	}
}

// lastLine returns the last line of a log.
func lastLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	b = bytes.TrimSpace(b)
	if len(b) == 0 {
		return "(nothing)"
	}
	return string(b[bytes.LastIndexByte(b, '\n')+1:])
}
