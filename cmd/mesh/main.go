// Command mesh is every participant of a Mesh network in one binary: host, light
// client, and the tools around them. One file holds one noun; this one holds what
// they share.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/gonka-mesh/mesh/node"
	"github.com/gonka-mesh/mesh/node/api"
)

// Exit codes. Wrong use is what can be told from the words alone; that something which
// they name is not there is a failure.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// usageError is a mistake in what was typed.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run executes one command line and returns the exit code.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	// Libraries that write to the standard log have nothing to say to an operator.
	log.SetOutput(io.Discard)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	root := rootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	var usage usageError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "mesh: %s; see `%s --help`\n", printable(err.Error()), cmd.CommandPath())
		return exitUsage
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		fmt.Fprintln(stderr, "mesh: interrupted")
		return exitFailed
	default:
		fmt.Fprintf(stderr, "mesh: %s\n", printable(err.Error()))
		return exitFailed
	}
}

// globals are the flags that every command has.
type globals struct {
	home   string
	api    string
	apiKey string
	json   bool
}

func rootCommand() *cobra.Command {
	g := new(globals)
	root := &cobra.Command{
		Use:   "mesh",
		Short: "Mesh: a peer-to-peer network for AI compute",
		Long: `Mesh is a peer-to-peer network for AI compute. Every participant runs this one binary.

  mesh dev                        a whole network on this machine, to try it
  mesh up                         join as a host: serve a model, answer on http://127.0.0.1:9797/v1
  mesh up --light                 join as a client only
  mesh chat "What is Mesh?"       ask the mesh through the node that runs here`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	flags := root.PersistentFlags()
	flags.StringVar(&g.home, "home", "", "the node's folder (default ~/.mesh, env MESH_HOME)")
	flags.StringVar(&g.api, "api", "", "ADDR:PORT of the node's API (default "+node.DefaultAPI+", env MESH_API)")
	flags.StringVar(&g.apiKey, "api-key", "", "key that the API requires (env MESH_API_KEY)")
	flags.BoolVar(&g.json, "json", false, "write JSON")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{flagError(err)} })
	root.AddCommand(
		upCommand(g), devCommand(g), chatCommand(g), statusCommand(g), doctorCommand(g),
		peerCommand(g), modelCommand(g), hostCommand(g), walletCommand(g), epochCommand(g), receiptCommand(g), govCommand(g),
		benchCommand(g), versionCommand(g),
	)
	return root
}

// flagError says what a flag wants where its value cannot be read.
func flagError(err error) error {
	var wrong *pflag.InvalidValueError
	if !errors.As(err, &wrong) {
		return err
	}
	want := map[string]string{"bool": "true or false", "duration": "a time, like 100ms or 2s", "int": "a whole number", "int64": "a whole number",
		"uint64": "a whole number from 0", "float64": "a number"}[wrong.GetFlag().Value.Type()]
	if want == "" {
		return err
	}
	return fmt.Errorf("--%s %.70q: want %s", wrong.GetFlag().Name, wrong.GetValue(), want)
}

// complete fills in what the environment says where no flag did.
func (g *globals) complete() error {
	if g.home == "" {
		dir, err := node.DefaultHome()
		if err != nil {
			return err
		}
		g.home = dir
	}
	if g.api == "" {
		g.api = os.Getenv("MESH_API")
	}
	if g.apiKey == "" {
		g.apiKey = os.Getenv("MESH_API_KEY")
	}
	return nil
}

// client returns a client of the running node: the one at --api, else the one that
// runs in the home folder. Who names no home means any node at the usual address, too.
//
// What opens the node, its token and the key in its configuration, goes to the address
// that the node of this home left, or where --home and --api were both typed. Another
// program, of another user even, may listen at the usual address while the node is down.
func (g *globals) client() (*api.Client, error) {
	named, both := g.home != "" || os.Getenv("MESH_HOME") != "", g.home != "" && g.api != ""
	if err := g.complete(); err != nil {
		return nil, err
	}
	home := g.home
	if light := filepath.Join(home, devLight); node.RunningAPI(home) == "" && node.RunningAPI(light) != "" {
		home = light // it is the home of a `mesh dev`
	}
	var cfg node.Config
	if err := node.ReadConfig(node.ConfigPath(home), &cfg); err != nil {
		return nil, err
	}
	running := node.RunningAPI(home)
	base := cmp.Or(g.api, running)
	if base == "" && !named {
		base = cmp.Or(cfg.API, node.DefaultAPI)
	}
	if base != "" && !strings.Contains(base, "://") {
		base = "http://" + base
	}
	base = strings.TrimSuffix(strings.TrimRight(base, "/"), "/v1") // that is what programs are given
	c := &api.Client{Base: base, Home: home, Key: g.apiKey}
	if base != "" && base == running || both {
		c.Token, c.Key = node.ReadToken(home), cmp.Or(g.apiKey, cfg.APIKey)
	}
	return c, nil
}

// noun makes a command that only groups its verbs.
func noun(use, short string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usageError{fmt.Errorf("%s: say what to do: %s", words(cmd), strings.Join(verbNames(cmd), ", "))}
		},
	}
	cmd.AddCommand(verbs...)
	return cmd
}

func verbNames(cmd *cobra.Command) []string {
	var names []string
	for _, v := range cmd.Commands() {
		names = append(names, v.Name())
	}
	return names
}

// words are what was typed of a command, without the program's name, with which every
// error begins.
func words(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasSubCommands() {
		return usageError{fmt.Errorf("there is no command %q", cmd.CommandPath()+" "+args[0])}
	}
	return usageError{fmt.Errorf("%s takes no argument, but got %q", words(cmd), args[0])}
}

// want requires as many arguments as it names.
func want(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return usageError{fmt.Errorf("%s wants %s: %s", words(cmd), plural(len(names), "argument"), strings.Join(names, " "))}
		}
		return nil
	}
}

// wantAtMost allows one argument.
func wantAtMost(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usageError{fmt.Errorf("%s takes one argument at most: %s", words(cmd), name)}
		}
		return nil
	}
}
