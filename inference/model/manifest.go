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
// Of a GGUF file, the name is no part of it. tokenizer is the SHA-256 over the
// metadata whose key starts with "tokenizer." save chat templates, in ascending order
// of keys, each as key length (u32), key, value length (u64) and value as it stands
// in the file from its type tag on; integers little-endian.
//
// A directory has the format "safetensors", and its files begin with "name":"…", as
// they need each other's: config.json, tokenizer.json, then as far as there are such
// tokenizer_config.json, generation_config.json, chat_template.jinja and
// model.safetensors.index.json, then the weights in ascending order of names.
// tokenizer is the SHA-256 of tokenizer.json.
//
// chat_template is the SHA-256 of its text, of the empty text where there is none.
// rope holds the inverse frequencies: the bits of each float32 as 8 hex digits; where
// layers with a window have others, those follow behind a slash.
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
	Name      string    `json:"name,omitempty"`
	SHA256    mesh.Hash `json:"sha256"`
	Size      uint64    `json:"size"`
	ChunkSize uint32    `json:"chunk_size"`
	ChunkRoot mesh.Hash `json:"chunk_root"`
}

const (
	manifestVersion = 1
	maxManifestLen  = 256 << 10
	maxFiles        = 512
)

// Manifest returns the manifest of the model; cache as in Digests.
func (f *File) Manifest(ctx context.Context, cache string) (*Manifest, error) {
	digests, err := f.Digests(ctx, cache, func(int64) {})
	if err != nil {
		return nil, err
	}
	return f.ManifestOf(digests), nil
}

// Digests returns the hashes of the model's files, in the order of the manifest. Large
// files are hashed once: the hashes are kept in the file cache, under size,
// modification time and inode; empty means no cache. One that cannot be read counts as
// empty. progress is called with the bytes done, of all files together.
func (f *File) Digests(ctx context.Context, cache string, progress func(done int64)) ([]*Digest, error) {
	digests, before := make([]*Digest, len(f.parts)), int64(0)
	for i := range f.parts {
		p := &f.parts[i]
		var err error
		if digests[i], err = p.digest(ctx, cache, func(done int64) { progress(before + done) }); err != nil {
			return nil, err
		}
		before += int64(len(p.data))
		progress(before)
	}
	return digests, nil
}

// ManifestOf returns the manifest of the model, whose files have these digests.
func (f *File) ManifestOf(digests []*Digest) *Manifest {
	files := make([]ManifestFile, len(f.parts))
	for i, d := range digests {
		files[i] = ManifestFile{f.parts[i].name, d.SHA256, d.Size, merkle.ChunkSize, d.Root()}
	}
	return f.manifest(files)
}

func (f *File) manifest(files []ManifestFile) *Manifest {
	rope := hexFloats(f.Config.InvFreq())
	if local := f.Config.LocalInvFreq(); local != nil {
		rope += "/" + hexFloats(local)
	}
	template := ""
	if len(f.templates) > 0 {
		template = f.templates[0].source
	}
	return &Manifest{
		Version:      manifestVersion,
		Format:       f.format,
		Files:        files,
		Tokenizer:    f.tokenHash(),
		ChatTemplate: mesh.HashOf([]byte(template)),
		Rope:         rope,
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

// InvFreq returns the inverse frequencies of RoPE that the manifest fixes; local is
// nil where layers with a window have no others.
func (m *Manifest) InvFreq() (all, local []float32, err error) {
	first, second, two := strings.Cut(m.Rope, "/")
	if all, err = unhexFloats(first); err == nil && two {
		local, err = unhexFloats(second)
	}
	return all, local, err
}

func unhexFloats(s string) ([]float32, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b)%4 != 0 || len(b) == 0 || len(b) > maxHeadDim/2*4 {
		return nil, fmt.Errorf("manifest: rope is not 1 to %d frequencies of 8 hex digits", maxHeadDim/2)
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
	case m.Format != "gguf" && m.Format != "safetensors":
		return nil, fmt.Errorf("manifest format %.20q is not supported: want gguf or safetensors", m.Format)
	case len(m.Files) < 1 || len(m.Files) > maxFiles:
		return nil, fmt.Errorf("manifest with %d files: want 1 to %d", len(m.Files), maxFiles)
	}
	for i, f := range m.Files {
		if f.ChunkSize != merkle.ChunkSize || f.Size == 0 || f.Size > math.MaxInt64 {
			return nil, fmt.Errorf("manifest file %d: size %d in chunks of %d: want chunks of %d", i, f.Size, f.ChunkSize, merkle.ChunkSize)
		}
		// A name becomes a path on the machine of whoever fetches the model.
		switch {
		case m.Format == "gguf" && f.Name != "":
			return nil, fmt.Errorf("manifest file %d has a name: want none in the format gguf", i)
		case m.Format != "gguf" && (!validName(f.Name) || slices.ContainsFunc(m.Files[:i], func(g ManifestFile) bool { return g.Name == f.Name })):
			return nil, fmt.Errorf("manifest file %d: name %.80q is no plain name or stands twice", i, f.Name)
		}
	}
	if _, _, err := m.InvFreq(); err != nil {
		return nil, err
	}
	if !bytes.Equal(m.Encode(), b) {
		return nil, errors.New("manifest is not in canonical form")
	}
	return &m, nil
}

func hexFloats(x []float32) string {
	var b strings.Builder
	for _, v := range x {
		fmt.Fprintf(&b, "%08x", math.Float32bits(v))
	}
	return b.String()
}
