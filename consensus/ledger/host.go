package ledger

import (
	"bytes"
	"crypto/ed25519"
	"math"
	"slices"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/internal/bls"
)

// A host has three keys: the node key is its account, the consensus key signs blocks,
// and the BLS key makes randomness. Its owner, which may be a cold account, gets its
// rewards and its collateral back; the node key alone cannot redirect either.
//
// A validator that replaces its keys goes on with the old ones to the end of the epoch,
// and does so once in an epoch: keys that changed in every block would make light nodes,
// which skip, verify block by block.

func hostKey(a mesh.Address) []byte { return key(tableHost, a[:]) }

// consensusIndex is the key under which a consensus key's host stands, and blsIndex
// that of a BLS key. Replaced keys stay, for evidence that comes late.
func consensusIndex(a ConsensusAddress) []byte { return key(tableKey, a[:]) }

func blsIndex(k []byte) []byte { return key(tableKey, k) }

// HostProof returns what a host's keys sign when they are registered: its address and
// BLS key, under the domain of hosts. In a genesis file, which makes the network's ID,
// the network is GenesisNetwork.
func HostProof(network mesh.NetworkID, host mesh.Address, blsKey []byte) []byte {
	return domainHost.Preimage(network, append(slices.Clone(host[:]), blsKey...))
}

// GenesisNetwork stands for a network in the proofs of its genesis file: the preset's
// name and zeros.
func GenesisNetwork(preset string) mesh.NetworkID { return mesh.NewNetworkID(preset, mesh.Hash{}) }

func (c *call) hostRecord(a mesh.Address) (*ledgerpb.Host, error) {
	h, ok := load[ledgerpb.Host](c.overlay, hostKey(a))
	if !ok {
		return nil, refuse("%s is not a registered host", a.Short())
	}
	return h, nil
}

func (c *call) registerHost(t *ledgerpb.RegisterHost) error {
	if len(t.GetHost()) > 0 {
		return c.replaceOwner(t)
	}
	if _, known := load[ledgerpb.Host](c.overlay, hostKey(c.sender)); !known {
		if err := c.debit(c.sender, c.b.params.GetRegisterFee()); err != nil {
			return refuse("the fee of a new host: %v", err)
		}
		c.totals(func(t *ledgerpb.Totals) { t.Community = c.plus(t.GetCommunity(), c.b.params.GetRegisterFee()) })
	}
	return c.enrol(c.m.cfg.Network, t)
}

// replaceOwner is the owner's word that another account owns the host from now on.
func (c *call) replaceOwner(t *ledgerpb.RegisterHost) error {
	a, err := addressFrom("host", t.GetHost())
	if err != nil {
		return err
	}
	h, err := c.hostRecord(a)
	if err != nil {
		return err
	}
	owner, err := addressFrom("owner", t.GetOwner())
	switch {
	case err != nil:
		return err
	case !bytes.Equal(h.GetOwner(), c.sender[:]):
		return refuse("%s is not the owner of host %s", c.sender.Short(), a.Short())
	case len(t.GetConsensusKey())+len(t.GetConsensusProof())+len(t.GetBlsKey())+len(t.GetBlsProof()) > 0:
		return refuse("keys are replaced by the host itself")
	}
	if bytes.Equal(h.GetOwner(), owner[:]) {
		return refuse("%s owns host %s already", owner.Short(), a.Short())
	}
	h.Owner = owner[:]
	c.save(hostKey(a), h)
	return nil
}

