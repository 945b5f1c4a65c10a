package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/gonka-mesh/mesh/node"
)

func doctorCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "What works and what does not on this machine, each line with the remedy", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			checks := node.Doctor(cmd.Context(), g.home, c)
			if g.json {
				if err := writeJSON(cmd.OutOrStdout(), checks); err != nil {
					return err
				}
			}
			failed := 0
			for _, check := range checks {
				if check.State == "fail" {
					failed++
				}
				if g.json {
					continue
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%-4s  %-12s %s\n", check.State, check.Name, check.Detail)
				if check.Remedy != "" {
					fmt.Fprintf(cmd.OutOrStdout(), "%19s→ %s\n", "", check.Remedy)
				}
			}
			if failed > 0 {
				return errors.New(plural(failed, "check") + " failed")
			}
			return nil
		},
	}
}
