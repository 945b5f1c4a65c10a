package consensus

import (
	"crypto/ed25519"
	"fmt"
	"net"

	cmted "github.com/cometbft/cometbft/crypto/ed25519"
	cp2p "github.com/cometbft/cometbft/p2p"
	sm "github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/version"

	"github.com/gonka-mesh/mesh"
)

// CometID returns the name of a key on CometBFT's own transport, for Comet.Peers.
func CometID(key ed25519.PrivateKey) string {
	return string(cp2p.PubKeyToID(cmted.PrivKey(key).PubKey()))
}

// buildComet makes CometBFT's own transport and switch.
func (c *Chain) buildComet(p *parts, state sm.State, reactors []namedReactor) error {
	cc := c.cfg.Comet
	if len(cc.Key) != ed25519.PrivateKeySize {
		return fmt.Errorf("transport comet: no key")
	}
	key := cp2p.NodeKey{PrivKey: cmted.PrivKey(cc.Key)}
	var channels []byte
	for _, r := range reactors {
		for _, d := range r.GetChannels() {
			channels = append(channels, d.ID)
		}
	}
	host, _, err := net.SplitHostPort(cc.Listen)
	if err != nil {
		return fmt.Errorf("transport comet: listen address: %w", err)
	}
	p.cfg.P2P.ListenAddress = "tcp://" + cc.Listen
	p.cfg.P2P.PexReactor = false
	// Several nodes of one machine are seen with one address.
	if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() {
		p.cfg.P2P.AllowDuplicateIP = true
	}
	info := cp2p.DefaultNodeInfo{
		ProtocolVersion: cp2p.NewProtocolVersion(version.P2PProtocol, state.Version.Consensus.Block, state.Version.Consensus.App),
		DefaultNodeID:   key.ID(), ListenAddr: cc.Listen, Network: c.cfg.Genesis.ChainID,
		Version: mesh.Version, Channels: channels, Moniker: "mesh",
		Other: cp2p.DefaultNodeInfoOther{TxIndex: "off"},
	}
	if err := info.Validate(); err != nil {
		return fmt.Errorf("transport comet: %w", err)
	}
	p.comet = cp2p.NewMultiplexTransport(info, key, cp2p.MConnConfig(p.cfg.P2P))
	if !p.cfg.P2P.AllowDuplicateIP {
		cp2p.MultiplexTransportConnFilters(cp2p.ConnDuplicateIPFilter())(p.comet)
	}
	cp2p.MultiplexTransportMaxIncomingConnections(p.cfg.P2P.MaxNumInboundPeers)(p.comet)
	sw := cp2p.NewSwitch(p.cfg.P2P, p.comet)
	sw.SetLogger(p.log)
	for _, r := range reactors {
		sw.AddReactor(r.name, r.Reactor)
	}
	sw.SetNodeInfo(info)
	sw.SetNodeKey(&key)
	p.sw = sw
	if err := sw.AddPersistentPeers(cc.Peers); err != nil {
		return fmt.Errorf("transport comet: peers: %w", err)
	}
	return nil
}

// startComet opens the port of CometBFT's own transport.
func (c *Chain) startComet(p *parts) error {
	addr, err := cp2p.NewNetAddressString(cp2p.IDAddressString(p.sw.NodeInfo().ID(), p.cfg.P2P.ListenAddress))
	if err != nil {
		return fmt.Errorf("transport comet: %w", err)
	}
	if err := p.comet.Listen(*addr); err != nil {
		return fmt.Errorf("transport comet: listen on %s: %w", c.cfg.Comet.Listen, err)
	}
	return nil
}
