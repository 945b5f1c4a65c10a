package consensus

import (
	cryptoed25519 "crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cometbft/cometbft/crypto/ed25519"
	cmtjson "github.com/cometbft/cometbft/libs/json"
	"github.com/cometbft/cometbft/privval"
	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/internal/atomicfile"
	"github.com/gonka-mesh/mesh/internal/bls"
	"github.com/gonka-mesh/mesh/internal/keyfile"
)

// Key is what a validator signs with: the consensus key, and the BLS key for
// randomness, which is derived from it.
type Key struct {
	signer *privval.FilePV
	bls    *bls.SecretKey
	home   string
}

// The files of a key, in the node's home folder.
const (
	keyFile    = "consensus.key"
	recordFile = "consensus.state"
)

// LoadKey reads the consensus key of a home folder and the record of what it signed
// last, and makes both where there is neither. The record is what keeps a validator
// from signing twice: it is never made anew beside a key that was in use.
func LoadKey(home, passphrase string) (*Key, error) {
	path, record := filepath.Join(home, keyFile), filepath.Join(home, recordFile)
	_, kerr := os.Stat(path)
	state, serr := readRecord(record)
	newKey, newRecord := errors.Is(kerr, fs.ErrNotExist), errors.Is(serr, fs.ErrNotExist)
	switch {
	case serr != nil && !newRecord:
		return nil, fmt.Errorf("record of signed votes: %w; %s", serr, anotherKey)
	case newRecord && !newKey:
		return nil, fmt.Errorf("consensus key %s: its record of signed votes, %s, is missing; without it the node could sign twice and be slashed; %s", path, record, anotherKey)
	case newKey && !newRecord && state.Height > 0:
		return nil, fmt.Errorf("consensus key: %s is missing, but its record %s is there; restore the key (never the record), or %s", path, record, anotherKey)
	case newKey:
		// The record first: a key without one is refused, one that nothing was signed with is not missed.
		if _, err := try(func() *privval.FilePV {
			fresh := privval.NewFilePV(ed25519.GenPrivKey(), "", record)
			fresh.LastSignState.Save()
			return fresh
		}); err != nil {
			return nil, fmt.Errorf("make the record of signed votes: %w", err)
		}
		var err error
		if state, err = readRecord(record); err != nil {
			return nil, fmt.Errorf("record of signed votes: %w", err)
		}
	}
	secret, err := keyfile.LoadOrCreate(path, passphrase)
	if err != nil {
		return nil, fmt.Errorf("consensus key: %w", err)
	}
	k := &Key{home: home, signer: privval.NewFilePV(ed25519.PrivKey(secret), "", record)}
	last := &k.signer.LastSignState
	last.Height, last.Round, last.Step, last.Signature, last.SignBytes = state.Height, state.Round, state.Step, state.Signature, state.SignBytes
	seed := mesh.HashOf([]byte("mesh/bls/1\x00"), secret.Seed())
	if k.bls, err = bls.NewSecretKey(seed[:]); err != nil {
		return nil, err
	}
	return k, nil
}

// anotherKey is the way out where the record is gone: an older one, from a copy, is what
// makes a validator sign twice.
const anotherKey = "move " + keyFile + " and " + recordFile + " away, start again to make a new key, and register it (mesh host stake AMOUNT does, beside its stake); an old copy of the record would let the node sign twice"

const maxRecord = 64 << 10

// readRecord reads what a key signed last. CometBFT's own loader ends the process over a
// bad file; here it is an error.
func readRecord(path string) (state privval.FilePVLastSignState, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return state, err
	}
	if info.Size() > maxRecord {
		return state, fmt.Errorf("%s has %d bytes", path, info.Size())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return state, err
	}
	if err := cmtjson.Unmarshal(b, &state); err != nil {
		return state, fmt.Errorf("%s is damaged: %w", path, err)
	}
	if state.Height < 0 || state.Round < 0 || state.Step < 0 || state.Step > 3 || (len(state.SignBytes) > 0) != (len(state.Signature) > 0) {
		return state, fmt.Errorf("%s contradicts itself", path)
	}
	return state, nil
}

// Signer signs votes and proposals, and keeps the record.
func (k *Key) Signer() types.PrivValidator {
	return &recorded{k.signer, func() error { return atomicfile.SyncDir(k.home) }}
}

// recorded lets no signature out before its record is the one on the disk. CometBFT puts
// the record's bytes there, and not the name that it gives them: after a power cut the
// record before could stand in its place.
type recorded struct {
	types.PrivValidator
	sync func() error // the folder of the record
}

func (r *recorded) SignVote(chainID string, vote *cmtproto.Vote) error {
	err := r.PrivValidator.SignVote(chainID, vote)
	if err == nil {
		if err = r.sync(); err != nil {
			vote.Signature, vote.ExtensionSignature = nil, nil
		}
	}
	return err
}

func (r *recorded) SignProposal(chainID string, proposal *cmtproto.Proposal) error {
	err := r.PrivValidator.SignProposal(chainID, proposal)
	if err == nil {
		if err = r.sync(); err != nil {
			proposal.Signature = nil
		}
	}
	return err
}

// Beacon returns what makes the first transaction of the blocks that a host proposes.
func (k *Key) Beacon(network mesh.NetworkID, host mesh.Address) func(height mesh.Height) ([]byte, error) {
	return func(height mesh.Height) ([]byte, error) {
		signature, err := k.bls.Sign(ledger.BeaconMessage(network, height))
		if err != nil {
			return nil, err
		}
		return ledger.EncodeBeacon(height, host, signature)
	}
}

// Registration is the transaction that makes a host of the node with this key.
func (k *Key) Registration(network mesh.NetworkID, host, owner mesh.Address) (*ledgerpb.RegisterHost, error) {
	t := &ledgerpb.RegisterHost{ConsensusKey: k.signer.Key.PubKey.Bytes(), BlsKey: k.bls.Public().Bytes()}
	proof := ledger.HostProof(network, host, t.BlsKey)
	t.ConsensusProof = cryptoed25519.Sign(cryptoed25519.PrivateKey(k.signer.Key.PrivKey.Bytes()), proof)
	var err error
	if t.BlsProof, err = k.bls.Prove(proof); err != nil {
		return nil, err
	}
	if owner != host {
		t.Owner = owner[:]
	}
	return t, nil
}

// Genesis is the same for a genesis file of a network with this preset name.
func (k *Key) Genesis(preset string, host mesh.Address) (ledger.GenesisHost, error) {
	t, err := k.Registration(ledger.GenesisNetwork(preset), host, host)
	if err != nil {
		return ledger.GenesisHost{}, err
	}
	return ledger.GenesisHost{
		Address: host, ConsensusKey: hex.EncodeToString(t.ConsensusKey), ConsensusProof: hex.EncodeToString(t.ConsensusProof),
		BLSKey: hex.EncodeToString(t.BlsKey), BLSProof: hex.EncodeToString(t.BlsProof),
	}, nil
}

// FirstValidators returns the validators that a genesis begins with: the first header
// has their hash.
func FirstValidators(network mesh.NetworkID, g *ledger.Genesis) (*types.ValidatorSet, error) {
	first, err := ledger.New(ledger.Config{Network: network}).Genesis(g)
	if err != nil {
		return nil, err
	}
	var set []*types.Validator
	for _, v := range first.Validators {
		set = append(set, types.NewValidator(ed25519.PubKey(v.ConsensusKey), v.Power))
	}
	return types.NewValidatorSet(set), nil
}