// enrol makes the sender a host, or replaces its keys.
func (c *call) enrol(network mesh.NetworkID, t *ledgerpb.RegisterHost) error {
	h, known := load[ledgerpb.Host](c.overlay, hostKey(c.sender))
	owner := c.sender
	if len(t.GetOwner()) > 0 {
		var err error
		if owner, err = addressFrom("owner", t.GetOwner()); err != nil {
			return err
		}
	}
	switch {
	case h.GetTombstoned():
		return refuse("%s signed two blocks of one height and is no host any more", c.sender.Short())
	case known && len(t.GetOwner()) > 0 && !bytes.Equal(h.GetOwner(), owner[:]) && !bytes.Equal(h.GetOwner(), c.sender[:]):
		return refuse("only the owner, %s, can name another one", mesh.AddressOf(h.GetOwner()).Short())
	}
	if known && sameKeys(h, t) {
		return c.rename(h, t)
	}
	if c.Get(rotationKey(c.sender)) != nil {
		return refuse("%s gave new keys in this epoch already; they count from the next one on", c.sender.Short())
	}
	if len(t.GetConsensusKey()) != ed25519.PublicKeySize {
		return refuse("consensus key of %d bytes, want %d", len(t.GetConsensusKey()), ed25519.PublicKeySize)
	}
	if !c.b.trial {
		if err := c.m.checkKeys(network, c.sender, t); err != nil {
			return err
		}
	}
	for _, k := range []struct {
		name       string
		index      []byte
		now, given []byte
	}{
		{"consensus key", consensusIndex(ConsensusAddressOf(t.GetConsensusKey())), h.GetConsensusKey(), t.GetConsensusKey()},
		{"BLS key", blsIndex(t.GetBlsKey()), h.GetBlsKey(), t.GetBlsKey()},
	} {
		if c.Get(k.index) != nil && !bytes.Equal(k.now, k.given) {
			return refuse("the %s is or was another's, or was replaced before", k.name)
		}
	}
	if !known {
		h.Since = c.b.epoch.GetEpoch()
	}
	if !known || len(t.GetOwner()) > 0 {
		h.Owner = owner[:]
	}
	c.save(hostKey(c.sender), h)
	if h.GetPower() == 0 {
		c.takeKeys(c.b, c.sender, h, t)
		return nil
	}
	c.reserveKeys(c.sender, h, t)
	return nil
}

func sameKeys(h *ledgerpb.Host, t *ledgerpb.RegisterHost) bool {
	return bytes.Equal(h.GetConsensusKey(), t.GetConsensusKey()) && bytes.Equal(h.GetBlsKey(), t.GetBlsKey())
}

// rename is a registration of the keys that a host has: its own word for another owner.
func (c *call) rename(h *ledgerpb.Host, t *ledgerpb.RegisterHost) error {
	if len(t.GetOwner()) == 0 || bytes.Equal(h.GetOwner(), t.GetOwner()) {
		return refuse("%s has these keys and this owner", c.sender.Short())
	}
	h.Owner = t.GetOwner()
	c.save(hostKey(c.sender), h)
	return nil
}

func rotationKey(a mesh.Address) []byte { return key(tableRotation, a[:]) }

// reserveKeys notes the keys that a validator has from the next epoch on. From now on
// they are nobody else's.
func (o *overlay) reserveKeys(host mesh.Address, h *ledgerpb.Host, t *ledgerpb.RegisterHost) {
	if !bytes.Equal(h.GetConsensusKey(), t.GetConsensusKey()) {
		o.save(consensusIndex(ConsensusAddressOf(t.GetConsensusKey())), &ledgerpb.ConsensusKey{Host: host[:], BlsKey: t.GetBlsKey()})
	}
	if !bytes.Equal(h.GetBlsKey(), t.GetBlsKey()) {
		o.save(blsIndex(t.GetBlsKey()), &ledgerpb.ConsensusKey{Host: host[:]})
	}
	o.save(rotationKey(host), &ledgerpb.RegisterHost{ConsensusKey: t.GetConsensusKey(), BlsKey: t.GetBlsKey()})
}

