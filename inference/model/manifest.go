package model

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/internal/merkle"
)

// Manifest says what a model is, down to the bits: two nodes with the same manifest
// compute the same answers. The model ID is the SHA-256 of its canonical encoding.
//
// Canonical encoding: one JSON object, no white space, the fields below in this
// order and all present, hashes as 64 lower-case hex digits, numbers in decimal:
//
//	{"version":1,"format":"gguf",
//	 "files":[{"sha256":H,"size":N,"chunk_size":4194304,"chunk_root":H}],
//	 "tokenizer":H,"chat_template":H,"rope":"…"}
//
// tokenizer is the SHA-256 over the metadata of the file whose key starts with
// "tokenizer." save chat templates, in ascending order of keys, each as key length
// (u32), key, value length (u64) and value as it stands in the file from its type
// tag on; integers little-endian. chat_template is the SHA-256 of its text, of the
// empty text where there is none. rope holds the inverse frequencies: the bits of
// each float32 as 8 hex digits. Names and places of files are no part of it.
type Manifest struct {
	Version      int            `json:"version"`
	Format       string         `json:"format"`
	Files        []ManifestFile `json:"files"`
	Tokenizer    mesh.Hash      `json:"tokenizer"`
	ChatTemplate mesh.Hash      `json:"chat_template"`
	Rope         string         `json:"rope"`
}

// ManifestFile is one file of a model. ChunkRoot is merkle.ChunkRoot.
type ManifestFile struct {
	SHA256    mesh.Hash `json:"sha256"`
	Size      uint64    `json:"size"`
	ChunkSize uint32    `json:"chunk_size"`
	ChunkRoot mesh.Hash `json:"chunk_root"`
}

const (
	manifestVersion = 1
	maxManifestLen  = 64 << 10
	maxFiles        = 256
)

// Manifest returns the manifest of the file; see Digest for the cache.
func (f *File) Manifest(ctx context.Context, cache string) (*Manifest, error) {
	d, err := f.Digest(ctx, cache)
	if err != nil {
		return nil, err
	}
	return f.manifest(d), nil
}

func (f *File) manifest(d *Digest) *Manifest {
	template := f.header.meta[chatTemplateKey]
	var rope strings.Builder
	for _, x := range f.Config.InvFreq() {
		fmt.Fprintf(&rope, "%08x", math.Float32bits(x))
	}
	return &Manifest{
		Version:      manifestVersion,
		Format:       "gguf",
		Files:        []ManifestFile{{d.SHA256, d.Size, merkle.ChunkSize, d.Root()}},
		Tokenizer:    f.header.tokenizerHash(),
		ChatTemplate: mesh.HashOf(template.raw),
		Rope:         rope.String(),
	}
}

const chatTemplateKey = "tokenizer.chat_template"

func (h *header) tokenizerHash() mesh.Hash {
	var keys []string
	for key := range h.meta {
		if strings.HasPrefix(key, "tokenizer.") && !strings.HasPrefix(key, chatTemplateKey) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	var parts [][]byte
	for _, key := range keys {
		v := h.meta[key]
		head := binary.LittleEndian.AppendUint32(nil, uint32(len(key)))
		head = append(head, key...)
		head = binary.LittleEndian.AppendUint64(head, uint64(len(v.encoded)))
		parts = append(parts, head, v.encoded)
	}
	return mesh.HashOf(parts...)
}

// Encode returns the canonical encoding.
func (m *Manifest) Encode() []byte {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // no field of a manifest can fail
	}
	return b
}

// ID returns the model ID.
func (m *Manifest) ID() mesh.ModelID { return mesh.HashOf(m.Encode()) }

// InvFreq returns the inverse frequencies of RoPE that the manifest fixes.
func (m *Manifest) InvFreq() ([]float32, error) {
	b, err := hex.DecodeString(m.Rope)
	if err != nil || len(b)%4 != 0 {
		return nil, errors.New("manifest: rope is not a list of 8 hex digits each")
	}
	out := make([]float32, len(b)/4)
	for i := range out {
		out[i] = math.Float32frombits(binary.BigEndian.Uint32(b[4*i:]))
	}
	return out, nil
}

// ParseManifest reads a canonical manifest; anything that does not encode to the
// same bytes again is refused.
func ParseManifest(b []byte) (*Manifest, error) {
	if len(b) > maxManifestLen {
		return nil, fmt.Errorf("manifest of %d bytes: want at most %d", len(b), maxManifestLen)
	}
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	switch {
	case m.Version != manifestVersion:
		return nil, fmt.Errorf("manifest version %d is not supported: want %d", m.Version, manifestVersion)
	case m.Format != "gguf":
		return nil, fmt.Errorf("manifest format %.20q is not supported: want gguf", m.Format)
	case len(m.Files) < 1 || len(m.Files) > maxFiles:
		return nil, fmt.Errorf("manifest with %d files: want 1 to %d", len(m.Files), maxFiles)
	}
	for i, f := range m.Files {
		if f.ChunkSize != merkle.ChunkSize || f.Size == 0 || f.Size > math.MaxInt64 {
			return nil, fmt.Errorf("manifest file %d: size %d in chunks of %d: want chunks of %d", i, f.Size, f.ChunkSize, merkle.ChunkSize)
		}
	}
	if f, err := m.InvFreq(); err != nil {
		return nil, err
	} else if len(f) < 1 || len(f) > maxHeadDim/2 {
		return nil, fmt.Errorf("manifest with %d inverse frequencies: want 1 to %d", len(f), maxHeadDim/2)
	}
	if !bytes.Equal(m.Encode(), b) {
		return nil, errors.New("manifest is not in canonical form")
	}
	return &m, nil
}
