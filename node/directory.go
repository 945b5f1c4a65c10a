package node

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/inference/router"
	"github.com/gonka-mesh/mesh/p2p"
)

const (
	lookTime    = 2 * time.Second // to find hosts of a model nobody here has heard of
	sourceTime  = 8 * time.Second // to find anybody who has a file
	maxFollowed = 64
	maxName     = 128 // bytes of a model's name
)

// directory tells the router which models there are and who serves them. It reads
// adverts, asks the DHT where these say nothing, and knows this node's own models.
type directory struct {
	net *p2p.Host
	own func() []inference.ModelInfo // the models that are served here
	// fallback is the built-in model, which everybody can serve; see usual.
	fallback     mesh.ModelID
	fallbackName string

	mu       sync.Mutex
	followed []mesh.ModelID // guarded by mu; oldest first
}

var _ router.Directory = (*directory)(nil)

// Resolve returns the ID of a model by name or ID. An ID that no advert and no record
// of the DHT knows is unknown, like a name.
func (d *directory) Resolve(ctx context.Context, name string) (mesh.ModelID, error) {
	if id, err := mesh.ParseHash(name); err == nil {
		if id == d.fallback {
			return id, nil
		}
		if hosts, err := d.Hosts(ctx, id); err != nil || len(hosts) > 0 {
			return id, err
		}
		return id, fmt.Errorf("model %s: %w", name, inference.ErrUnknownModel)
	}
	for _, m := range d.own() {
		if name == "" || name == m.Name {
			return m.ID, nil
		}
	}
	if name == "" {
		return d.usual(), nil
	}
	if name == d.fallbackName {
		return d.fallback, nil
	}
	if id, ok := d.named(name); ok {
		return id, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	d.net.Find(ctx, mesh.Hash{})
	if id, ok := d.named(name); ok {
		return id, nil
	}
	return mesh.ModelID{}, fmt.Errorf("model %.80q: %w", name, inference.ErrUnknownModel)
}

// usual returns the model for those who name none, where this node serves nothing:
// the built-in one, unless nobody serves that and somebody serves another.
func (d *directory) usual() mesh.ModelID {
	known := d.advertised()
	for _, m := range known {
		if m.id == d.fallback {
			return d.fallback
		}
	}
	if len(known) > 0 {
		return known[0].id
	}
	return d.fallback
}

// named returns the model that most hosts advertise under a name.
func (d *directory) named(name string) (mesh.ModelID, bool) {
	for _, m := range d.advertised() {
		if m.capability.GetName() == name {
			return m.id, true
		}
	}
	return mesh.ModelID{}, false
}

// Hosts returns the peers that are said to serve a model, this node included.
func (d *directory) Hosts(ctx context.Context, model mesh.ModelID) ([]router.Candidate, error) {
	out := d.candidates(model)
	if len(out) > 0 {
		return out, nil
	}
	d.follow(model)
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	d.net.Find(ctx, model)
	return d.candidates(model), nil
}

func (d *directory) candidates(model mesh.ModelID) []router.Candidate {
	var out []router.Candidate
	if slices.ContainsFunc(d.own(), func(m inference.ModelInfo) bool { return m.ID == model }) {
		out = append(out, router.Candidate{Peer: d.net.Address()})
	}
	for _, a := range d.net.Adverts(model) {
		if a.Peer == d.net.Address() {
			continue
		}
		if c, ok := capabilityOf(a, model); ok {
			out = append(out, router.Candidate{Peer: a.Peer, Capability: c})
		}
	}
	return out
}

// follow keeps the adverts of a model fresh from now on.
func (d *directory) follow(model mesh.ModelID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if slices.Contains(d.followed, model) {
		return
	}
	d.followed = append(d.followed, model)
	d.net.Follow(model)
	if len(d.followed) > maxFollowed { // the first is the built-in model, and stays
		d.net.Unfollow(d.followed[1])
		d.followed = slices.Delete(d.followed, 1, 2)
	}
}

// Models lists the models that this node or somebody else serves.
func (d *directory) Models(context.Context) ([]inference.ModelInfo, error) {
	out := d.own()
	for _, m := range d.advertised() {
		if !slices.ContainsFunc(out, func(i inference.ModelInfo) bool { return i.ID == m.id }) {
			out = append(out, inference.ModelInfo{
				ID: m.id, Name: d.nameOf(m.id, m.capability.GetName()), Context: int(m.capability.GetContext()),
				Slots: int(m.capability.GetSlots()), Bytes: int64(m.capability.GetSize()), Embed: int(m.capability.GetEmbed()),
				Fingerprint: m.capability.GetFingerprint(),
			})
		}
	}
	return out, nil
}

// advertisedModel is a model in the adverts of others.
type advertisedModel struct {
	id         mesh.ModelID
	capability *inferencepb.Capability
	hosts      int
}

// advertised returns the models in adverts, those with most hosts first.
func (d *directory) advertised() []advertisedModel {
	at := make(map[mesh.ModelID]int)
	var out []advertisedModel
	for _, a := range d.net.Adverts(mesh.Hash{}) {
		if a.Peer == d.net.Address() {
			continue
		}
		for _, s := range a.Services {
			c, ok := capabilityOf(a, s.Key)
			if !ok {
				continue
			}
			i, seen := at[s.Key]
			if !seen {
				i = len(out)
				at[s.Key] = i
				out = append(out, advertisedModel{id: s.Key, capability: c})
			}
			out[i].hosts++
		}
	}
	slices.SortFunc(out, func(a, b advertisedModel) int {
		return cmp.Or(b.hosts-a.hosts, cmp.Compare(string(a.id[:]), string(b.id[:])))
	})
	return out
}

// nameOf returns the name of a model: this node's own, where it serves it or has it
// built in, and else what others call it.
func (d *directory) nameOf(id mesh.ModelID, theirs string) string {
	for _, m := range d.own() {
		if m.ID == id {
			return m.Name
		}
	}
	if id == d.fallback {
		return cmp.Or(d.fallbackName, theirs)
	}
	return theirs
}

// capabilityOf decodes what an advert says about a model. What does not make sense
// is passed over, as if the peer had not said it.
func capabilityOf(a p2p.Advert, model mesh.ModelID) (*inferencepb.Capability, bool) {
	payload, ok := a.Service(model)
	if !ok {
		return nil, false
	}
	return decodeCapability(payload, model)
}

func decodeCapability(payload []byte, model mesh.ModelID) (*inferencepb.Capability, bool) {
	c := new(inferencepb.Capability)
	if err := proto.Unmarshal(payload, c); err != nil {
		return nil, false
	}
	name := c.GetName()
	valid := string(c.GetModel()) == string(model[:]) && c.GetContext() > 0 && c.GetSlots() > 0 &&
		validName(name) &&
		(len(c.GetRoot()) == 0 || len(c.GetRoot()) == len(mesh.Hash{})) && c.GetSize() < 1<<50
	return c, valid
}

// validName refuses what would confuse people, terminals or commands: names come
// from strangers.
func validName(name string) bool {
	_, err := mesh.ParseHash(name)
	odd := func(r rune) bool { return !unicode.IsPrint(r) || r == '/' || r == '\\' }
	return err != nil && name != "" && len(name) <= maxName && utf8.ValidString(name) && !strings.ContainsFunc(name, odd)
}

// rootOf returns the root of a model's file as some host advertises it.
func (d *directory) rootOf(ref string) (mesh.Hash, string, bool) {
	for _, m := range d.advertised() {
		if ref != m.id.String() && ref != m.capability.GetName() {
			continue
		}
		if root, err := mesh.HashFromBytes(m.capability.GetRoot()); err == nil && !root.IsZero() {
			return root, d.nameOf(m.id, m.capability.GetName()), true
		}
	}
	return mesh.Hash{}, "", false
}

// sources names the peers that may have a file: those whose adverts say so, then
// those whom the DHT names. Where there are none it asks around for a while, as a
// node that has just started knows few.
func (d *directory) sources(ctx context.Context, root mesh.Hash) iter.Seq[mesh.Address] {
	return func(yield func(mesh.Address) bool) {
		found := false
		pass := func(a mesh.Address) bool {
			if a == d.net.Address() {
				return true
			}
			found = true
			return yield(a)
		}
		for until := time.Now().Add(sourceTime); ; {
			for _, a := range d.holders(root) {
				if !pass(a) {
					return
				}
			}
			look, cancel := context.WithTimeout(ctx, lookTime)
			for a := range d.net.Providers(look, root, 16) {
				if !pass(a) {
					cancel()
					return
				}
			}
			if !found {
				d.net.Find(look, mesh.Hash{})
			}
			cancel()
			if found || time.Now().After(until) {
				return
			}
			select { // where nobody is connected, asking around takes no time
			case <-ctx.Done():
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
}

// holders returns the peers whose adverts name a file.
func (d *directory) holders(root mesh.Hash) []mesh.Address {
	var out []mesh.Address
	for _, a := range d.net.Adverts(mesh.Hash{}) {
		for _, s := range a.Services {
			if c, ok := capabilityOf(a, s.Key); ok && string(c.GetRoot()) == string(root[:]) {
				out = append(out, a.Peer)
			}
		}
	}
	return out
}
