package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/internal/plainly"
	"github.com/gonka-mesh/mesh/node/api"
)

func receiptCommand(g *globals) *cobra.Command {
	return noun("receipt", "What hosts signed about their answers: ls, show, verify",
		verifyCommand(g),
		&cobra.Command{
			Use: "ls", Short: "The newest receipts", Args: noArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				c, err := g.client()
				if err != nil {
					return err
				}
				receipts, err := c.Receipts(cmd.Context(), 50)
				if err != nil {
					return err
				}
				if g.json {
					return writeJSON(cmd.OutOrStdout(), receipts)
				}
				var rows [][]string
				for _, r := range receipts {
					rows = append(rows, []string{r.Request.String(), fmt.Sprint(r.Choice), fmt.Sprintf("%d-%d", r.First, r.End),
						finishText(r.Finish), r.Host.Short(), paid(r), age(ended(r))})
				}
				return list(cmd, []string{"REQUEST", "CHOICE", "TOKENS", "FINISH", "HOST", "PRICE", "AGE"}, rows,
					"no receipts yet: `mesh chat` gets the first")
			},
		},
		&cobra.Command{
			Use: "show ID", Short: "The receipts of one answer, segment by segment", Args: want("ID"),
			RunE: func(cmd *cobra.Command, args []string) error {
				if _, err := mesh.ParseHash(args[0]); err != nil && !isShort(args[0]) {
					return usageError{fmt.Errorf("receipt %.70q: want 64 hex digits, or the first %d or more of them", args[0], minShort)}
				}
				c, err := g.client()
				if err != nil {
					return err
				}
				receipts, err := c.FindReceipt(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if g.json {
					return writeJSON(cmd.OutOrStdout(), receipts)
				}
				for i, r := range receipts {
					if i > 0 {
						fmt.Fprintln(cmd.OutOrStdout())
					}
					if err := printReceipt(cmd.OutOrStdout(), r); err != nil {
						return err
					}
				}
				return nil
			},
		},
	)
}

// verifyCommand checks receipts: those of an ID that the node has, or those in a file.
func verifyCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "verify ID|FILE", Short: "Check signatures and chain of an answer's receipts, and what the ledger says of them", Args: want("ID|FILE"),
		Long: "Check the receipts of an answer: form, signature of the host, that each goes on where one before it ends, and, of those that an\n" +
			"escrow pays, that the host settled them with this price. FILE is what `mesh receipt show ID --json` writes; - is the standard input.",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			var v api.Verification
			if _, err := mesh.ParseHash(args[0]); err == nil || isShort(args[0]) && !isFile(args[0]) {
				v, err = c.VerifyReceipt(cmd.Context(), args[0])
				if err != nil {
					return err
				}
			} else {
				receipts, err := readReceipts(cmd.InOrStdin(), args[0])
				if err != nil {
					return err
				}
				if v, err = c.VerifyReceipts(cmd.Context(), receipts); err != nil {
					return err
				}
			}
			if g.json {
				err = writeJSON(cmd.OutOrStdout(), v)
			} else {
				err = printVerification(cmd.OutOrStdout(), v)
			}
			if err == nil && !v.OK {
				return fmt.Errorf("receipt %s is not in order", v.Request.Short())
			}
			return err
		},
	}
}

func isFile(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular()
}

// readReceipts reads a file of receipts.
func readReceipts(stdin io.Reader, name string) (json.RawMessage, error) {
	in := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("receipt %.70q is neither an ID (64 hex digits, or the first %d or more of them) nor a file that can be read: %w", name, minShort, plainly.Said(err))
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, api.MaxReceipts+1))
	if err != nil {
		return nil, fmt.Errorf("read receipts: %w", err)
	}
	var list []json.RawMessage
	if len(b) > api.MaxReceipts || json.Unmarshal(b, &list) != nil {
		return nil, fmt.Errorf("%s has no receipts; write it with `mesh receipt show ID --json > FILE`", name)
	}
	return b, nil
}

func printVerification(w io.Writer, v api.Verification) error {
	for i, s := range v.Segments {
		if i > 0 {
			fmt.Fprintln(w)
		}
		signature, chain := "of the host, valid", "goes on where a receipt before it ends"
		switch {
		case !s.Signed:
			signature, chain = "NOT VALID", ""
		case !s.Joins:
			chain = "BROKEN"
		case s.First == 0:
			chain = "begins the answer"
		}
		read := ""
		if s.State != api.ReceiptFree && v.Height > 0 {
			read = fmt.Sprintf("of height %d", v.Height)
			if v.Proven {
				read += ", proven"
			}
		}
		what := [2]string{}
		if s.Signed {
			what = [2]string{s.Host.String(), fmt.Sprintf("%d to %d of choice %d", s.First, s.End, s.Choice)}
		}
		if err := fields(w, "receipt", v.Request.String(), "host", what[0], "tokens", what[1], "signature", signature, "chain", chain,
			"state", s.State+": "+s.Reason, "ledger", read); err != nil {
			return err
		}
	}
	return nil
}

func printReceipt(w io.Writer, r api.Receipt) error {
	valid := "signature of the host is valid"
	switch {
	case !r.Valid:
		valid = "NOT VALID"
	case r.Joins:
		valid += ", it joins what came before"
	}
	price := paid(r)
	if price == free && r.Price > 0 {
		price = fmt.Sprintf("free: no escrow pays the %s that the host asks for it", r.Price)
	}
	var took []string
	for _, at := range []struct {
		what string
		when time.Time
	}{{"first token", r.FirstToken}, {"all", r.Ended}} {
		if !at.when.IsZero() {
			took = append(took, fmt.Sprintf("%s after %s", at.what, at.when.Sub(r.Started).Round(time.Millisecond)))
		}
	}
	return fields(w,
		"receipt", r.Request.String(),
		"host", r.Host.String(),
		"model", r.Model.String(),
		"tokens", fmt.Sprintf("%d to %d of choice %d, after a prompt of %d", r.First, r.End, r.Choice, r.PromptTokens),
		"finish", finishText(r.Finish),
		"chain", r.ChainBefore.Short()+" → "+r.ChainAfter.Short(),
		"hidden", fmt.Sprintf("%s over %d positions", r.HiddenRoot.Short(), r.Positions),
		"computed", fmt.Sprintf("%s class, engine %s %s", r.Class, r.Engine, r.Contract),
		"price", price,
		"time", strings.Join(took, ", "),
		"check", valid)
}

const free = "free"

// paid is what an answer costs its payer.
func paid(r api.Receipt) string {
	if r.Price == 0 || r.Escrow.IsZero() {
		return free
	}
	return r.Price.String()
}

// ended is when a segment ended, or, of a host that was lost before, when it began.
func ended(r api.Receipt) time.Time {
	if r.Ended.IsZero() {
		return r.Started
	}
	return r.Ended
}

func finishText(finish string) string {
	if finish == "" {
		return "lost in mid-stream"
	}
	return finish
}
