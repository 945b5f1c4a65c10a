package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/internal/keyfile"
	"github.com/gonka-mesh/mesh/node"
	"github.com/gonka-mesh/mesh/node/api"
)

func walletCommand(g *globals) *cobra.Command {
	return noun("wallet", "Money: show, send, escrow, key",
		walletShowCommand(g), walletSendCommand(g), escrowCommand(g), keyCommand(g))
}

func walletShowCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "show [ADDRESS]", Short: "The balance of this node, or of an address", Args: wantAtMost("ADDRESS"),
		Long: "The balance of this node, or of an address. Of an escrow, LANES is what it holds for hosts by name, and POOL what all hosts of this epoch\n" +
			"may take together: half of what is free, after the pool of the epoch before, which is held until that epoch is closed.",
		RunE: func(cmd *cobra.Command, args []string) error {
			var address mesh.Address
			if len(args) == 1 {
				var err error
				if address, err = mesh.ParseAddress(args[0]); err != nil {
					return usageError{err}
				}
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			w, err := c.Wallet(cmd.Context(), address)
			if err != nil {
				return err
			}
			if g.json {
				return writeJSON(cmd.OutOrStdout(), w)
			}
			return printWallet(cmd.OutOrStdout(), w)
		},
	}
}

func printWallet(out io.Writer, w api.Wallet) error {
	optional := func(a mesh.Amount) string {
		if a == 0 {
			return ""
		}
		return a.String()
	}
	how := "computed by this node"
	if w.Proven {
		how = "proven by a verified header"
	}
	if err := fields(out,
		"address", w.Address.String(),
		"balance", w.Balance.String(),
		"vesting", optional(w.Vesting),
		"staked", optional(w.Staked),
		"unbonding", optional(w.Unbonding),
		"as of", fmt.Sprintf("height %d, %s", w.Height, how)); err != nil {
		return err
	}
	if len(w.Escrows) == 0 {
		return nil
	}
	fmt.Fprintln(out)
	var rows [][]string
	for _, e := range w.Escrows {
		state := "open"
		if e.Closing > 0 {
			state = fmt.Sprintf("paid back in epoch %d", e.Closing)
		}
		rows = append(rows, []string{e.Escrow.String(), e.Amount.String(), e.Lanes.String(), e.Pool.String(), e.Spent.String(), state})
	}
	return table(out, []string{"ESCROW", "AMOUNT", "LANES", "POOL", "UNSETTLED", "STATE"}, rows)
}

func walletSendCommand(g *globals) *cobra.Command {
	var memo string
	var from signer
	cmd := &cobra.Command{
		Use: "send ADDRESS AMOUNT", Short: "Send money, in GNK: mesh wallet send 12D3… 1.5", Args: want("ADDRESS", "AMOUNT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := mesh.ParseAddress(args[0])
			if err != nil {
				return usageError{err}
			}
			amount, err := mesh.ParseAmount(args[1])
			if err != nil {
				return usageError{err}
			}
			return g.submit(cmd, from, &ledgerpb.Tx{Action: &ledgerpb.Tx_Transfer{
				Transfer: &ledgerpb.Transfer{To: to[:], Amount: uint64(amount), Memo: memo}}})
		},
	}
	cmd.Flags().StringVar(&memo, "memo", "", "a note for the recipient, public, at most 128 bytes")
	from.flags(cmd)
	return cmd
}

