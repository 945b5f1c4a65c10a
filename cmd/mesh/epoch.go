package main

import (
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/gonka-mesh/mesh/node/api"
)

func epochCommand(g *globals) *cobra.Command {
	return noun("epoch", "What each epoch came to: ls, show", epochListCommand(g), epochShowCommand(g))
}

func epochListCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "The newest epochs", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			epochs, err := c.Epochs(cmd.Context(), 20)
			if err != nil {
				return err
			}
			if g.json {
				return writeJSON(cmd.OutOrStdout(), epochs)
			}
			var rows [][]string
			for _, e := range epochs {
				row := []string{fmt.Sprint(e.Epoch), heights(uint64(e.First), uint64(e.Last))}
				switch {
				case e.Last == 0:
					row = append(row, "runs", "-", "-", "-", "-")
				case !e.Closed:
					row = append(row, "is being settled", "-", "-", "-", "-")
				default:
					row = append(row, "closed", fmt.Sprint(e.Hosts), e.Emission.String(), fmt.Sprint(e.Receipts), e.Paid.String())
				}
				rows = append(rows, row)
			}
			return table(cmd.OutOrStdout(), []string{"EPOCH", "HEIGHTS", "STATE", "HOSTS", "EMITTED", "RECEIPTS", "PAID"}, rows)
		},
	}
}

func epochShowCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "show N", Short: "One epoch and each host's part of it", Args: want("N"),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil {
				return usageError{fmt.Errorf("epoch %q: want a number", args[0])}
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			e, err := c.Epoch(cmd.Context(), n)
			if err != nil {
				return err
			}
			if g.json {
				return writeJSON(cmd.OutOrStdout(), e)
			}
			return printEpoch(cmd.OutOrStdout(), e)
		},
	}
}

func printEpoch(out io.Writer, e api.Epoch) error {
	if !e.Closed { // what it comes to is known when it is settled
		if err := fields(out, "epoch", fmt.Sprint(e.Epoch), "heights", heights(uint64(e.First), uint64(e.Last)), "seed", e.Seed); err != nil {
			return err
		}
		_, err := fmt.Fprintln(out, "\nnot closed yet: hosts settle in the first blocks of the next epoch")
		return err
	}
	if err := fields(out, "epoch", fmt.Sprint(e.Epoch), "heights", heights(uint64(e.First), uint64(e.Last)), "seed", e.Seed,
		"emitted", e.Emission.String(), "receipts", fmt.Sprintf("%d in %d settlements", e.Receipts, e.Settlements),
		"paid", e.Paid.String(), "weight", fmt.Sprint(e.Weight), "root", e.RewardsRoot); err != nil {
		return err
	}
	fmt.Fprintln(out)
	var rows [][]string
	for _, r := range e.Rewards {
		rows = append(rows, []string{r.Host.Short(), fmt.Sprint(r.Weight), r.Reward.String(), r.Paid.String(), percent(r.Power)})
	}
	return table(out, []string{"HOST", "WEIGHT", "REWARD", "PAID", "POWER"}, rows)
}

func heights(first, last uint64) string {
	if last == 0 {
		return fmt.Sprintf("%d-", first)
	}
	return fmt.Sprintf("%d-%d", first, last)
}
