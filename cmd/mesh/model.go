package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gonka-mesh/mesh/node/api"
)

func modelCommand(g *globals) *cobra.Command {
	return noun("model", "Models of this node and of the mesh: ls, add, rm, pull, show", modelListCommand(g), modelShowCommand(g), modelAddCommand(g), modelPullCommand(g), modelRemoveCommand(g))
}

func modelListCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "Models that this node has or knows of", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			models, err := c.Models(cmd.Context())
			if err != nil {
				return err
			}
			if g.json {
				return writeJSON(cmd.OutOrStdout(), models)
			}
			var rows [][]string
			for _, m := range models {
				rows = append(rows, []string{m.Name, m.Model.Short(), fileSize(m), fmt.Sprint(m.Context), here(m), plural(m.Hosts, "host")})
			}
			return list(cmd, []string{"NAME", "ID", "SIZE", "CONTEXT", "HERE", "ELSEWHERE"}, rows,
				"no models: this node serves none and knows no host; see `mesh peer ls`")
		},
	}
}

func modelShowCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "show MODEL", Short: "One model, by name or ID", Args: want("MODEL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			models, err := c.Models(cmd.Context())
			if err != nil {
				return err
			}
			m, found, err := findModel(models, args[0])
			if err != nil {
				return err
			}
			if !found {
				return fmt.Errorf("no model %s; `mesh model ls` shows them", args[0])
			}
			return showModel(cmd, g, m)
		},
	}
}

func modelAddCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "add FILE|FOLDER|NAME|HASH", Short: "Serve a GGUF file, a folder of safetensors, or a model that the mesh has", Args: want("FILE|FOLDER|NAME|HASH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := modelRef(args[0])
			if err != nil {
				return err
			}
			return longModel(cmd, g, ref, (*api.Client).AddModel)
		},
	}
}

func modelPullCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "pull HASH", Short: "Fetch a model's files from peers, without serving it", Args: want("HASH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return longModel(cmd, g, args[0], (*api.Client).PullModel)
		},
	}
}

func modelRemoveCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "rm MODEL", Short: "Stop serving a model and delete it if it was pulled", Args: want("MODEL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			ref, err := wholeModel(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			m, err := c.RemoveModel(cmd.Context(), ref)
			if err != nil {
				return err
			}
			return showModel(cmd, g, m)
		},
	}
}

// modelRef returns a path as the node needs it, which has another working directory
// than the person who types; anything else as it is. A folder that is called like a
// model and holds none is not meant.
func modelRef(ref string) (string, error) {
	info, err := os.Stat(ref)
	if err != nil {
		return ref, nil
	}
	if info.IsDir() && !strings.ContainsRune(ref, filepath.Separator) {
		if _, err := os.Stat(filepath.Join(ref, "config.json")); err != nil {
			return ref, nil
		}
	}
	abs, err := filepath.Abs(ref)
	if err != nil {
		return "", fmt.Errorf("model %s: %w", ref, err)
	}
	return abs, nil
}

func longModel(cmd *cobra.Command, g *globals, ref string,
	op func(*api.Client, context.Context, string, func(api.Progress)) (api.Model, error)) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	if ref, err = wholeModel(cmd.Context(), c, ref); err != nil {
		return err
	}
	m, err := op(c, cmd.Context(), ref, showProgress(cmd.ErrOrStderr()))
	if err != nil {
		return err
	}
	return showModel(cmd, g, m)
}

// fileSize is how large a model's file is: of one that is built in, hosts do not say.
func fileSize(m api.Model) string {
	if m.Bytes == 0 {
		return "-"
	}
	return size(m.Bytes)
}

func showModel(cmd *cobra.Command, g *globals, m api.Model) error {
	if g.json {
		return writeJSON(cmd.OutOrStdout(), m)
	}
	root, id := "", ""
	if !m.Root.IsZero() {
		root = m.Root.String()
	}
	if !m.Model.IsZero() {
		id = m.Model.String()
	}
	return fields(cmd.OutOrStdout(),
		"name", m.Name, "id", id, "root", root, "size", fileSize(m), "architecture", m.Arch, "weights", m.Weights,
		"context", fmt.Sprint(m.Context), "class", m.Class, "here", here(m), "elsewhere", plural(m.Hosts, "host"), "file", m.Path)
}

func here(m api.Model) string {
	switch {
	case m.Served && m.Builtin:
		return "served, built in"
	case m.Served:
		return "served"
	case m.Builtin:
		return "built in"
	case m.Path != "":
		return "file"
	}
	return "-"
}
