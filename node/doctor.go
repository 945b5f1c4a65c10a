package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gonka-mesh/mesh/inference/gpu"
	"github.com/gonka-mesh/mesh/inference/kernel"
	"github.com/gonka-mesh/mesh/inference/model/builtin"
	"github.com/gonka-mesh/mesh/node/api"
	"github.com/gonka-mesh/mesh/p2p"
)

// Doctor looks at this machine, and at the node that runs on it if there is one.
func Doctor(ctx context.Context, home string, c *api.Client) []api.Check {
	status, err := c.Status(ctx)
	checks := []api.Check{checkKernel(), checkGPU(gpu.Find(ctx)), checkModel(), checkHome(home), checkDisk(home), checkMemory(), checkFiles(), checkUDPBuffers(), checkMulticast()}
	if err != nil {
		return append(checks, checkAbsent(c, err)...)
	}
	checks = append(checks, checkNode(status)...)
	if status.Role == p2p.RoleHost && status.Ledger != nil && status.Ledger.Error == "" {
		if hosts, err := c.Hosts(ctx); err == nil {
			checks = append(checks, checkRegistered(status, hosts))
		}
	}
	return checks
}

// checkAbsent says what it means that no node answered.
func checkAbsent(c *api.Client, err error) []api.Check {
	var absent *api.NotRunningError
	var refused *api.Error
	switch {
	case errors.As(err, &refused) && refused.Code == api.CodeStarting:
		return []api.Check{{Name: "node", State: "warn", Detail: err.Error(), Remedy: "wait; its log says what it does"}}
	case !errors.As(err, &absent):
		return []api.Check{{Name: "node", State: "fail", Detail: err.Error(), Remedy: "stop what answers there, or give --api-key if it is a node that has one"}}
	}
	where := "at " + c.Base
	if c.Base == "" {
		where = "in " + c.Home
	}
	checks := []api.Check{checkPort(":" + defaultPort)}
	var cfg Config
	_ = ReadConfig(ConfigPath(c.Home), &cfg) // where it cannot be read, mesh up says so
	if port, here := checkAPIPort(cmp.Or(c.Base, "http://"+cmp.Or(cfg.API, DefaultAPI))); here {
		checks = append(checks, port)
	}
	return append(checks, api.Check{Name: "node", State: "warn",
		Detail: "none runs " + where, Remedy: "`mesh up` starts one; then its peers and whether it can be reached are checked, too"})
}

// checkRegistered says that escrows cannot pay a host that wants money.
func checkRegistered(s api.Status, hosts []api.LedgerHost) api.Check {
	c := api.Check{Name: "earning", State: "ok", Detail: "this host is registered: escrows can pay it"}
	switch own := slices.ContainsFunc(hosts, func(h api.LedgerHost) bool { return h.Own }); {
	case own && s.PricePrompt == 0 && s.PriceOutput == 0:
		c.Detail = "this host is registered, and its answers are free"
	case own:
	case s.PricePrompt == 0 && s.PriceOutput == 0:
		c.Detail = "the answers of this host are free"
	default:
		c.State, c.Detail = "warn", "this host has a price and is not registered on the ledger: it refuses every escrow"
		c.Remedy = "mesh host stake AMOUNT registers it and puts collateral behind it"
	}
	return c
}

func checkKernel() api.Check {
	c := api.Check{Name: "arithmetic", State: "ok",
		Detail: fmt.Sprintf("%s kernels give the bits of contract %s (%s, %d processors)", kernel.Backend(), kernel.Contract, runtime.GOARCH, runtime.NumCPU())}
	if err := kernel.SelfTest(); err != nil {
		c.State, c.Detail = "fail", err.Error()
		c.Remedy = "this machine cannot serve the exact class; please report its processor with this line"
	}
	return c
}

func checkModel() api.Check {
	f, err := builtin.Open()
	if err != nil {
		return api.Check{Name: "model", State: "fail", Detail: err.Error(), Remedy: "the binary is damaged; build or download it again"}
	}
	return api.Check{Name: "model", State: "ok", Detail: fmt.Sprintf("%s is built in, %d MiB", builtin.Name, f.Size()>>20)}
}

