// Engine drives the native engine from standard input with the commands of
// ../llamacpp/llamacpp.c, so that both are measured and compared in the same way.
//
// Usage: engine THREADS MODEL [f32]. With f32 it computes with float32 weights and
// activations.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/inference/model"
	"github.com/gonka-mesh/mesh/inference/native"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "engine:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: engine THREADS MODEL [f32]")
	}
	threads, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	start := time.Now()
	file, err := model.Open(args[1])
	if err != nil {
		return err
	}
	defer file.Close()
	e, err := native.Open(native.Config{File: file, Threads: threads, DequantizeToF32: len(args) > 2 && args[2] == "f32"})
	if err != nil {
		return err
	}
	defer e.Close()
	tokenizer, err := file.Tokenizer()
	if err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	fmt.Fprintf(out, "ready %.6f\n", time.Since(start).Seconds())
	in := bufio.NewReader(os.Stdin)
	for {
		if err := out.Flush(); err != nil {
			return err
		}
		line, err := in.ReadString('\n')
		if err != nil {
			return nil // the driver is done
		}
		verb, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		n, _ := strconv.Atoi(rest)
		switch verb {
		case "prefill", "decode", "score":
			d, err := measure(e, verb, n)
			if err != nil {
				return fmt.Errorf("%s %d: %w", verb, n, err)
			}
			fmt.Fprintf(out, "%.6f\n", d.Seconds())
		case "logits":
			if err := logits(out, e, rest); err != nil {
				return err
			}
		case "tokens":
			text := make([]byte, n)
			if _, err := io.ReadFull(in, text); err != nil {
				return err
			}
			ids := tokenizer.Encode(string(text))
			words := make([]string, len(ids))
			for i, id := range ids {
				words[i] = strconv.Itoa(int(id))
			}
			fmt.Fprintln(out, strings.Join(words, " "))
		default:
			return fmt.Errorf("unknown command %q", verb)
		}
	}
}

// prompt returns n token ids that differ from run to run, so that no prompt is
// found in the prefix cache.
func prompt(n int) []int32 {
	runs++
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = int32((i*7 + 3 + runs*1009) % 1000)
	}
	return ids
}

var runs int

func measure(e *native.Engine, verb string, n int) (time.Duration, error) {
	g := inference.Generation{Sampling: &inferencepb.Sampling{}, MaxTokens: 1, IgnoreEOS: true}
	switch verb {
	case "score":
		ids := prompt(n)
		start := time.Now()
		err := e.Score(context.Background(), everywhere(ids), func(inference.Position) error { return nil })
		return time.Since(start), err
	case "prefill":
		g.Prompt = prompt(n)
	case "decode":
		g.Prompt, g.MaxTokens = prompt(3), n+1
	}
	start := time.Now()
	_, err := e.Generate(context.Background(), g, func(inference.Token) error {
		if verb == "decode" && g.MaxTokens > n {
			g.MaxTokens, start = n, time.Now() // the clock starts at the first token
		}
		return nil
	})
	return time.Since(start), err
}

func logits(out *bufio.Writer, e *native.Engine, list string) error {
	var ids []int32
	for word := range strings.FieldsSeq(list) {
		id, err := strconv.Atoi(word)
		if err != nil {
			return err
		}
		ids = append(ids, int32(id))
	}
	fmt.Fprintln(out, len(ids), e.Info().Vocab)
	return e.Score(context.Background(), everywhere(ids), func(p inference.Position) error {
		return binary.Write(out, binary.LittleEndian, p.Logits)
	})
}

func everywhere(ids []int32) inference.Scoring {
	return inference.Scoring{Tokens: ids, Logits: func(int) bool { return true }}
}
