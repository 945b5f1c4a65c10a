package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/internal/plainly"
	"github.com/gonka-mesh/mesh/node/api"
)

func govCommand(g *globals) *cobra.Command {
	return noun("gov", "Decisions of those who do the work: ls, show, rules, propose, vote",
		govListCommand(g), govShowCommand(g), govRulesCommand(g), govProposeCommand(g), govVoteCommand(g))
}

func govListCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "Proposals, the newest first", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			proposals, err := c.Proposals(cmd.Context())
			if err != nil {
				return err
			}
			if g.json {
				return writeJSON(cmd.OutOrStdout(), proposals)
			}
			var rows [][]string
			for _, p := range proposals {
				rows = append(rows, []string{fmt.Sprint(p.ID), p.Kind, p.Status, fmt.Sprint(p.Ends), tally(p), p.Title})
			}
			return table(cmd.OutOrStdout(), []string{"ID", "KIND", "STATUS", "ENDS", "YES/NO/VETO/ALL", "TITLE"}, rows)
		},
	}
}

// tally is the count of a vote, which is made at its end: delegations and weights are
// looked at then. Before that it is how many hosts have voted, where the node knows.
func tally(p api.Proposal) string {
	switch {
	case p.Status == ledger.StatusVoting && p.Proven:
		return "counted at the end"
	case p.Status == ledger.StatusVoting:
		return plural(len(p.Ballots), "ballot") + ", counted at the end"
	}
	return fmt.Sprintf("%d/%d/%d/%d", p.Tally["yes"], p.Tally["no"], p.Tally["veto"], p.Tally["all"])
}

func govShowCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "One proposal and the votes", Args: want("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil {
				return usageError{fmt.Errorf("proposal %q: want a number", args[0])}
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			p, err := c.Proposal(cmd.Context(), id)
			if err != nil {
				return err
			}
			if g.json {
				return writeJSON(cmd.OutOrStdout(), p)
			}
			out := cmd.OutOrStdout()
			if err := fields(out, "proposal", fmt.Sprint(p.ID), "title", p.Title, "text", p.Text, "by", p.Proposer.String(), "kind", p.Kind,
				"change", string(p.Change), "deposit", p.Deposit.String(), "voting", fmt.Sprintf("heights %d to %d", p.Opened, p.Ends),
				"status", strings.TrimSuffix(p.Status+": "+p.Reason, ": "), "yes/no/veto/all", tally(p)); err != nil {
				return err
			}
			if p.Proven {
				_, err := fmt.Fprintln(out, "\nballots are not known to a light node; ask a full one")
				return err
			}
			var rows [][]string
			for _, b := range p.Ballots {
				rows = append(rows, []string{b.Host.String(), b.Option})
			}
			if len(rows) == 0 {
				return nil
			}
			fmt.Fprintln(out)
			return table(out, []string{"HOST", "VOTE"}, rows)
		},
	}
}

func govRulesCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "rules", Short: "Parameters, models and a planned upgrade", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			r, err := c.Rules(cmd.Context())
			if err != nil {
				return err
			}
			if g.json {
				return writeJSON(cmd.OutOrStdout(), r)
			}
			return printRules(cmd.OutOrStdout(), r)
		},
	}
}

func printRules(out io.Writer, r api.Rules) error {
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(r.Params)) {
		pairs = append(pairs, name, strconv.FormatUint(r.Params[name], 10))
	}
	if err := fields(out, pairs...); err != nil {
		return err
	}
	fmt.Fprintln(out)
	var rows [][]string
	for _, m := range r.Models {
		state := "approved"
		if m.Retired > 0 {
			state = fmt.Sprintf("retired in epoch %d", m.Retired)
		}
		rows = append(rows, []string{m.Model.Short(), m.Name, fmt.Sprint(m.Coefficient), state})
	}
	if err := table(out, []string{"MODEL", "NAME", "COEFFICIENT", "STATE"}, rows); err != nil {
		return err
	}
	if u := r.Upgrade; u != nil {
		known := "this software knows it"
		if !u.Known {
			known = "this software does not know it: install one that does before then"
		}
		fmt.Fprintf(out, "\nupgrade %s at height %d; %s\n%s\n", u.Name, u.Height, known, u.Info)
	}
	return nil
}

