package node

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/internal/atomicfile"
	"github.com/gonka-mesh/mesh/internal/keyfile"
	"github.com/gonka-mesh/mesh/internal/plainly"
)

// homeVersion is the layout of a home folder. A newer one is refused.
const homeVersion = "1"

// How often a lock that is held is tried again, and how long after.
const (
	lockTries = 3
	lockPause = 10 * time.Millisecond
)

// apiFile holds the address of the API while the node runs, for commands that are
// given the home alone.
const apiFile = "api.addr"

// tokenFile holds the secret for control calls.
const tokenFile = "api.token"

// What a node signed and was given, and the escrows that it opened.
const (
	receiptsFile = "receipts.db"
	escrowsFile  = "escrows.json"
)

// Home is a node's folder: keys, configuration and state. One process holds it.
type Home struct {
	Dir  string
	lock *os.File
}

// DefaultHome returns MESH_HOME, or ~/.mesh.
func DefaultHome() (string, error) {
	if dir := os.Getenv("MESH_HOME"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find your home folder: %w; name one with --home", err)
	}
	return filepath.Join(dir, ".mesh"), nil
}

// OpenHome makes the folder if need be, locks it, and checks its version. The lock
// goes with the process, whatever way it ends. A folder with other things in it is
// refused: a node deletes files that it takes for its own.
func OpenHome(dir string) (*Home, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open home: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make home %s: %w; choose another folder with --home", dir, plainly.Said(err))
	}
	old, err := isHome(dir) // before a file is made in it
	if err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open home: %w", err)
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for try := 0; errors.Is(err, unix.EWOULDBLOCK) && try < lockTries; try++ {
		time.Sleep(lockPause) // RunningAPI holds it for a moment
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("home %s is in use by another mesh process; stop it, or choose another folder with --home", dir)
		}
		return nil, fmt.Errorf("lock home %s: %w", dir, err)
	}
	h := &Home{Dir: dir, lock: lock}
	err = h.checkVersion()
	if err == nil && old {
		err = h.sweep()
	}
	if err == nil {
		err = h.leaveAPI("") // one that was killed could not take it away
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return h, nil
}

// newcomers are what a folder may have that no node has opened yet: what people put there
// first, what `mesh dev` does, what a process leaves that ends as it opens it, and what
// file systems have in their roots.
var newcomers = []string{"lock", "version", "config.yaml", "node.key", "consensus.key", "consensus.state", "mesh.log", "lost+found"}

// isHome reports whether a node has used a folder before. A folder that is neither a home
// nor a new one is an error.
func isHome(dir string) (bool, error) {
	has := func(name string) bool {
		_, err := os.Lstat(filepath.Join(dir, name))
		return err == nil
	}
	if has("version") && (has("lock") || has("node.key")) { // other folders have a version, too
		return true, nil
	}
	if has(tokenFile) && has("node.key") && !has("version") { // a node ran here
		return false, damagedVersion(dir, "is missing")
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return false, fmt.Errorf("open home: %w; choose another folder with --home", plainly.Said(err))
	}
	for _, f := range files {
		if !slices.Contains(newcomers, f.Name()) && !slices.Contains(newcomers, atomicfile.Unfinished(f.Name())) {
			return false, fmt.Errorf("%s is no home of a mesh node, and is not empty: it has %.80q; name an empty or new folder with --home", dir, f.Name())
		}
	}
	return false, nil
}

// IsHome reports whether a folder is the home of a node.
func IsHome(dir string) bool {
	old, err := isHome(dir)
	return err == nil && old
}

func damagedVersion(dir, how string) error {
	return fmt.Errorf("home %s is damaged: its file version %s; if this mesh is the one that made it, write %s there: echo %s > %s", dir, how, homeVersion, homeVersion, filepath.Join(dir, "version"))
}

// sweep removes what a killed process left half written. Nothing writes yet.
func (h *Home) sweep() error {
	for _, folder := range []string{"", "blobs", packedFolder} {
		if err := atomicfile.Sweep(h.Path(folder)); err != nil {
			return fmt.Errorf("remove half written files: %w", err)
		}
	}
	return nil
}

// ownFiles are of no use to another key than that of the home they are in.
var ownFiles = []string{"consensus.key", "consensus.state", escrowsFile, receiptsFile}

// key reads the node's key, and makes one in a new home. In an old one it is not made anew:
// what it has belongs to the key of before, the consensus key's turns as well.
func (h *Home) key(passphrase string) (ed25519.PrivateKey, error) {
	path := h.Path("node.key")
	key, err := keyfile.Load(path, passphrase)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	var left []string
	for _, name := range ownFiles {
		if _, err := os.Lstat(h.Path(name)); err == nil {
			left = append(left, name)
		}
	}
	if len(left) > 0 {
		return nil, fmt.Errorf("%s is missing, and home %s was in use: restore the key (mesh --home %s wallet key import FILE does, with a copy of it); for a new identity name another home, or move away what belongs to the old one: %s", path, h.Dir, h.Dir, strings.Join(left, ", "))
	}
	return keyfile.LoadOrCreate(path, passphrase)
}

