package p2p

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p/p2ppb"
)

// advertDomain is the domain of the signature under an advert.
const advertDomain mesh.Domain = "mesh/advert/1"

// Bounds of an advert. They are rules of the wire: a larger one is refused.
const (
	maxAdvertSize  = 16 << 10 // bytes of the body
	maxServices    = 64
	maxPayload     = 2 << 10 // bytes of what is said about one service
	maxAdvertAddrs = 16
	maxAddrLen     = 256
	maxAdvertTTL   = 10 * time.Minute
	advertSkew     = time.Minute // how far the clock of an honest peer may be ahead
)

// errStale marks an advert that an honest peer may have passed on: expired,
// superseded or dated ahead. Any other error is the fault of whoever sent it.
var errStale = errors.New("stale advert")

// Service is one thing that a peer offers under a key: a model, a blob. The
// payload, up to 2 KiB, is for the layer above.
type Service struct {
	Key     mesh.Hash
	Payload []byte
}

// Advert is what a peer says about itself, signed by it. One without services
// and without the relay flag says goodbye.
type Advert struct {
	Peer     mesh.Address
	Addrs    []string // multiaddresses
	Services []Service
	Epoch    mesh.Epoch
	Relay    bool // relays for peers behind NAT
	Seq      uint64
	Issued   time.Time
	Expires  time.Time
}

// Service returns the payload of the service under a key.
func (a Advert) Service(key mesh.Hash) ([]byte, bool) {
	for _, s := range a.Services {
		if s.Key == key {
			return s.Payload, true
		}
	}
	return nil, false
}

// gone reports whether the advert only says goodbye.
func (a Advert) gone() bool { return len(a.Services) == 0 && !a.Relay }

// offers reports whether the advert has the key; the zero key is any.
func (a Advert) offers(key mesh.Hash) bool {
	if key.IsZero() {
		return !a.gone()
	}
	_, ok := a.Service(key)
	return ok
}

// signAdvert encodes and signs an advert for at most ttl.
func signAdvert(network mesh.NetworkID, key ed25519.PrivateKey, a Advert, ttl time.Duration) (*p2ppb.SignedAdvert, error) {
	m := &p2ppb.Advert{
		Network: string(network), Peer: a.Peer[:], Epoch: uint64(a.Epoch), Seq: a.Seq,
		IssuedMs: a.Issued.UnixMilli(), TtlS: uint32(ttl / time.Second), Addrs: a.Addrs, Relay: a.Relay,
	}
	for _, s := range a.Services {
		m.Services = append(m.Services, &p2ppb.Service{Key: s.Key[:], Payload: s.Payload})
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode advert: %w", err)
	}
	if len(body) > maxAdvertSize {
		return nil, fmt.Errorf("advert of %d bytes: limit %d", len(body), maxAdvertSize)
	}
	return &p2ppb.SignedAdvert{Body: body, Signature: advertDomain.Sign(key, network, body)}, nil
}