func checkHome(home string) api.Check {
	c := api.Check{Name: "home", State: "ok", Detail: home}
	info, err := os.Stat(home)
	switch {
	case errors.Is(err, os.ErrNotExist):
		c.Detail = home + " will be made by mesh up"
	case err != nil:
		c.State, c.Detail, c.Remedy = "fail", err.Error(), "choose another folder with --home"
	case !info.IsDir():
		c.State, c.Detail, c.Remedy = "fail", home+" is not a folder", "choose another one with --home"
	case info.Mode().Perm()&0o077 != 0:
		c.State, c.Detail, c.Remedy = "warn", home+" can be read by others", "chmod 700 "+home
	case unix.Access(home, unix.W_OK) != nil:
		c.State, c.Detail, c.Remedy = "fail", home+" cannot be written", "give your user the folder, or choose another with --home"
	}
	if c.State == "fail" || info == nil {
		return c
	}
	if _, err := isHome(home); err != nil {
		c.State, c.Detail, c.Remedy = "fail", err.Error(), "mesh up --home DIR takes an empty or a new folder"
	}
	return c
}

// existing returns the deepest folder of a path that is there.
func existing(path string) string {
	for {
		if _, err := os.Stat(path); err == nil || path == filepath.Dir(path) {
			return path
		}
		path = filepath.Dir(path)
	}
}

func checkDisk(home string) api.Check {
	var st unix.Statfs_t
	if err := unix.Statfs(existing(home), &st); err != nil {
		return api.Check{Name: "disk", State: "warn", Detail: "free space unknown: " + err.Error()}
	}
	free := int64(st.Bavail) * int64(st.Bsize)
	c := api.Check{Name: "disk", State: "ok", Detail: fmt.Sprintf("%.1f GiB free", float64(free)/(1<<30))}
	switch {
	case free < 100<<20:
		c.State, c.Remedy = "fail", "free at least 1 GiB, or move the home folder with --home"
	case free < 1<<30:
		c.State, c.Remedy = "warn", "models need room: free some, or move the home folder with --home"
	}
	return c
}

func checkMemory() api.Check {
	total := totalMemory()
	if total == 0 {
		return api.Check{Name: "memory", State: "ok", Detail: "size unknown on this system"}
	}
	c := api.Check{Name: "memory", State: "ok", Detail: fmt.Sprintf("%.1f GiB", float64(total)/(1<<30))}
	if total < 1<<30 {
		c.State, c.Remedy = "warn", "a host wants 1 GiB and its models; mesh up --light runs with less"
	}
	return c
}

func checkFiles() api.Check {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return api.Check{Name: "open files", State: "warn", Detail: "limit unknown: " + err.Error()}
	}
	c := api.Check{Name: "open files", State: "ok", Detail: fmt.Sprintf("limit %d", lim.Cur)}
	if lim.Cur < 1024 {
		c.State, c.Remedy = "warn", "raise it: ulimit -n 8192"
	}
	return c
}

// checkUDPBuffers compares the limit of the kernel with what QUIC asks for.
// Source of the figure: quic-go's documentation of UDP buffer sizes.
func checkUDPBuffers() api.Check {
	const want = 7_500_000
	b, err := os.ReadFile("/proc/sys/net/core/rmem_max")
	if err != nil {
		return api.Check{Name: "udp buffers", State: "ok", Detail: "managed by this system"}
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return api.Check{Name: "udp buffers", State: "warn", Detail: "limit unknown: " + err.Error()}
	}
	c := api.Check{Name: "udp buffers", State: "ok", Detail: fmt.Sprintf("up to %d bytes", n)}
	if n < want {
		c.State = "warn"
		c.Detail += ", QUIC likes 7500000; TCP is used first and is not affected"
		c.Remedy = "sudo sysctl -w net.core.rmem_max=7500000 net.core.wmem_max=7500000"
	}
	return c
}

// MulticastInterfaces returns the interfaces on which mDNS can find peers.
func MulticastInterfaces() ([]string, error) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var names []string
	for _, i := range ifaces {
		if i.Flags&net.FlagUp != 0 && i.Flags&net.FlagMulticast != 0 {
			names = append(names, i.Name)
		}
	}
	return names, nil
}