// escrowCommand opens an escrow; its verbs change one.
func escrowCommand(g *globals) *cobra.Command {
	var lanes []string
	var from signer
	cmd := &cobra.Command{
		Use: "escrow AMOUNT", Short: "Set money aside for answers; hosts are paid from it as they are acknowledged", Args: want("AMOUNT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			amount, err := mesh.ParseAmount(args[0])
			if err != nil {
				return usageError{err}
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			open := &ledgerpb.OpenEscrow{Amount: uint64(amount)}
			for _, text := range lanes {
				lane, err := parseLane(cmd.Context(), c, text)
				if err != nil {
					return err
				}
				open.Lanes = append(open.Lanes, lane)
			}
			slices.SortFunc(open.Lanes, func(a, b *ledgerpb.Lane) int { return bytes.Compare(a.GetHost(), b.GetHost()) })
			return g.submit(cmd, from, &ledgerpb.Tx{Action: &ledgerpb.Tx_OpenEscrow{OpenEscrow: open}})
		},
	}
	cmd.Flags().StringArrayVar(&lanes, "lane", nil, "HOST=AMOUNT that only this host can be paid (repeatable)")
	from.flags(cmd)
	cmd.AddCommand(escrowTopCommand(g), escrowLaneCommand(g), escrowCloseCommand(g))
	return cmd
}

func escrowTopCommand(g *globals) *cobra.Command {
	var from signer
	cmd := &cobra.Command{
		Use: "top ESCROW AMOUNT", Short: "Add money to an escrow, in GNK: mesh wallet escrow top 3f9a01 10", Args: want("ESCROW", "AMOUNT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			amount, err := mesh.ParseAmount(args[1])
			if err != nil {
				return usageError{err}
			}
			id, err := g.wholeEscrow(cmd.Context(), from, args[0])
			if err != nil {
				return err
			}
			return g.submit(cmd, from, &ledgerpb.Tx{Action: &ledgerpb.Tx_TopEscrow{
				TopEscrow: &ledgerpb.TopEscrow{Escrow: id[:], Amount: uint64(amount)}}})
		},
	}
	from.flags(cmd)
	return cmd
}

func escrowLaneCommand(g *globals) *cobra.Command {
	var from signer
	cmd := &cobra.Command{
		Use: "lane ESCROW HOST=AMOUNT", Short: "Raise what one host can be paid from an escrow: mesh wallet escrow lane 3f9a01 12D3…=5", Args: want("ESCROW", "HOST=AMOUNT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			l, err := parseLane(cmd.Context(), c, args[1])
			if err != nil {
				return err
			}
			id, err := g.wholeEscrow(cmd.Context(), from, args[0])
			if err != nil {
				return err
			}
			return g.submit(cmd, from, &ledgerpb.Tx{Action: &ledgerpb.Tx_SetLane{SetLane: &ledgerpb.SetLane{Escrow: id[:], Lane: l}}})
		},
	}
	from.flags(cmd)
	return cmd
}

func escrowCloseCommand(g *globals) *cobra.Command {
	var from signer
	cmd := &cobra.Command{
		Use: "close ESCROW", Short: "Take back what hosts have not earned; paid after two epochs: mesh wallet escrow close 3f9a01", Args: want("ESCROW"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := g.wholeEscrow(cmd.Context(), from, args[0])
			if err != nil {
				return err
			}
			return g.submit(cmd, from, &ledgerpb.Tx{Action: &ledgerpb.Tx_CloseEscrow{CloseEscrow: &ledgerpb.CloseEscrow{Escrow: id[:]}}})
		},
	}
	from.flags(cmd)
	return cmd
}

func parseLane(ctx context.Context, c *api.Client, text string) (*ledgerpb.Lane, error) {
	host, amount, ok := strings.Cut(text, "=")
	if !ok {
		return nil, usageError{fmt.Errorf("lane %q: want HOST=AMOUNT", text)}
	}
	n, err := mesh.ParseAmount(amount)
	if err != nil {
		return nil, usageError{err}
	}
	a, err := wholeHost(ctx, c, host)
	if err != nil {
		return nil, err
	}
	return &ledgerpb.Lane{Host: a[:], Cap: uint64(n)}, nil
}

// signer is the key that signs a transaction: the node's own, or one in a file, which
// the node never sees.
type signer struct {
	file string
	fee  amountFlag
}

func (s *signer) flags(cmd *cobra.Command) {
	s.feeFlag(cmd)
	cmd.Flags().StringVar(&s.file, "key", "", "sign with the key in this `FILE`, as mesh wallet key new makes one, instead of the node's; its passphrase is in MESH_PASSPHRASE")
}

// feeFlag is for what the node's own key alone can sign.
func (s *signer) feeFlag(cmd *cobra.Command) {
	cmd.Flags().Var(&s.fee, "fee", "pay this fee, in GNK, which a node asks for while many transactions wait (default: the least)")
}

// amountFlag is an amount of money on the command line.
type amountFlag mesh.Amount

func (a *amountFlag) Set(text string) error {
	n, err := mesh.ParseAmount(text)
	*a = amountFlag(n)
	return err
}

func (a *amountFlag) Type() string { return "AMOUNT" }

func (a *amountFlag) String() string {
	if *a == 0 {
		return ""
	}
	return mesh.Amount(*a).String()
}

// account is whose money it is; zero: the node's.
func (s *signer) account() (mesh.Address, error) {
	if s.file == "" {
		return mesh.Address{}, nil
	}
	key, err := keyfile.Load(s.file, passphrase())
	if err != nil {
		return mesh.Address{}, err
	}
	return mesh.AddressOf(key.Public().(ed25519.PublicKey)), nil
}

// submit has a transaction signed, waits until it is in a block, and shows it.
func (g *globals) submit(cmd *cobra.Command, s signer, tx *ledgerpb.Tx) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	done, err := submitTx(cmd.Context(), c, s, tx)
	if err != nil {
		return err
	}
	if g.json {
		return writeJSON(cmd.OutOrStdout(), done)
	}
	escrow := ""
	if !done.Escrow.IsZero() {
		escrow = done.Escrow.String()
	}
	return fields(cmd.OutOrStdout(),
		"done", done.Kind, "escrow", escrow, "height", fmt.Sprint(done.Height), "fee", done.Fee.String(), "transaction", done.ID.String())
}