// parseAdvert decodes the body of an advert and checks everything that needs
// neither clock nor signature.
func parseAdvert(network mesh.NetworkID, body []byte) (Advert, error) {
	var (
		a Advert
		m p2ppb.Advert
	)
	if len(body) > maxAdvertSize {
		return a, fmt.Errorf("advert of %d bytes: limit %d", len(body), maxAdvertSize)
	}
	if err := proto.Unmarshal(body, &m); err != nil {
		return a, fmt.Errorf("decode advert: %w", err)
	}
	again, err := proto.MarshalOptions{Deterministic: true}.Marshal(&m)
	if err != nil || !bytes.Equal(again, body) {
		return a, errors.New("advert is not in canonical form")
	}
	switch ttl := time.Duration(m.TtlS) * time.Second; {
	case m.Network != string(network):
		return a, fmt.Errorf("advert of network %.50q", m.Network)
	case len(m.Peer) != len(a.Peer):
		return a, fmt.Errorf("advert: peer of %d bytes", len(m.Peer))
	case len(m.Services) > maxServices || len(m.Addrs) > maxAdvertAddrs:
		return a, fmt.Errorf("advert: %d services and %d addresses: limits %d and %d",
			len(m.Services), len(m.Addrs), maxServices, maxAdvertAddrs)
	case ttl <= 0 || ttl > maxAdvertTTL:
		return a, fmt.Errorf("advert: lives %v, limit %v", ttl, maxAdvertTTL)
	case m.IssuedMs <= 0 || m.IssuedMs > 1<<45: // year 3084: keeps time arithmetic safe
		return a, fmt.Errorf("advert: issued at %d ms", m.IssuedMs)
	default:
		a.Issued = time.UnixMilli(m.IssuedMs)
		a.Expires = a.Issued.Add(ttl)
	}
	copy(a.Peer[:], m.Peer)
	a.Epoch, a.Seq, a.Relay, a.Addrs = mesh.Epoch(m.Epoch), m.Seq, m.Relay, m.Addrs
	for _, s := range m.Addrs {
		if len(s) > maxAddrLen {
			return a, fmt.Errorf("advert: address of %d bytes", len(s))
		}
		if _, err := ma.NewMultiaddr(s); err != nil {
			return a, fmt.Errorf("advert: address %q: %w", s, err)
		}
	}
	a.Services, err = parseServices(m.Services)
	return a, err
}

func parseServices(in []*p2ppb.Service) ([]Service, error) {
	out := make([]Service, 0, len(in))
	for _, s := range in {
		key, err := mesh.HashFromBytes(s.Key)
		if err != nil {
			return nil, fmt.Errorf("advert: service key: %w", err)
		}
		if len(s.Payload) > maxPayload {
			return nil, fmt.Errorf("advert: payload of %d bytes: limit %d", len(s.Payload), maxPayload)
		}
		out = append(out, Service{Key: key, Payload: s.Payload})
	}
	for i := 1; i < len(out); i++ {
		if bytes.Compare(out[i-1].Key[:], out[i].Key[:]) >= 0 {
			return nil, errors.New("advert: services are not in strict order of keys")
		}
	}
	return out, nil
}

// sortServices returns the services in the order of the wire.
func sortServices(in []Service) ([]Service, error) {
	out := slices.Clone(in)
	slices.SortFunc(out, func(a, b Service) int { return bytes.Compare(a.Key[:], b.Key[:]) })
	for i, s := range out {
		switch {
		case s.Key.IsZero():
			return nil, errors.New("advertise: a service without key")
		case i > 0 && out[i-1].Key == s.Key:
			return nil, fmt.Errorf("advertise %s: given twice", s.Key.Short())
		case len(s.Payload) > maxPayload:
			return nil, fmt.Errorf("advertise %s: payload of %d bytes, limit %d", s.Key.Short(), len(s.Payload), maxPayload)
		}
	}
	if len(out) > maxServices {
		return nil, fmt.Errorf("advertise: %d services, limit %d", len(out), maxServices)
	}
	return out, nil
}

// checkTime compares an advert with the clock.
func (a Advert) checkTime(now time.Time) error {
	if a.Issued.After(now.Add(advertSkew)) {
		return fmt.Errorf("%w: dated %v ahead", errStale, a.Issued.Sub(now))
	}
	if !a.Expires.After(now) {
		return fmt.Errorf("%w: expired %v ago", errStale, now.Sub(a.Expires))
	}
	return nil
}

// advertShards is the number of gossip topics that adverts are spread over.
const advertShards = 16

// advertShard returns the topic that adverts of a key are gossiped on.
func advertShard(key mesh.Hash) string { return fmt.Sprintf("advert/%02x", key[0]%advertShards) }

// shardsOf returns the topics of the services, sorted and without duplicates.
func shardsOf(services []Service) []string {
	var out []string
	for _, s := range services {
		out = append(out, advertShard(s.Key))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func byPeer(a, b Advert) int { return cmp.Compare(string(a.Peer[:]), string(b.Peer[:])) }
