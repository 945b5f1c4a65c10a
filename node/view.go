package node

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/receipts"
	"github.com/gonka-mesh/mesh/node/api"
	"github.com/gonka-mesh/mesh/p2p"
)

var _ api.Node = (*Node)(nil)

// Status describes the node.
func (n *Node) Status() api.Status {
	role := p2p.RoleHost
	if n.cfg.Light {
		role = p2p.RoleLight
	}
	s := api.Status{
		Version: mesh.Version, Protocol: mesh.ProtocolVersion, Peer: n.core.Net.Address(), Role: role,
		Network: n.genesis.Network(), Genesis: n.genesis.Hash(), Epoch: n.epoch(), Owner: n.owner(),
		Home: n.home.Dir, API: n.apiURL, PID: os.Getpid(), Started: n.started, UptimeS: int64(time.Since(n.started).Seconds()),
		Addrs: n.core.Net.Addrs(), Peers: len(n.core.Net.Peers()), Reachability: reachabilityOf(n.core.Net.Reachability(), n.cfg.NoPortMap, n.cfg.Listen),
		PricePrompt: n.prices().Prompt, PriceOutput: n.prices().Output,
		Engines: []api.Engine{}, MemoryBytes: residentMemory(), KVLimitBytes: n.cfg.memory(),
	}
	_, open := n.models.list()
	for _, l := range open {
		info, load := l.engine.Info(), l.engine.Load()
		s.Engines = append(s.Engines, api.Engine{
			Model: info.ID, Name: info.Name, Class: string(inference.ClassOf(info.Fingerprint)),
			Engine: info.Fingerprint.GetEngine(), Weights: info.Fingerprint.GetWeights(),
			Context: info.Context, Slots: info.Slots, Active: load.Active, Queued: load.Queued, Bytes: info.Bytes,
			KVBytes: l.memory, ModelContext: max(info.Context, info.ModelContext),
		})
	}
	s.Served = n.tally.served()
	s.GPUs, s.GPUReason = n.gpus.documents()
	return s
}

// reachabilityOf adds what to do to what is the matter.
func reachabilityOf(r p2p.Reachability, noPortMap bool, listen string) api.Reachability {
	out := api.Reachability{State: r.State, Reason: r.Reason, External: r.External, PortMap: r.PortMap}
	if out.External == nil {
		out.External = []string{}
	}
	switch {
	case r.State == p2p.ReachPublic || r.State == p2p.ReachUnknown:
	case loopback(listen): // as those of `mesh dev` do
		out.Remedy = "it listens on this machine alone, as all nodes of `mesh dev` do; a `mesh up` that listens elsewhere is for others"
	case noPortMap:
		out.Remedy = "start without --no-portmap, or forward TCP and UDP of the node's port in your router"
	default:
		out.Remedy = "forward TCP and UDP of the node's port in your router, or switch on UPnP there"
	}
	return out
}

// loopback reports whether an address for --listen is this machine's alone.
func loopback(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	return err == nil && api.Loopback(host)
}

// Peers lists the connected peers and what they serve.
func (n *Node) Peers() []api.Peer {
	out := []api.Peer{}
	for _, p := range n.core.Net.Peers() {
		out = append(out, n.peerOf(p))
	}
	return out
}

func (n *Node) peerOf(p p2p.PeerInfo) api.Peer {
	direction := "in"
	if p.Outbound {
		direction = "out"
	}
	out := api.Peer{
		Peer: p.Address, Role: p.Role, Agent: p.Agent, Addrs: p.Addrs, Direction: direction, Transport: p.Transport,
		LatencyMS: float64(p.Latency.Microseconds()) / 1000, Since: p.Since, Score: float64(p.Score), Models: []api.PeerModel{},
	}
	advert, ok := n.core.Net.AdvertOf(p.Address)
	if !ok {
		return out
	}
	for _, s := range advert.Services {
		if c, ok := capabilityOf(advert, s.Key); ok {
			out.Models = append(out.Models, api.PeerModel{
				Model: s.Key, Name: n.core.dir.nameOf(s.Key, c.GetName()), Class: string(inference.ClassOf(c.GetFingerprint())), Context: int(c.GetContext()),
			})
		}
	}
	return out
}

// HostsKnown returns how many other nodes advertise a model.
func (n *Node) HostsKnown() int {
	known := make(map[mesh.Address]bool)
	for _, a := range n.core.Net.Adverts(mesh.Hash{}) {
		if a.Peer != n.core.Net.Address() && len(a.Services) > 0 {
			known[a.Peer] = true
		}
	}
	return len(known)
}

