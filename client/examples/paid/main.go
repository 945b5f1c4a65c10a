// Command paid is a program that takes part in the mesh: it opens an escrow, asks a
// question, and checks what the host signed. Beside `mesh dev --home ~/mesh-dev`:
//
//	go run ./client/examples/paid -network ~/mesh-dev/genesis.json -bootstrap MULTIADDR "What is Mesh?"
//
// `mesh status --json --home ~/mesh-dev/host-0` lists multiaddresses.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/client"
)

func main() {
	log.SetFlags(0)
	home := flag.String("home", "mesh-paid", "folder of this program's key, receipts and escrows")
	network := flag.String("network", "main", "main, dev, or a genesis file")
	bootstrap := flag.String("bootstrap", "", "multiaddress of any node, to join through")
	amount := flag.String("escrow", "1", "GNK to set aside")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *home, *network, *bootstrap, *amount, flag.Arg(0)); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, home, network, bootstrap, amount, prompt string) (err error) {
	if prompt == "" {
		return errors.New("what is the question?")
	}
	aside, err := mesh.ParseAmount(amount)
	if err != nil {
		return err
	}
	cfg := client.Config{Home: home, Network: network}
	if bootstrap != "" {
		cfg.Bootstrap = []string{bootstrap}
	}
	c, err := client.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()

	if err := funded(ctx, c, aside); err != nil {
		return err
	}
	escrow, err := c.OpenEscrow(ctx, aside)
	if err != nil {
		return err
	}
	fmt.Printf("escrow %s\n\n", escrow)
	answer, err := c.Chat(ctx, client.Chat{Messages: []client.Message{{Role: "user", Content: prompt}}}, func(text string) error {
		fmt.Print(text)
		return nil
	})
	if err != nil {
		return err
	}
	v, err := c.VerifyReceipt(ctx, answer.Request)
	if err != nil {
		return err
	}
	fmt.Printf("\n\n%s of %s, receipt %s\n", answer.Price, answer.Host, answer.Request)
	for _, s := range v.Segments {
		fmt.Printf("tokens %d to %d: signature valid %v, %s: %s\n", s.First, s.End, s.Signed, s.State, s.Reason)
	}
	return nil
}

// funded waits until the account has more than is to be set aside: the fee comes on top.
func funded(ctx context.Context, c *client.Client, aside mesh.Amount) error {
	for said := false; ; said = true {
		balance, err := c.Balance(ctx)
		if err == nil && balance > aside {
			return nil
		}
		if err == nil && !said {
			fmt.Printf("send money to this account: mesh wallet send %s %s\n", c.Address(), strings.TrimSuffix((2*aside).String(), " GNK"))
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(time.Second):
		}
	}
}