func checkMulticast() api.Check {
	names, err := MulticastInterfaces()
	if err != nil {
		return api.Check{Name: "lan", State: "warn", Detail: err.Error()}
	}
	if len(names) == 0 {
		return api.Check{Name: "lan", State: "warn", Detail: "no interface has multicast, so mDNS finds nobody",
			Remedy: "join through an address: mesh up --bootstrap /ip4/ADDR/tcp/PORT/p2p/PEER"}
	}
	return api.Check{Name: "lan", State: "ok", Detail: "mDNS on " + strings.Join(names, ", ")}
}

// checkPort tries the port of the mesh with both of its transports.
func checkPort(addr string) api.Check {
	c := api.Check{Name: "port", State: "ok", Detail: "TCP and UDP " + defaultPort + " are free"}
	tcp, err := net.Listen("tcp", addr)
	if err == nil {
		tcp.Close()
		var udp net.PacketConn
		if udp, err = net.ListenPacket("udp", addr); err == nil {
			udp.Close()
		}
	}
	if err != nil {
		c.State, c.Detail, c.Remedy = "warn", err.Error(), "mesh up takes a free port instead; name one with --listen to keep it the same"
	}
	return c
}

// checkAPIPort tries the address of the API; here is false where it is not of this machine.
func checkAPIPort(base string) (c api.Check, here bool) {
	addr, plain := strings.CutPrefix(base, "http://")
	if !plain {
		return c, false
	}
	c = api.Check{Name: "api port", State: "ok", Detail: addr + " is free"}
	l, err := net.Listen("tcp", addr)
	switch {
	case err == nil:
		l.Close()
	case errors.Is(err, unix.EADDRINUSE):
		c.State, c.Detail, c.Remedy = "fail", "another program has "+addr, "choose another address: mesh up --api 127.0.0.1:PORT"
	case errors.Is(err, unix.EACCES):
		c.State, c.Detail, c.Remedy = "fail", "your user may not listen at "+addr, "choose another address: mesh up --api 127.0.0.1:PORT"
	default:
		return c, false // no address of this machine
	}
	return c, true
}

func checkNode(s api.Status) []api.Check {
	node := api.Check{Name: "node", State: "ok", Detail: fmt.Sprintf("%s %s on %s runs at %s", s.Role, s.Peer, s.Network, s.API)}
	peers := api.Check{Name: "peers", State: "ok", Detail: fmt.Sprintf("%d connected", s.Peers)}
	if s.Peers == 0 {
		peers.State = "warn"
		peers.Remedy = "give the address of any node: mesh peer connect MULTIADDR, or mesh up --bootstrap MULTIADDR"
	}
	reach := api.Check{Name: "reachable", State: "ok", Detail: s.Reachability.State + ": " + s.Reachability.Reason, Remedy: s.Reachability.Remedy}
	if s.Reachability.State == "private" || s.Reachability.State == "unknown" {
		reach.State = "warn"
	}
	checks := []api.Check{node, peers, reach}
	if s.Ledger != nil {
		checks = append(checks, checkLedger(s.Ledger, time.Now()))
	}
	return checks
}

// stalled is how old the last block may be before somebody should look: longer than a
// few rounds in which the proposer is gone.
const stalled = time.Minute

func checkLedger(l *api.LedgerStatus, now time.Time) api.Check {
	c := api.Check{Name: "ledger", State: "ok", Detail: fmt.Sprintf("height %d, epoch %d, %d validators", l.Height, l.Epoch, l.Validators)}
	age := now.Sub(l.BlockTime).Round(time.Second)
	switch {
	case l.Error != "" && l.Light:
		c.State, c.Detail = "warn", l.Error
		c.Remedy = "give the address of a full node: mesh peer connect MULTIADDR"
	case l.Error != "":
		c.State, c.Detail = "fail", l.Error
		c.Remedy = "mend what it says, and restart the node if it says that the ledger has stopped; the log has more"
	case l.Doing != "":
		c.State, c.Detail, c.Remedy = "warn", l.Doing, "wait; if it stays for long, connect more full nodes: mesh peer connect MULTIADDR"
	case l.CatchingUp:
		c.State, c.Remedy = "warn", "wait: older blocks are being fetched from the peers"
	case l.Height == 0:
		c.State, c.Remedy = "warn", "no block yet: more than two thirds of the validators have to be connected"
	case age > stalled:
		c.State, c.Remedy = "warn", "more than two thirds of the validators have to be connected; see `mesh host show` and `mesh peer ls`"
		c.Detail += fmt.Sprintf(", no block for %s", age)
	}
	return c
}
