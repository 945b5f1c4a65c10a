package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/node/api"
	"github.com/gonka-mesh/mesh/p2p"
)

func statusCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "This node: peer, role, network, reachability, ledger, models, earnings", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			if g.json {
				return writeJSON(cmd.OutOrStdout(), s)
			}
			return printStatus(cmd.OutOrStdout(), s)
		},
	}
}

func printStatus(w io.Writer, s api.Status) error {
	owner := ""
	if !s.Owner.IsZero() && s.Owner != s.Peer {
		owner = s.Owner.String()
	}
	served := fmt.Sprintf("%s, %d output tokens, %s by receipts", plural(s.Served.Receipts, "answer"), s.Served.OutputTokens, s.Served.Earned)
	if s.Role == p2p.RoleLight {
		served = ""
	}
	reach := s.Reachability.State + ": " + s.Reachability.Reason
	if err := fields(w,
		"peer", s.Peer.String(),
		"role", s.Role,
		"network", fmt.Sprintf("%s, epoch %d", s.Network, s.Epoch),
		"reachable", reach,
		"remedy", s.Reachability.Remedy,
		"external", strings.Join(s.Reachability.External, " "),
		"port map", s.Reachability.PortMap,
		"address", p2p.Furthest(s.Addrs),
		"peers", fmt.Sprint(s.Peers),
		"ledger", ledgerLine(s.Ledger),
		"problem", ledgerProblem(s.Ledger),
		"api", s.API,
		"owner", owner,
		"served", served,
		"up", (time.Duration(s.UptimeS) * time.Second).String(),
		"memory", size(s.MemoryBytes),
		"gpu", gpuLine(s),
		"version", fmt.Sprintf("%s, protocol %d", s.Version, s.Protocol),
	); err != nil {
		return err
	}
	if len(s.Engines) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	var rows [][]string
	for _, e := range s.Engines {
		rows = append(rows, []string{e.Name, e.Model.Short(), e.Class, e.Weights, fmt.Sprint(e.Context),
			fmt.Sprintf("%d/%d", e.Active, e.Slots), fmt.Sprint(e.Queued)})
	}
	return table(w, []string{"MODEL", "ID", "CLASS", "WEIGHTS", "CONTEXT", "ACTIVE", "QUEUED"}, rows)
}

// ledgerLine says where the ledger stands and what this node does for it.
func ledgerLine(l *api.LedgerStatus) string {
	if l == nil {
		return ""
	}
	line := fmt.Sprintf("height %d, epoch %d", l.Height, l.Epoch)
	if !l.BlockTime.IsZero() && l.Height > 0 {
		line += fmt.Sprintf(", last block %s ago", max(0, time.Since(l.BlockTime)).Round(time.Second))
	}
	switch {
	case l.Light:
		line += ", verified by headers and proofs"
	case l.Doing != "":
		line += ", " + l.Doing
	case l.CatchingUp:
		line += ", catching up"
	case l.Validator:
		line += fmt.Sprintf(", validates with %s of the power", percent(l.Power))
	case l.Error == "":
		line += ", follows"
	}
	return line
}

func ledgerProblem(l *api.LedgerStatus) string {
	if l == nil {
		return ""
	}
	return l.Error
}

// gpuLine names the accelerators and how busy they are, or why there are none.
func gpuLine(s api.Status) string {
	if len(s.GPUs) == 0 {
		if s.Role == p2p.RoleLight {
			return "" // it computes nothing, and does not look
		}
		return cmp.Or(s.GPUReason, "not looked for yet")
	}
	var words []string
	for _, g := range s.GPUs {
		word := fmt.Sprintf("%d %s, %s of %s in use", g.Index, g.Name, size(int64(g.UsedBytes)), size(int64(g.MemoryBytes)))
		if g.Utilisation != nil {
			word += fmt.Sprintf(", %d %% busy", *g.Utilisation)
		}
		if g.Temperature != nil {
			word += fmt.Sprintf(", %d °C", *g.Temperature)
		}
		if g.Fault != "" {
			word = fmt.Sprintf("%d %s: %s", g.Index, g.Name, g.Fault)
		}
		words = append(words, word)
	}
	return strings.Join(words, "; ")
}

func versionCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Version of the software and of the protocol", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if g.json {
				return writeJSON(cmd.OutOrStdout(), map[string]any{"version": mesh.Version, "protocol": mesh.ProtocolVersion})
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "mesh %s, protocol %d\n", mesh.Version, mesh.ProtocolVersion)
			return err
		},
	}
}
