package node

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gonka-mesh/mesh/internal/atomicfile"
)

// homeVersion is the layout of a home folder. A newer one is refused.
const homeVersion = "1"

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
// goes with the process, whatever way it ends.
func OpenHome(dir string) (*Home, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open home: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open home: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open home: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("home %s is in use by another mesh process; stop it, or choose another folder with --home", dir)
		}
		return nil, fmt.Errorf("lock home %s: %w", dir, err)
	}
	h := &Home{Dir: dir, lock: lock}
	if err := h.checkVersion(); err != nil {
		lock.Close()
		return nil, err
	}
	return h, nil
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
	if v := strings.TrimSpace(string(b)); v != homeVersion {
		return fmt.Errorf("home %s has layout version %.20q, this mesh knows %s; use the mesh that made it, or another folder", h.Dir, v, homeVersion)
	}
	return nil
}

// Token returns the secret for control calls, made at first use.
func (h *Home) Token() (string, error) {
	path := h.Path("api.token")
	if b, err := os.ReadFile(path); err == nil && len(strings.TrimSpace(string(b))) >= 32 {
		return strings.TrimSpace(string(b)), nil
	}
	var raw [24]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return "", fmt.Errorf("draw API token: %w", err)
	}
	token := hex.EncodeToString(raw[:])
	if err := atomicfile.Write(path, []byte(token+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("keep API token: %w", err)
	}
	return token, nil
}