func submitTx(ctx context.Context, c *api.Client, s signer, tx *ledgerpb.Tx) (api.Submitted, error) {
	in := api.Submit{}
	var err error
	if s.file == "" {
		in.Fee = mesh.Amount(s.fee)
		if in.Action, err = protojson.Marshal(tx); err != nil {
			return api.Submitted{}, fmt.Errorf("encode transaction: %w", err)
		}
		return c.Submit(ctx, in)
	}
	key, err := keyfile.Load(s.file, passphrase())
	if err != nil {
		return api.Submitted{}, err
	}
	wallet, err := c.Wallet(ctx, mesh.AddressOf(key.Public().(ed25519.PublicKey)))
	if err != nil {
		return api.Submitted{}, err
	}
	status, err := c.Status(ctx)
	if err != nil {
		return api.Submitted{}, err
	}
	rules, err := c.Rules(ctx)
	if err != nil {
		return api.Submitted{}, err
	}
	params, asked := &ledgerpb.Params{FeePerByte: rules.Params["fee_per_byte"]}, mesh.Amount(s.fee)
	send := func() (api.Submitted, error) {
		fee, err := ledger.FeeFor(params, tx, asked)
		if err != nil {
			return api.Submitted{}, err
		}
		tx.Nonce, tx.Fee = wallet.Nonce, uint64(fee)
		if in.Signed, err = ledger.SignTx(status.Network, key, tx); err != nil {
			return api.Submitted{}, err
		}
		return c.Submit(ctx, in)
	}
	done, err := send()
	if err == nil || asked > 0 {
		return done, err
	}
	// As the node does with its own: the parameters may have just changed. The number stays, so
	// that a node which carried the first out, and says that it did not, gets no second one.
	raised, low := ledger.RaisedFee(err.Error(), tx)
	if !low {
		return done, err
	}
	asked = raised
	return send()
}

func passphrase() string { return os.Getenv("MESH_PASSPHRASE") }

func keyCommand(g *globals) *cobra.Command {
	return noun("key", "Keys of accounts: new, import, export",
		&cobra.Command{
			Use: "new FILE", Short: "Make a key; it is encrypted if MESH_PASSPHRASE is set", Args: want("FILE"),
			RunE: func(cmd *cobra.Command, args []string) error {
				key, err := keyfile.Create(args[0], passphrase())
				if err != nil {
					return err
				}
				return g.showKey(cmd, args[0], key)
			},
		},
		&cobra.Command{
			Use: "import FILE", Short: "Make a stopped node's key of the key in a file: mesh --home DIR wallet key import FILE", Args: want("FILE"),
			RunE: func(cmd *cobra.Command, args []string) error {
				if err := g.complete(); err != nil {
					return err
				}
				key, err := keyfile.Load(args[0], passphrase())
				if err != nil {
					return err
				}
				path := filepath.Join(g.home, "node.key")
				home, err := node.OpenHome(g.home)
				if err != nil {
					return err
				}
				defer home.Close()
				if err := keyfile.Write(path, key, passphrase()); err != nil {
					return err
				}
				return g.showKey(cmd, path, key)
			},
		},
		&cobra.Command{
			Use: "export FILE", Short: "Write the node's key to a file, encrypted if MESH_PASSPHRASE is set; whoever has it has the money", Args: want("FILE"),
			RunE: func(cmd *cobra.Command, args []string) error {
				if err := g.complete(); err != nil {
					return err
				}
				path := filepath.Join(g.home, "node.key")
				key, err := keyfile.Load(path, passphrase())
				if errors.Is(err, os.ErrNotExist) {
					return fmt.Errorf("%s has no key yet: `mesh up` makes one", g.home)
				}
				if err != nil {
					return err
				}
				if err := keyfile.Write(args[0], key, passphrase()); err != nil {
					return err
				}
				return g.showKey(cmd, args[0], key)
			},
		},
	)
}

func (g *globals) showKey(cmd *cobra.Command, file string, key ed25519.PrivateKey) error {
	address := mesh.AddressOf(key.Public().(ed25519.PublicKey))
	encrypted := passphrase() != ""
	if g.json {
		return writeJSON(cmd.OutOrStdout(), map[string]any{"address": address, "file": file, "encrypted": encrypted})
	}
	how := "not encrypted: set MESH_PASSPHRASE to encrypt it"
	if encrypted {
		how = "encrypted with the passphrase"
	}
	return fields(cmd.OutOrStdout(), "address", address.String(), "file", file, "at rest", how)
}