// proposalFile is what `mesh gov propose` reads, in YAML.
type proposalFile struct {
	Title   string            `yaml:"title"`
	Text    string            `yaml:"text"`
	Deposit string            `yaml:"deposit"` // in GNK; default: the least
	Params  map[string]uint64 `yaml:"params"`
	Model   *struct {
		ID          string `yaml:"id"`
		Name        string `yaml:"name"`
		Coefficient uint64 `yaml:"coefficient"` // weight of 1000 artifacts; 0 retires
	} `yaml:"model"`
	Upgrade *struct {
		Name   string `yaml:"name"`
		Height uint64 `yaml:"height"`
		Info   string `yaml:"info"`
	} `yaml:"upgrade"`
	Spend *struct {
		To     string `yaml:"to"`
		Amount string `yaml:"amount"` // in GNK
	} `yaml:"spend"`
}

func govProposeCommand(g *globals) *cobra.Command {
	var own signer
	cmd := &cobra.Command{
		Use: "propose FILE", Short: "Put a proposal to the vote; FILE is YAML",
		Long: "Put a proposal to the vote. FILE is YAML: a title, a text, and one of the four changes; a resolution has none.",
		Example: `  title: Dearer bytes
  text: Why
  # deposit: 100         # GNK; without it the least
  params:                # by the names of "mesh gov rules"
    fee_per_byte: 20
  # model: {id: HASH, name: NAME, coefficient: 1000}              (0 retires it)
  # upgrade: {name: v2, height: 120000, info: where to get it}
  # spend: {to: ADDRESS, amount: 10}                              (GNK, from the community pool)`,
		Args: want("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("open proposal: %w", err)
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			rules, err := c.Rules(cmd.Context())
			if err != nil {
				return err
			}
			p, err := parseProposal(b, rules.Params["deposit_min"])
			if err != nil {
				return fmt.Errorf("proposal %s: %w", args[0], err)
			}
			return g.submit(cmd, own, &ledgerpb.Tx{Action: &ledgerpb.Tx_Propose{Propose: p}})
		},
	}
	own.feeFlag(cmd)
	return cmd
}

func parseProposal(b []byte, deposit uint64) (*ledgerpb.Propose, error) {
	var in proposalFile
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&in); err != nil {
		return nil, plainly.YAML(err)
	}
	out := &ledgerpb.Propose{Title: in.Title, Text: in.Text, Deposit: deposit}
	if in.Deposit != "" {
		a, err := mesh.ParseAmount(in.Deposit)
		if err != nil {
			return nil, err
		}
		out.Deposit = uint64(a)
	}
	changes := 0
	if len(in.Params) > 0 {
		changes++
		set := new(ledgerpb.ParamsChange)
		for _, name := range slices.Sorted(maps.Keys(in.Params)) {
			set.Set = append(set.Set, &ledgerpb.ParamChange{Name: name, Value: in.Params[name]})
		}
		out.Change = &ledgerpb.Propose_Params{Params: set}
	}
	if m := in.Model; m != nil {
		changes++
		id, err := mesh.ParseHash(m.ID)
		if err != nil {
			return nil, fmt.Errorf("model: %w", err)
		}
		out.Change = &ledgerpb.Propose_Model{Model: &ledgerpb.ModelChange{Model: id[:], Name: m.Name, Coefficient: m.Coefficient}}
	}
	if u := in.Upgrade; u != nil {
		changes++
		out.Change = &ledgerpb.Propose_Upgrade{Upgrade: &ledgerpb.Upgrade{Name: u.Name, Height: u.Height, Info: u.Info}}
	}
	if s := in.Spend; s != nil {
		changes++
		to, err := mesh.ParseAddress(s.To)
		if err != nil {
			return nil, fmt.Errorf("spend: %w", err)
		}
		amount, err := mesh.ParseAmount(s.Amount)
		if err != nil {
			return nil, fmt.Errorf("spend: %w", err)
		}
		out.Change = &ledgerpb.Propose_Spend{Spend: &ledgerpb.Spend{To: to[:], Amount: uint64(amount)}}
	}
	if changes > 1 {
		return nil, errors.New("one change at a time: params, model, upgrade or spend")
	}
	return out, nil
}

func govVoteCommand(g *globals) *cobra.Command {
	var own signer
	cmd := &cobra.Command{
		Use: "vote ID yes|no|abstain|veto", Short: "Vote with this host's weight", Args: want("ID", "yes|no|abstain|veto"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil {
				return usageError{fmt.Errorf("proposal %q: want a number", args[0])}
			}
			option, ok := ledgerpb.Option_value[strings.ToUpper(args[1])]
			if !ok || option == int32(ledgerpb.Option_NONE) {
				return usageError{fmt.Errorf("vote %q: yes, no, abstain or veto", args[1])}
			}
			return g.submit(cmd, own, &ledgerpb.Tx{Action: &ledgerpb.Tx_Vote{Vote: &ledgerpb.Vote{Proposal: id, Option: ledgerpb.Option(option)}}})
		},
	}
	own.feeFlag(cmd)
	return cmd
}
