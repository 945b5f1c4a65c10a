package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/node/api"
)

// chatMessage and chatRequest are the parts of the OpenAI dialect that we send.
type chatMessage struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type chatRequest struct {
	Model         string         `json:"model"`
	Messages      []chatMessage  `json:"messages"`
	Stream        bool           `json:"stream"`
	StreamOptions map[string]any `json:"stream_options,omitempty"`
	MaxTokens     int            `json:"max_tokens,omitempty"`
	Temperature   *float64       `json:"temperature,omitempty"`
	Seed          *int64         `json:"seed,omitempty"`
	PriceCap      int64          `json:"mesh_price_cap,omitempty"`
}

// chatAnswer is what came back, and the document of --json.
type chatAnswer struct {
	Text    string        `json:"text"`
	Finish  string        `json:"finish"`
	Model   string        `json:"model"`
	Receipt mesh.Hash     `json:"receipt"`
	Host    mesh.Address  `json:"host"`
	Prompt  int           `json:"prompt_tokens"`
	Output  int           `json:"output_tokens"`
	Proof   []api.Receipt `json:"receipts,omitempty"`
}

func chatCommand(g *globals) *cobra.Command {
	var in chatRequest
	var system string
	var temperature float64
	var seed int64
	cmd := &cobra.Command{
		Use: "chat [PROMPT]", Short: "Ask the mesh; interactive without a PROMPT",
		RunE: func(cmd *cobra.Command, args []string) error {
			if g.json && len(args) == 0 {
				return usageError{errors.New("chat --json wants a PROMPT")}
			}
			if cmd.Flags().Changed("temperature") {
				in.Temperature = &temperature
			}
			if cmd.Flags().Changed("price-cap") && in.PriceCap < 1 {
				return usageError{fmt.Errorf("--price-cap %d: from 1 ngonka a token", in.PriceCap)}
			}
			if cmd.Flags().Changed("seed") {
				in.Seed = &seed
			}
			if system != "" {
				in.Messages = append(in.Messages, chatMessage{"system", system})
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			if in.Model, err = wholeModel(cmd.Context(), c, in.Model); err != nil {
				return err
			}
			if len(args) == 0 {
				return converse(cmd, c, in)
			}
			in.Messages = append(in.Messages, chatMessage{"user", strings.Join(args, " ")})
			out := cmd.OutOrStdout()
			if g.json {
				a, err := ask(cmd.Context(), c, in, nil)
				if err != nil {
					return err
				}
				return writeJSON(out, a)
			}
			_, err = askAloud(cmd.Context(), c, in, out, cmd.ErrOrStderr())
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&in.Model, "model", "", "name or ID of the model, or the first digits of the ID (default: the node's)")
	f.StringVar(&system, "system", "", "system prompt")
	f.IntVar(&in.MaxTokens, "max-tokens", 0, "most tokens of an answer (default: what fits)")
	f.Float64Var(&temperature, "temperature", 0, "0 to 2")
	f.Int64Var(&in.PriceCap, "price-cap", 0, "ngonka a token may cost (default: what the node is set to)")
	f.Int64Var(&seed, "seed", 0, "seed of the sampling; equal seeds give equal answers")
	return cmd
}

// converse reads lines and answers them, keeping the conversation. An error ends
// one answer, not the conversation.
func converse(cmd *cobra.Command, c *api.Client, in chatRequest) error {
	out, notes := cmd.OutOrStdout(), cmd.ErrOrStderr()
	if _, err := c.Status(cmd.Context()); err != nil {
		return err
	}
	fmt.Fprintln(notes, "Type a question; an empty line or Ctrl-D ends.")
	lines := bufio.NewScanner(cmd.InOrStdin())
	lines.Buffer(nil, 1<<20)
	for {
		fmt.Fprint(notes, "> ")
		if !lines.Scan() || strings.TrimSpace(lines.Text()) == "" {
			fmt.Fprintln(notes)
			return lines.Err()
		}
		turn := in
		turn.Messages = append(append([]chatMessage{}, in.Messages...), chatMessage{"user", lines.Text()})
		a, err := ask(cmd.Context(), c, turn, out)
		if cmd.Context().Err() != nil {
			return cmd.Context().Err()
		}
		if err != nil {
			fmt.Fprintf(notes, "mesh: %s\n", printable(err.Error()))
			continue
		}
		in.Messages = append(turn.Messages, chatMessage{"assistant", a.Text})
	}
}

// ask streams one answer and writes its text to out as it comes, if out is set.
func ask(ctx context.Context, c *api.Client, in chatRequest, out io.Writer) (*chatAnswer, error) {
	return askAloud(ctx, c, in, out, nil)
}

// askAloud says on a terminal who begins to speak, too.
func askAloud(ctx context.Context, c *api.Client, in chatRequest, out, notes io.Writer) (*chatAnswer, error) {
	in.Stream = true
	in.StreamOptions = map[string]any{"include_usage": true}
	out = tame(out)
	resp, err := c.Do(ctx, http.MethodPost, "/v1/chat/completions", in)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	a := new(chatAnswer)
	if err := a.Receipt.UnmarshalText([]byte(resp.Header.Get("Mesh-Receipt"))); err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if err := a.Host.UnmarshalText([]byte(resp.Header.Get("Mesh-Host"))); err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if terminal(notes) {
		fmt.Fprintf(notes, "(%s speaks)\n", a.Host.Short())
	}
	if err := a.read(resp.Body, out); err != nil {
		return nil, err
	}
	if out != nil && !strings.HasSuffix(a.Text, "\n") {
		fmt.Fprintln(out)
	}
	return a, nil
}

// read follows the event stream to its end mark.
func (a *chatAnswer) read(body io.Reader, out io.Writer) error {
	var text strings.Builder
	defer func() { a.Text = text.String() }()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			return nil
		}
		var chunk struct {
			Model   string `json:"model"`
			Choices []struct {
				Delta        chatMessage `json:"delta"`
				FinishReason string      `json:"finish_reason"`
			} `json:"choices"`
			Usage *struct {
				Prompt int `json:"prompt_tokens"`
				Output int `json:"completion_tokens"`
			} `json:"usage"`
			Error *struct {
				Message string `json:"message"`
			} `json:"error"`
		}
		if err := json.Unmarshal([]byte(data), &chunk); err != nil {
			return fmt.Errorf("read answer: %w", err)
		}
		if chunk.Error != nil {
			return errors.New(chunk.Error.Message)
		}
		if chunk.Model != "" {
			a.Model = chunk.Model
		}
		if chunk.Usage != nil {
			a.Prompt, a.Output = chunk.Usage.Prompt, chunk.Usage.Output
		}
		for _, choice := range chunk.Choices {
			text.WriteString(choice.Delta.Content)
			if out != nil {
				if _, err := io.WriteString(out, choice.Delta.Content); err != nil {
					return err
				}
			}
			if choice.FinishReason != "" {
				a.Finish = choice.FinishReason
			}
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	return errors.New("the answer broke off before its end")
}