// Models lists what the node has, then what it has heard of.
func (n *Node) Models(context.Context) ([]api.Model, error) {
	entries, open := n.models.list()
	out := []api.Model{}
	at := make(map[mesh.ModelID]int)
	add := func(m api.Model) {
		if _, seen := at[m.Model]; !seen {
			at[m.Model] = len(out)
			out = append(out, m)
		}
	}
	for _, l := range open {
		m := modelOf(l.entry)
		info := l.engine.Info()
		m.Served, m.Builtin, m.Context = true, l.builtin, info.Context
		m.Weights, m.Class = info.Fingerprint.GetWeights(), string(inference.ClassOf(info.Fingerprint))
		add(m)
	}
	for _, e := range entries {
		add(modelOf(e))
	}
	for _, a := range n.core.dir.advertised() {
		m := api.Model{
			Model: a.id, Name: n.core.dir.nameOf(a.id, a.capability.GetName()), Bytes: int64(a.capability.GetSize()), Context: int(a.capability.GetContext()),
			Weights: a.capability.GetFingerprint().GetWeights(), Class: string(inference.ClassOf(a.capability.GetFingerprint())),
			Builtin: a.id == n.core.dir.fallback,
		}
		if root, err := mesh.HashFromBytes(a.capability.GetRoot()); err == nil {
			m.Root = root
		}
		add(m)
		out[at[a.id]].Hosts = a.hosts
	}
	return out, nil
}

func modelOf(e entry) api.Model {
	return api.Model{Model: e.Model, Name: e.Name, Root: e.Root, Bytes: e.Bytes, Arch: e.Arch, Context: e.Context, Path: e.Path}
}

// Receipts returns the segments of one answer, or of the newest answers.
func (n *Node) Receipts(request mesh.Hash, limit int) ([]api.Receipt, error) {
	var found []*inference.Receipt
	var err error
	if !request.IsZero() {
		found, err = n.receipts.Get(request)
	} else {
		var entries []receipts.Entry
		entries, err = n.receipts.List(limit)
		for _, e := range entries {
			found = append(found, e.Receipts...)
		}
	}
	if err != nil {
		return nil, err
	}
	if len(found) == 0 && !request.IsZero() {
		return nil, fmt.Errorf("receipt %s: %w", request, api.ErrNotFound)
	}
	out := []api.Receipt{}
	for i, r := range found {
		doc := n.receiptOf(r)
		doc.Joins = joins(n.genesis.Network(), found[:i], r)
		out = append(out, doc)
	}
	return out, nil
}

// joins reports whether a receipt begins its answer, or goes on where one of those before
// it ends: two hosts may have gone on from the same token.
func joins(network mesh.NetworkID, before []*inference.Receipt, r *inference.Receipt) bool {
	return r.Before == inference.NewChain(network, r.Request, r.Pb.GetChoice()) ||
		slices.ContainsFunc(before, func(b *inference.Receipt) bool { return b.Joins(r) == nil })
}

// Requests returns up to two requests with receipts whose IDs begin so in hex.
func (n *Node) Requests(prefix string) ([]mesh.Hash, error) { return n.receipts.Find(prefix, 2) }

func (n *Node) receiptOf(r *inference.Receipt) api.Receipt {
	p := r.Pb
	out := api.Receipt{
		Request: r.Request, Choice: int(p.GetChoice()), Model: r.Model, Host: r.Host,
		First: int(p.GetFirst()), End: int(p.GetEnd()), ChainBefore: r.Before.H, ChainAfter: r.After.H, Finish: p.GetFinish(),
		PromptTokens: int(p.GetPromptTokens()), OutputTokens: int(p.GetOutputTokens()), Price: mesh.Amount(p.GetPrice()),
		Class: string(inference.ClassOf(p.GetFingerprint())), Engine: p.GetFingerprint().GetEngine(), Contract: p.GetFingerprint().GetContract(),
		Positions: int(p.GetPositions()), Started: timeOf(p.GetStartedMs()), FirstToken: timeOf(p.GetFirstTokenMs()), Ended: timeOf(p.GetEndedMs()),
	}
	if h, err := mesh.HashFromBytes(p.GetHiddenRoot()); err == nil {
		out.HiddenRoot = h
	}
	if h, err := mesh.HashFromBytes(p.GetEscrow()); err == nil {
		out.Escrow = h
	}
	copy(out.PrefixHost[:], p.GetPrefixHost())
	_, err := inference.ParseReceipt(n.genesis.Network(), r.Signed)
	out.Valid = err == nil
	out.Signed = slices.Concat(r.Signed.GetBody(), r.Signed.GetSignature())
	return out
}

// timeOf reads a time of a receipt: a host that was lost did not say when it ended.
func timeOf(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}
