package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gonka-mesh/mesh/node/api"
)

func peerCommand(g *globals) *cobra.Command {
	return noun("peer", "The peers of the node that runs here: ls, show, connect", peerListCommand(g), peerShowCommand(g), peerConnectCommand(g))
}

func peerListCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "Connected peers", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			peers, err := c.Peers(cmd.Context())
			if err != nil {
				return err
			}
			if g.json {
				return writeJSON(cmd.OutOrStdout(), peers)
			}
			var rows [][]string
			for _, p := range peers {
				rows = append(rows, []string{p.Peer.String(), p.Role, p.Transport, p.Direction,
					fmt.Sprintf("%.1f ms", p.LatencyMS), age(p.Since), strings.Join(modelNames(p), ",")})
			}
			return list(cmd, []string{"PEER", "ROLE", "VIA", "DIR", "LATENCY", "SINCE", "MODELS"}, rows,
				"no peers yet: `mesh peer connect MULTIADDR` dials one, `mesh doctor` says what is wrong")
		},
	}
}

func peerShowCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "show PEER", Short: "One peer", Args: want("PEER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			peers, err := c.Peers(cmd.Context())
			if err != nil {
				return err
			}
			var found []api.Peer
			for _, p := range peers {
				if id := p.Peer.String(); id == args[0] || len(args[0]) >= minShort && strings.HasSuffix(id, args[0]) {
					found = append(found, p)
				}
			}
			switch len(found) {
			case 0:
			case 1:
				return showPeer(cmd, g, found[0])
			default:
				return fmt.Errorf("%s is the end of %s and of %s; type more of it", args[0], found[0].Peer, found[1].Peer)
			}
			return fmt.Errorf("no connected peer %s; `mesh peer ls` shows them", args[0])
		},
	}
}

func peerConnectCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "connect MULTIADDR", Short: "Dial a peer: /ip4/…/tcp/…/p2p/PEER", Args: want("MULTIADDR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			p, err := c.Connect(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return showPeer(cmd, g, p)
		},
	}
}

func showPeer(cmd *cobra.Command, g *globals, p api.Peer) error {
	if g.json {
		return writeJSON(cmd.OutOrStdout(), p)
	}
	return fields(cmd.OutOrStdout(),
		"peer", p.Peer.String(), "role", p.Role, "agent", p.Agent, "via", p.Transport+", "+p.Direction,
		"latency", fmt.Sprintf("%.1f ms", p.LatencyMS), "connected", age(p.Since),
		"penalty", fmt.Sprintf("%g", p.Score), "models", strings.Join(modelNames(p), ", "), "addresses", strings.Join(p.Addrs, " "))
}

func modelNames(p api.Peer) []string {
	var names []string
	for _, m := range p.Models {
		names = append(names, m.Name)
	}
	return names
}