// rotateKeys gives hosts the keys that they registered in the epoch before.
func (o *overlay) rotateKeys(b *blockState) {
	scan(o, []byte{tableRotation}, func(k []byte, t *ledgerpb.RegisterHost) {
		host := mesh.AddressOf(k[1:])
		h, _ := load[ledgerpb.Host](o, hostKey(host))
		o.takeKeys(b, host, h, t)
		o.remove(k)
	})
}

// takeKeys gives a host its keys.
func (o *overlay) takeKeys(b *blockState, host mesh.Address, h *ledgerpb.Host, t *ledgerpb.RegisterHost) {
	o.save(consensusIndex(ConsensusAddressOf(t.GetConsensusKey())),
		&ledgerpb.ConsensusKey{Host: host[:], BlsKey: t.GetBlsKey(), Mixes: o.mixesFrom(b, h, t.GetBlsKey())})
	o.save(blsIndex(t.GetBlsKey()), &ledgerpb.ConsensusKey{Host: host[:]})
	if h.GetPower() > 0 && !bytes.Equal(h.GetConsensusKey(), t.GetConsensusKey()) {
		b.reset = true
	}
	h.ConsensusKey, h.BlsKey = t.GetConsensusKey(), t.GetBlsKey()
	o.save(hostKey(host), h)
}

// mixesFrom returns the height from which a BLS key of a host makes randomness.
func (o *overlay) mixesFrom(b *blockState, h *ledgerpb.Host, blsKey []byte) uint64 {
	switch {
	case bytes.Equal(h.GetBlsKey(), blsKey):
		before, _ := load[ledgerpb.ConsensusKey](o, consensusIndex(ConsensusAddressOf(h.GetConsensusKey())))
		return before.GetMixes()
	case b.height == 0: // of the genesis
		return 0
	}
	return uint64(b.height) + freshBlocks
}

// checkKeys takes some milliseconds for a BLS key and its proof: who sends them pays first.
func (m *Machine) checkKeys(network mesh.NetworkID, host mesh.Address, t *ledgerpb.RegisterHost) error {
	proof := HostProof(network, host, t.GetBlsKey())
	switch {
	case nobodys([32]byte(t.GetConsensusKey())):
		return refuse("consensus key %x is nobody's: anyone can sign for it", t.GetConsensusKey())
	case !ed25519.Verify(t.GetConsensusKey(), proof, t.GetConsensusProof()):
		return refuse("the consensus key's proof is not its signature")
	}
	err := refuse("the BLS key's proof of possession does not verify")
	seen := mesh.HashOf(proof)
	seen = mesh.HashOf([]byte("host\x00"), seen[:], t.GetBlsProof())
	good := m.cfg.Recall(seen, func() bool {
		public, bad := bls.ParsePublicKey(t.GetBlsKey())
		if bad != nil {
			err = refuse("%v", bad)
			return false
		}
		return public.VerifyProof(proof, t.GetBlsProof())
	})
	if good {
		return nil
	}
	return err
}

func (c *call) stake(t *ledgerpb.Stake) error {
	a, err := addressFrom("host", t.GetHost())
	if err != nil {
		return err
	}
	h, err := c.hostRecord(a)
	switch {
	case err != nil:
		return err
	case h.GetTombstoned():
		return refuse("%s is no host any more", a.Short())
	case t.GetAmount() == 0:
		return refuse("nothing to stake")
	}
	if err := c.debit(c.sender, t.GetAmount()); err != nil {
		return err
	}
	h.Collateral = c.plus(h.GetCollateral(), t.GetAmount())
	c.totals(func(s *ledgerpb.Totals) { s.Collateral = c.plus(s.GetCollateral(), t.GetAmount()) })
	c.save(hostKey(a), h)
	return nil
}

