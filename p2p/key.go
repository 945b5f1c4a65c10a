package p2p

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/gonka-mesh/mesh/internal/atomicfile"
)

const pemType = "PRIVATE KEY"

// LoadOrCreateKey reads the node key at path, PEM with PKCS #8 inside, or makes
// one. A key that others may read, or that does not parse, is an error and is
// never replaced: it is the node's identity and account.
func LoadOrCreateKey(path string) (ed25519.PrivateKey, error) {
	key, err := loadKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	_, key, err = ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make node key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode node key: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("write node key: %w", err)
	}
	if err := atomicfile.Create(path, pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}), 0o600); err != nil {
		if errors.Is(err, fs.ErrExist) { // another process was faster
			return loadKey(path)
		}
		return nil, fmt.Errorf("write node key %s: %w", path, err)
	}
	return key, nil
}

func loadKey(path string) (ed25519.PrivateKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read node key: %w", err)
	}
	if perm := info.Mode().Perm(); runtime.GOOS != "windows" && perm&0o077 != 0 {
		return nil, fmt.Errorf("node key %s has mode %04o, others may read it: run chmod 600 %s", path, perm, path)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read node key: %w", err)
	}
	block, rest := pem.Decode(raw)
	if block == nil || block.Type != pemType || len(rest) != 0 {
		return nil, fmt.Errorf("node key %s is damaged: want one PEM block %q; restore it from a backup, or move it away to start with a new identity", path, pemType)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("node key %s is damaged: %w", path, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("node key %s: want an ed25519 key, got %T", path, parsed)
	}
	return key, nil
}
