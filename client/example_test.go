package client_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/client"
)

// The examples run against a network of one host that the test starts; see
// client_test.go. A program of yours names the bootstrap peers of its network.
func open(ctx context.Context) *client.Client {
	home, err := os.MkdirTemp(testFolder, "home-")
	if err != nil {
		log.Fatal(err)
	}
	c, err := client.Open(ctx, client.Config{Home: home, Network: testGenesis, Bootstrap: testBootstrap, Listen: "127.0.0.1:0", Quiet: true})
	if err != nil {
		log.Fatal(err)
	}
	return c
}

func ExampleClient_Chat() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := open(ctx)
	defer c.Close()

	streamed := ""
	answer, err := c.Chat(ctx, client.Chat{
		Messages:  []client.Message{{Role: "user", Content: "What is Mesh?"}},
		MaxTokens: 12,
	}, func(text string) error {
		streamed += text // as it comes
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.Text == streamed, answer.OutputTokens, answer.Finish)
	// The host signed what it computed.
	v, err := c.VerifyReceipt(ctx, answer.Request)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(v.OK, v.Segments[0].Host == answer.Host, v.Segments[0].State)
	// Output:
	// true 12 length
	// true true free
}

func ExampleClient_Models() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := open(ctx)
	defer c.Close()

	models, err := c.Models(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, m := range models {
		fmt.Println(m.Name, m.Class, m.Hosts)
	}
	// Output:
	// mesh-tiny exact 1
}

func ExampleClient_Balance() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := open(ctx)
	defer c.Close()

	balance, err := c.Balance(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(balance == 0*mesh.GNK) // nobody paid into this account yet
	// Output:
	// true
}