// unstake begins to unbond collateral. It covers no power from the next epoch that is
// closed on, and can be slashed until it is paid.
func (c *call) unstake(t *ledgerpb.Unstake) error {
	a, err := addressFrom("host", t.GetHost())
	if err != nil {
		return err
	}
	h, err := c.hostRecord(a)
	switch {
	case err != nil:
		return err
	case !bytes.Equal(h.GetOwner(), c.sender[:]):
		return refuse("only the owner of host %s takes its collateral back", a.Short())
	case t.GetAmount() == 0:
		return refuse("nothing to unstake")
	case t.GetAmount() > h.GetCollateral():
		return refuse("host %s has %s of collateral", a.Short(), mesh.Amount(h.GetCollateral()))
	}
	h.Collateral -= t.GetAmount()
	c.save(hostKey(a), h)
	k := unbondingKey(c.b.epoch.GetEpoch()+c.b.params.GetUnbondingEpochs(), a)
	u, _ := load[ledgerpb.Unbonding](c.overlay, k)
	u.Host, u.Amount = a[:], c.plus(u.GetAmount(), t.GetAmount())
	c.save(k, u)
	return nil
}

func unbondingKey(epoch uint64, host mesh.Address) []byte {
	return key(tableUnbonding, be64(epoch), host[:])
}

// payUnbonding pays collateral whose epoch has come, to the owner of now.
func (m *Machine) payUnbonding(o *overlay, epoch uint64) {
	for _, k := range keysUpTo(o, tableUnbonding, epoch, math.MaxInt) {
		u, _ := load[ledgerpb.Unbonding](o, k)
		h, _ := load[ledgerpb.Host](o, hostKey(mesh.AddressOf(u.GetHost())))
		o.totals(func(t *ledgerpb.Totals) { t.Collateral = o.minus(t.GetCollateral(), u.GetAmount()) })
		o.credit(mesh.AddressOf(h.GetOwner()), u.GetAmount())
		o.remove(k)
	}
}

func (c *call) unjail() error {
	h, err := c.hostRecord(c.sender)
	switch {
	case err != nil:
		return err
	case h.GetTombstoned():
		return refuse("%s signed two blocks of one height and does not come back", c.sender.Short())
	case h.GetJailedUntil() == 0:
		return refuse("%s is not jailed", c.sender.Short())
	case c.b.epoch.GetEpoch() < h.GetJailedUntil():
		return refuse("%s is jailed until epoch %d, this is epoch %d", c.sender.Short(), h.GetJailedUntil(), c.b.epoch.GetEpoch())
	}
	h.JailedUntil = 0
	c.save(hostKey(c.sender), h)
	return nil
}

// Host returns a host's record, nil for who is none.
func (v View) Host(a mesh.Address) (*ledgerpb.Host, error) {
	return read[ledgerpb.Host](v, hostKey(a))
}

// NamedHost is a host with its address.
type NamedHost struct {
	Address mesh.Address
	Record  *ledgerpb.Host
}

// Hosts returns all hosts, ascending by address.
func (v View) Hosts() (out []NamedHost, err error) {
	err = list(v, []byte{tableHost}, func(k []byte, h *ledgerpb.Host) {
		out = append(out, NamedHost{mesh.AddressOf(k[1:]), h})
	})
	return out, err
}

// NextKeys returns the keys that a validator has from the next epoch on, nil for one
// that gave none in this epoch.
func (v View) NextKeys(a mesh.Address) (*ledgerpb.RegisterHost, error) {
	return read[ledgerpb.RegisterHost](v, rotationKey(a))
}

// Validators returns the hosts that have power, ascending by address.
func (v View) Validators() ([]NamedHost, error) {
	o := newOverlay(v.r)
	all := o.validators()
	return all, *o.err
}

// Unbonding returns what of the hosts' collateral unbonds.
func (v View) Unbonding() (map[mesh.Address]mesh.Amount, error) {
	out := make(map[mesh.Address]mesh.Amount)
	err := list(v, []byte{tableUnbonding}, func(k []byte, u *ledgerpb.Unbonding) {
		out[mesh.AddressOf(k[9:])] += mesh.Amount(u.GetAmount())
	})
	return out, err
}
