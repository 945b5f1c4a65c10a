package main

import (
	"context"
	"fmt"
	"slices"
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

// mayEnd reports whether s may be the end of an address.
func mayEnd(s string) bool {
	return len(s) >= minShort && strings.Trim(s, "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz") == ""
}

// hostWords says what is wrong with the words that are to name a host.
func hostWords(text string) error {
	if _, err := mesh.ParseAddress(text); err != nil && !mayEnd(text) {
		return usageError{fmt.Errorf("%w; or type the last %d or more of a host on the ledger", err, minShort)}
	}
	return nil
}

// findHost returns the host that an address names, or the end of one, as lists show it.
// All addresses begin alike.
func findHost(hosts []api.LedgerHost, text string) (found api.LedgerHost, err error) {
	n := 0
	for _, h := range hosts {
		id := h.Host.String()
		if id == text {
			return h, nil
		}
		if !strings.HasSuffix(id, text) {
			continue
		}
		if n++; n > 1 {
			return found, fmt.Errorf("%s is the end of %s and of %s; type more of it", text, found.Host, id)
		}
		found = h
	}
	if n == 0 {
		return found, fmt.Errorf("%s is no host on the ledger; `mesh host show` lists them", text)
	}
	return found, nil
}

// wholeHost returns the address that is named, by itself or by the end of one of a host on
// the ledger.
func wholeHost(ctx context.Context, c *api.Client, text string) (mesh.Address, error) {
	if a, err := mesh.ParseAddress(text); err == nil {
		return a, nil
	}
	if err := hostWords(text); err != nil {
		return mesh.Address{}, err
	}
	hosts, err := c.Hosts(ctx)
	if err != nil {
		return mesh.Address{}, err
	}
	h, err := findHost(hosts, text)
	return h.Host, err
}

// wholeHash returns the ID that text is, or the only one of those that begins so.
func wholeHash(text, what string, ids func() ([]mesh.Hash, error)) (mesh.Hash, error) {
	id, err := mesh.ParseHash(text)
	if err == nil {
		return id, nil
	}
	if !isShort(text) {
		return id, usageError{fmt.Errorf("%s %.70q: want 64 hex digits, or the first %d or more of them", what, text, minShort)}
	}
	all, err := ids()
	if err != nil {
		return id, err
	}
	all = slices.DeleteFunc(all, func(id mesh.Hash) bool { return !strings.HasPrefix(id.String(), text) })
	switch len(all) {
	case 0:
		return id, fmt.Errorf("no %s that is known here begins with %s; type all 64 digits", what, text)
	case 1:
		return all[0], nil
	}
	return id, fmt.Errorf("%s is the beginning of %s and of %s; type more digits", text, all[0], all[1])
}

// wholeEscrow returns the escrow that text names: by its ID, or the beginning of one that
// `mesh wallet show` lists.
func (g *globals) wholeEscrow(ctx context.Context, from signer, text string) (mesh.Hash, error) {
	return wholeHash(text, "escrow", func() ([]mesh.Hash, error) {
		c, err := g.client()
		if err != nil {
			return nil, err
		}
		account, err := from.account()
		if err != nil {
			return nil, err
		}
		w, err := c.Wallet(ctx, account)
		var ids []mesh.Hash
		for _, e := range w.Escrows {
			ids = append(ids, e.Escrow)
		}
		return ids, err
	})
}

// wholeLedgerModel returns the model that text names: by its ID, or the beginning of one
// that `mesh gov rules` lists.
func wholeLedgerModel(ctx context.Context, c *api.Client, text string) (mesh.Hash, error) {
	return wholeHash(text, "model", func() ([]mesh.Hash, error) {
		rules, err := c.Rules(ctx)
		var ids []mesh.Hash
		for _, m := range rules.Models {
			ids = append(ids, m.Model)
		}
		return ids, err
	})
}
