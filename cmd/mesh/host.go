package main

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/node/api"
)

func hostCommand(g *globals) *cobra.Command {
	var from signer
	var target string
	stake := &cobra.Command{
		Use: "stake AMOUNT", Short: "Put collateral behind this node's host, which its own key (no --key) registers first if it is not", Args: want("AMOUNT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.stake(cmd, from, target, args[0], func(host []byte, amount uint64) *ledgerpb.Tx {
				return &ledgerpb.Tx{Action: &ledgerpb.Tx_Stake{Stake: &ledgerpb.Stake{Host: host, Amount: amount}}}
			})
		},
	}
	unstake := &cobra.Command{
		Use: "unstake AMOUNT", Short: "Take collateral back; the owner gets it when it has unbonded", Args: want("AMOUNT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.stake(cmd, from, target, args[0], func(host []byte, amount uint64) *ledgerpb.Tx {
				return &ledgerpb.Tx{Action: &ledgerpb.Tx_Unstake{Unstake: &ledgerpb.Unstake{Host: host, Amount: amount}}}
			})
		},
	}
	for _, cmd := range []*cobra.Command{stake, unstake} {
		from.flags(cmd)
		cmd.Flags().StringVar(&target, "host", "", "PEER whose collateral it is (default: this node)")
	}
	return noun("host", "Hosts on the ledger: show, stake, unstake, unjail, delegate",
		hostShowCommand(g), stake, unstake, hostUnjailCommand(g), hostDelegateCommand(g))
}

func hostUnjailCommand(g *globals) *cobra.Command {
	var own signer
	cmd := &cobra.Command{
		Use: "unjail", Short: "Come back after downtime", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.submit(cmd, own, &ledgerpb.Tx{Action: &ledgerpb.Tx_Unjail{Unjail: &ledgerpb.Unjail{}}})
		},
	}
	own.feeFlag(cmd)
	return cmd
}

func hostDelegateCommand(g *globals) *cobra.Command {
	var own signer
	cmd := &cobra.Command{
		Use: "delegate MODEL PEER", Short: "Let another host vote for this one's work on a model; PEER 'none' takes it back, MODEL 'all' is every model", Args: want("MODEL", "PEER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			d := &ledgerpb.Delegate{Model: make([]byte, len(mesh.Hash{}))}
			c, err := g.client()
			if err != nil {
				return err
			}
			if args[0] != "all" {
				model, err := wholeLedgerModel(cmd.Context(), c, args[0])
				if err != nil {
					return err
				}
				d.Model = model[:]
			}
			if args[1] != "none" {
				to, err := wholeHost(cmd.Context(), c, args[1])
				if err != nil {
					return err
				}
				d.To = to[:]
			}
			return g.submit(cmd, own, &ledgerpb.Tx{Action: &ledgerpb.Tx_Delegate{Delegate: d}})
		},
	}
	own.feeFlag(cmd)
	return cmd
}

func hostShowCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "show [PEER]", Short: "Hosts on the ledger, or one of them", Args: wantAtMost("PEER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				if err := hostWords(args[0]); err != nil {
					return err
				}
			}
			hosts, err := c.Hosts(cmd.Context())
			if err != nil {
				return err
			}
			if len(args) == 1 {
				h, err := findHost(hosts, args[0])
				if err != nil {
					return err
				}
				return g.showHost(cmd, h)
			}
			if g.json {
				return writeJSON(cmd.OutOrStdout(), hosts)
			}
			var rows [][]string
			for _, h := range hosts {
				rows = append(rows, []string{h.Host.Short(), h.Collateral.String(), fmt.Sprint(h.Weight), percent(h.Power), hostState(h)})
			}
			return table(cmd.OutOrStdout(), []string{"HOST", "COLLATERAL", "WEIGHT", "POWER", "STATE"}, rows)
		},
	}
}

func (g *globals) showHost(cmd *cobra.Command, h api.LedgerHost) error {
	if g.json {
		return writeJSON(cmd.OutOrStdout(), h)
	}
	missed, delegates := fmt.Sprintf("%d blocks of the window", h.Missed), delegatesOf(h)
	if h.Proven {
		missed = "not known to a light node; ask a full one"
		delegates = missed
	}
	return fields(cmd.OutOrStdout(),
		"host", h.Host.String(), "owner", h.Owner.String(), "since", fmt.Sprintf("epoch %d", h.Since),
		"collateral", h.Collateral.String(), "unbonding", h.Unbonding.String(),
		"weight", fmt.Sprint(h.Weight), "power", percent(h.Power), "missed", missed,
		"delegates", delegates, "state", hostState(h), "key", h.ConsensusKey)
}

// delegatesOf says who votes for a host.
func delegatesOf(h api.LedgerHost) string {
	var all []string
	for _, d := range h.Delegates {
		model := "all"
		if !d.Model.IsZero() {
			model = d.Model.Short()
		}
		all = append(all, model+": "+d.To.Short())
	}
	return cmp.Or(strings.Join(all, ", "), "none")
}

func hostState(h api.LedgerHost) string {
	state := "serves"
	switch {
	case h.Tombstoned:
		state = "signed two blocks: out for good"
	case h.JailedUntil > 0:
		state = fmt.Sprintf("jailed until epoch %d, then `mesh host unjail`", h.JailedUntil)
	case h.Power > 0:
		state = "validates"
	case h.Collateral == 0:
		state = "registered, without collateral"
	}
	if h.Own {
		state += " (this node)"
	}
	return state
}

func percent(share float64) string { return fmt.Sprintf("%.1f %%", 100*share) }

// stake submits a change of a host's collateral.
func (g *globals) stake(cmd *cobra.Command, from signer, target, text string, make func(host []byte, amount uint64) *ledgerpb.Tx) error {
	amount, err := mesh.ParseAmount(text)
	if err != nil {
		return usageError{err}
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	var host mesh.Address
	if target != "" {
		if host, err = wholeHost(cmd.Context(), c, target); err != nil {
			return err
		}
	} else {
		s, err := c.Status(cmd.Context())
		if err != nil {
			return err
		}
		host = s.Peer
	}
	return g.submit(cmd, from, make(host[:], uint64(amount)))
}
