package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/node/api"
)

// minShort is how many digits of an ID stand for it at least.
const minShort = api.MinShort

// isShort reports whether s may be the beginning of an ID in hex, and not all of it.
func isShort(s string) bool {
	return len(s) >= minShort && len(s) < 2*len(mesh.Hash{}) && strings.Trim(s, "0123456789abcdef") == ""
}

// findModel returns the model that ref names: by its name, its ID or root, or the
// beginning of one of them.
func findModel(models []api.Model, ref string) (m api.Model, found bool, err error) {
	for _, m := range models {
		if m.Name == ref || m.Model.String() == ref || m.Root.String() == ref {
			return m, true, nil
		}
	}
	if !isShort(ref) {
		return m, false, nil
	}
	var ids []string
	for _, c := range models {
		for _, id := range []mesh.Hash{c.Model, c.Root} {
			if !id.IsZero() && strings.HasPrefix(id.String(), ref) {
				m, ids = c, append(ids, id.String())
				break
			}
		}
	}
	if len(ids) > 1 {
		return m, false, fmt.Errorf("%s is the beginning of %s; type more digits", ref, strings.Join(ids, " and of "))
	}
	return m, len(ids) == 1, nil
}

// wholeModel returns the ID of the model that the beginning of one stands for, and
// anything else as it is.
func wholeModel(ctx context.Context, c *api.Client, ref string) (string, error) {
	if !isShort(ref) {
		return ref, nil
	}
	models, err := c.Models(ctx)
	if err != nil {
		return "", err
	}
	m, found, err := findModel(models, ref)
	switch {
	case err != nil:
		return "", err
	case !found || m.Name == ref:
		return ref, nil
	case m.Model.IsZero():
		return m.Root.String(), nil
	}
	return m.Model.String(), nil
}
