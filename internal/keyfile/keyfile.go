// Package keyfile keeps ed25519 keys in files: PEM with PKCS #8 inside, and around
// it, where there is a passphrase, an age file (scrypt, ChaCha20-Poly1305).
package keyfile

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/gonka-mesh/mesh/internal/atomicfile"
)

const (
	pemType  = "PRIVATE KEY"
	maxBytes = 16 << 10
	// maxWork bounds the scrypt work that a foreign file may ask for: 2^20, about 4 s.
	maxWork = 20
)

// ErrPassphrase is returned for an encrypted key without its passphrase.
var ErrPassphrase = errors.New("it is encrypted: set MESH_PASSPHRASE to its passphrase")

// LoadOrCreate reads the key at path, or makes one. A key that others may read, or
// that does not parse, is an error and is never replaced: it is an identity and an
// account. A key that is there without encryption stays as it is.
func LoadOrCreate(path, passphrase string) (ed25519.PrivateKey, error) {
	key, err := Load(path, passphrase)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	key, err = Create(path, passphrase)
	if errors.Is(err, fs.ErrExist) { // another process was faster
		return Load(path, passphrase)
	}
	return key, err
}

// Create makes a key in a file that must not exist.
func Create(path, passphrase string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return key, Write(path, key, passphrase)
}

// Write puts a key into a file that must not exist.
func Write(path string, key ed25519.PrivateKey, passphrase string) error {
	b, err := encode(key, passphrase)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	err = atomicfile.Create(path, b, 0o600)
	if errors.Is(err, fs.ErrExist) { // the error names a file that is gone
		return fmt.Errorf("write key %s: %w, and may be a key that somebody needs; move it away first, or name another file", path, fs.ErrExist)
	}
	if err != nil {
		return fmt.Errorf("write key %s: %w", path, err)
	}
	return nil
}

func encode(key ed25519.PrivateKey, passphrase string) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	plain := pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})
	if passphrase == "" {
		return plain, nil
	}
	to, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	text := armor.NewWriter(&out)
	w, err := age.Encrypt(text, to)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(plain); err != nil {
		return nil, err
	}
	if err := errors.Join(w.Close(), text.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// Load reads a key.
func Load(path, passphrase string) (ed25519.PrivateKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	if perm := info.Mode().Perm(); runtime.GOOS != "windows" && perm&0o077 != 0 {
		return nil, fmt.Errorf("key %s has mode %04o, others may read it: run chmod 600 %s", path, perm, path)
	}
	if info.Size() > maxBytes {
		return nil, fmt.Errorf("key %s has %d bytes: that is no key", path, info.Size())
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	key, err := decode(raw, passphrase)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	return key, nil
}

func decode(raw []byte, passphrase string) (ed25519.PrivateKey, error) {
	if bytes.HasPrefix(raw, []byte(armor.Header)) {
		var err error
		if raw, err = decrypt(raw, passphrase); err != nil {
			return nil, err
		}
	}
	block, rest := pem.Decode(raw)
	if block == nil || block.Type != pemType || len(rest) != 0 {
		return nil, fmt.Errorf("it is damaged: want one PEM block %q; restore it from a backup; without one, begin in another home", pemType)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("it is damaged: %w", err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("want an ed25519 key, got %T", parsed)
	}
	return key, nil
}

func decrypt(raw []byte, passphrase string) ([]byte, error) {
	if passphrase == "" {
		return nil, ErrPassphrase
	}
	id, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return nil, err
	}
	id.SetMaxWorkFactor(maxWork)
	r, err := age.Decrypt(armor.NewReader(bytes.NewReader(raw)), id)
	var wrong *age.NoIdentityMatchError
	if errors.As(err, &wrong) {
		return nil, errors.New("the passphrase is not the one that it was encrypted with")
	}
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxBytes))
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	return plain, nil
}