// missReceipts warns where a node ran in this home, and left no receipts: they are made anew.
func (h *Home) missReceipts(log *slog.Logger) {
	if _, err := os.Lstat(h.Path(tokenFile)); err != nil {
		return // none ran here
	}
	if info, err := os.Stat(h.Path(receiptsFile)); errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		log.Warn("the receipts of this home are missing or empty, and begin anew: what was due of epochs that are not settled, and its vouchers, are lost", "file", h.Path(receiptsFile))
	}
}

// leaveAPI writes where the API answers; empty: nowhere.
func (h *Home) leaveAPI(url string) error {
	var err error
	if path := h.Path(apiFile); url != "" {
		err = atomicfile.Write(path, []byte(url+"\n"), 0o600)
	} else if err = os.Remove(path); errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("note the API's address: %w", err)
	}
	return nil
}

// RunningAPI returns the address of the API of the node that runs in a home folder;
// empty: none does. Only who holds the lock has left an address that counts.
func RunningAPI(dir string) string {
	lock, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		return ""
	}
	defer lock.Close()
	if unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
		return ""
	}
	b, err := os.ReadFile(filepath.Join(dir, apiFile))
	if err != nil {
		return ""
	}
	base := strings.TrimSpace(string(b))
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" || u.Port() == "" || base != "http://"+u.Host {
		return ""
	}
	return base
}

// Close gives the folder back.
func (h *Home) Close() error { return h.lock.Close() }

// Path returns the path of a file in the folder.
func (h *Home) Path(name string) string { return filepath.Join(h.Dir, name) }

func (h *Home) checkVersion() error {
	path := h.Path("version")
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if err := atomicfile.Write(path, []byte(homeVersion+"\n"), 0o600); err != nil {
			return fmt.Errorf("open home: %w", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("open home: %w", err)
	}
	v := strings.TrimSpace(string(b))
	if n, err := strconv.Atoi(v); err != nil || n < 1 {
		return damagedVersion(h.Dir, fmt.Sprintf("has %.20q", v))
	}
	if v != homeVersion {
		return fmt.Errorf("home %s has layout version %.20q, this mesh knows %s; use the mesh that made it, or another folder", h.Dir, v, homeVersion)
	}
	return nil
}

// genesisFile holds the networks that the home was of, one a line: ID and hash of the
// whole genesis document.
const genesisFile = "genesis"

// keepGenesis notes the genesis that this home is used with, and refuses another one of
// the same network ID. The ID is what is signed, and has 32 bits of the hash: whoever
// makes a document with the ID of a network can have what a key signs under it count on
// that network.
func (h *Home) keepGenesis(g *Genesis) error {
	path := h.Path(genesisFile)
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read which networks home %s was of: %w", h.Dir, err)
	}
	for i, line := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
		network, hash, ok := strings.Cut(line, " ")
		switch {
		case line == "" && i == 0: // no file yet
		case !ok || !isHash(hash):
			return fmt.Errorf("%s is damaged at line %d: %.80q is no network ID and hash of a genesis; if you know that the genesis is that of before, move the file away", path, i+1, line)
		case network == string(g.Network()) && hash == g.Hash().String():
			return nil
		case network == string(g.Network()):
			return fmt.Errorf("home %s was of network %s with genesis %.16s…, this genesis is %s… and has the same ID: somebody made it so, and what this node signs there would count on the other; use the genesis of before, or a home with another key", h.Dir, network, hash, g.Hash().String()[:16])
		}
	}
	b = fmt.Appendf(b, "%s %s\n", g.Network(), g.Hash())
	if err := atomicfile.Write(path, b, 0o600); err != nil {
		return fmt.Errorf("note the genesis: %w", err)
	}
	return nil
}

func isHash(s string) bool {
	_, err := mesh.ParseHash(s)
	return err == nil
}

// NewToken draws the secret for control calls. Each start has its own: one that got out
// with a backup, or went to another program that listened at the node's address while the
// node was down, is worth nothing afterwards.
func (h *Home) NewToken() (string, error) {
	var raw [24]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return "", fmt.Errorf("draw API token: %w", err)
	}
	token := hex.EncodeToString(raw[:])
	if err := atomicfile.Write(h.Path(tokenFile), []byte(token+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("keep API token: %w", err)
	}
	return token, nil
}

// ReadToken returns the secret of the node that runs in a home folder; empty where there
// is none, or this user may not read it.
func ReadToken(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, tokenFile))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
