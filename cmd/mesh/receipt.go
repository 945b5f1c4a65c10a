package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/node/api"
)

func receiptCommand(g *globals) *cobra.Command {
	return noun("receipt", "What hosts signed about their answers: ls, show",
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
						finishText(r.Finish), r.Host.Short(), r.Price.String(), age(r.Ended)})
				}
				return table(cmd.OutOrStdout(), []string{"REQUEST", "CHOICE", "TOKENS", "FINISH", "HOST", "PRICE", "AGE"}, rows)
			},
		},
		&cobra.Command{
			Use: "show ID", Short: "The receipts of one answer, segment by segment", Args: oneArg("ID"),
			RunE: func(cmd *cobra.Command, args []string) error {
				id, err := mesh.ParseHash(args[0])
				if err != nil {
					return usageError{err}
				}
				c, err := g.client()
				if err != nil {
					return err
				}
				receipts, err := c.Receipt(cmd.Context(), id)
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

func printReceipt(w io.Writer, r api.Receipt) error {
	valid := "signature of the host is valid"
	switch {
	case !r.Valid:
		valid = "NOT VALID"
	case r.Joins:
		valid += ", it joins what came before"
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
		"price", r.Price.String(),
		"time", fmt.Sprintf("first token after %s, all after %s", r.FirstToken.Sub(r.Started).Round(time.Millisecond), r.Ended.Sub(r.Started).Round(time.Millisecond)),
		"check", valid)
}

func finishText(finish string) string {
	if finish == "" {
		return "lost in mid-stream"
	}
	return finish
}
