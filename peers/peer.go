// Peers sets the native engine beside llama.cpp: speed in one run, taking
// turns, and equality of what they compute on the same files. Both run as processes
// that take the same commands (llamacpp/llamacpp.c, engine/main.go).
package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// libraries is where npm puts the libraries of llama.cpp.
const libraries = "node_modules/@node-llama-cpp/linux-x64/bins/linux-x64"

// peer is a process that computes.
type peer struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	Load time.Duration // from the start of loading to ready
}

// start runs a program until it is ready.
func start(env []string, name string, args ...string) (*peer, error) {
	p := &peer{cmd: exec.Command(name, args...)}
	p.cmd.Stderr = os.Stderr
	p.cmd.Env = append(os.Environ(), env...)
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewReaderSize(out, 1<<20)
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := p.out.ReadString('\n')
	seconds, ok := strings.CutPrefix(strings.TrimSpace(line), "ready ")
	if err != nil || !ok {
		return nil, errors.Join(fmt.Errorf("start %s: it is not ready: %q", filepath.Base(name), line), p.close())
	}
	p.Load, err = parseSeconds(seconds)
	return p, err
}

func (p *peer) close() error {
	p.in.Close()
	return p.cmd.Wait()
}

// ask sends a command and returns the line that answers it.
func (p *peer) ask(format string, args ...any) (string, error) {
	if _, err := fmt.Fprintf(p.in, format, args...); err != nil {
		return "", err
	}
	line, err := p.out.ReadString('\n')
	return strings.TrimSpace(line), err
}

// time returns how long a command took: prefill, score or decode of n tokens.
func (p *peer) time(verb string, n int) (time.Duration, error) {
	line, err := p.ask("%s %d\n", verb, n)
	if err != nil {
		return 0, fmt.Errorf("%s %d: %w", verb, n, err)
	}
	return parseSeconds(line)
}

func parseSeconds(s string) (time.Duration, error) {
	x, err := strconv.ParseFloat(s, 64)
	return time.Duration(x * float64(time.Second)), err
}

// logits returns a row of logits for each token.
func (p *peer) logits(ids []int32) ([][]float32, error) {
	words := make([]string, len(ids))
	for i, id := range ids {
		words[i] = strconv.Itoa(int(id))
	}
	line, err := p.ask("logits %s\n", strings.Join(words, " "))
	if err != nil {
		return nil, err
	}
	var n, vocab int
	if _, err := fmt.Sscan(line, &n, &vocab); err != nil || n != len(ids) {
		return nil, fmt.Errorf("logits of %d tokens: answer %q", len(ids), line)
	}
	rows := make([][]float32, n)
	for i := range rows {
		rows[i] = make([]float32, vocab)
		if err := binary.Read(p.out, binary.LittleEndian, rows[i]); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// tokens returns the ids of a text, special tokens not recognised.
func (p *peer) tokens(text string) ([]int32, error) {
	line, err := p.ask("tokens %d\n%s", len(text), text)
	if err != nil {
		return nil, err
	}
	var ids []int32
	for word := range strings.FieldsSeq(line) {
		id, err := strconv.Atoi(word)
		if err != nil {
			return nil, err
		}
		ids = append(ids, int32(id))
	}
	return ids, nil
}

// llamaCPP starts llama.cpp with the instruction set variant of its libraries that
// is named, or with the one it prefers itself.
func llamaCPP(dir, variant, file string, threads int) (*peer, error) {
	from := libraries
	if variant != "" {
		from = filepath.Join(dir, variant)
		if err := os.MkdirAll(from, 0o755); err != nil {
			return nil, err
		}
		name := "libggml-cpu-" + variant + ".so"
		whole, err := filepath.Abs(filepath.Join(libraries, name))
		if err != nil {
			return nil, err
		}
		if err := os.Symlink(whole, filepath.Join(from, name)); err != nil && !os.IsExist(err) {
			return nil, err
		}
	}
	p, err := start(nil, "bin/llamacpp", from, file)
	if err != nil {
		return nil, err
	}
	_, err = p.ask("threads %d\n", threads)
	return p, err
}

// mesh starts the native engine with the named kernels, or with the best it has.
func mesh(kernels, file string, threads int, more ...string) (*peer, error) {
	var env []string
	if kernels != "" {
		env = append(env, "MESH_KERNEL="+kernels)
	}
	return start(env, "bin/engine", append([]string{strconv.Itoa(threads), file}, more...)...)
}
