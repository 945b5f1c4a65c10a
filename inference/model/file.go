// Package model reads model files: GGUF, and directories of safetensors as Hugging
// Face keeps them, of the architectures that Architectures lists; their tokenizers
// and chat templates; and the manifest whose hash is the model ID. It also writes
// synthetic models for tests and benchmarks.
//
// A file comes from anyone, so nothing in it is trusted: Open checks every field
// against the file's size before it is used, and a model that opens has every tensor
// its architecture needs in the right shape. Text from users is encoded with
// Tokenizer.Encode, which never yields a special token; only the literal parts of
// the chat template do.
package model

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"unsafe"

	"github.com/gonka-mesh/mesh"
)

// File is an open model. It is safe for concurrent use; tensors point into its
// memory and must not be used after Close.
type File struct {
	Config  Config
	Tensors []*Tensor // in the file's order

	path   string // empty when opened from memory
	parts  []part // in the manifest's order
	byName map[string]*Tensor

	format    string           // of the manifest
	tokenHash func() mesh.Hash // of what defines the tokenizer
	templates []namedTemplate  // chat templates; the first is the default one
	tokenizer func() (*Tokenizer, error)
	template  func() (*Template, error)
}

// part is one file of a model.
type part struct {
	name   string // in a directory; empty for a GGUF file
	path   string // empty when opened from memory
	data   []byte
	mapped bool
}

func openPart(dir, name string) (part, error) {
	p := part{name: name, path: filepath.Join(dir, name)}
	var err error
	if p.data, p.mapped, err = mapFile(p.path); err != nil && dir != "" {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return p, err
}

func closeParts(parts []part) error {
	var first error
	for i := range parts {
		p := &parts[i]
		if p.mapped {
			if err := unmap(p.data); err != nil && first == nil {
				first = err
			}
		}
		p.data, p.mapped = nil, false
	}
	return first
}

// Open maps a model into memory and checks it: a GGUF file, a directory with
// config.json, tokenizer.json and safetensors, or one safetensors file in such a
// directory. The files must not be truncated while they are open.
func Open(path string) (*File, error) {
	f, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("open model %s: %w", path, err)
	}
	f.path = path
	return f, nil
}

func open(path string) (*File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	switch {
	case info.IsDir():
		return openDirectory(path, "", filepath.Base(path))
	case strings.HasSuffix(path, ".safetensors"):
		dir, name := filepath.Split(path)
		return openDirectory(dir, name, strings.TrimSuffix(name, ".safetensors"))
	}
	p, err := openPart("", path)
	if err != nil {
		return nil, err
	}
	p.name = ""
	f, err := newFile(p)
	if err != nil {
		closeParts([]part{p})
	}
	return f, err
}

// openDirectory opens safetensors; weights as in openHub.
func openDirectory(dir, weights, name string) (*File, error) {
	h, parts, err := openHub(dir, weights)
	if err != nil {
		closeParts(parts)
		return nil, err
	}
	h.config.Name = name
	return h.file(parts), nil
}

// OpenBytes opens a GGUF file held in memory, which must not change.
func OpenBytes(data []byte) (*File, error) {
	f, err := newFile(part{data: aligned(data)})
	if err != nil {
		return nil, fmt.Errorf("open model from memory: %w", err)
	}
	return f, nil
}

// aligned returns data on a cache line, where kernels read float32 in place.
func aligned(data []byte) []byte {
	if len(data) == 0 || uintptr(unsafe.Pointer(&data[0]))%64 == 0 {
		return data
	}
	buf := make([]byte, len(data)+63)
	skip := -int(uintptr(unsafe.Pointer(&buf[0]))) & 63
	return buf[skip : skip+copy(buf[skip:], data)]
}

func newFile(p part) (*File, error) {
	h, err := parseHeader(p.data)
	if err != nil {
		return nil, err
	}
	c, err := newConfig(h)
	if err != nil {
		return nil, err
	}
	if err := c.validate(&h.table, false); err != nil {
		return nil, err
	}
	if err := h.ggufVocabulary(&c); err != nil {
		return nil, err
	}
	f := &File{Config: c, Tensors: h.tensors, parts: []part{p}, byName: h.byName, format: "gguf", tokenHash: h.tokenizerHash}
	if v, ok := h.meta[chatTemplateKey]; ok && v.kind == typeString {
		f.templates = []namedTemplate{{"default", string(v.raw)}}
	}
	f.tokenizer = sync.OnceValues(func() (*Tokenizer, error) { return newTokenizer(h, c.Vocab) })
	f.template = sync.OnceValues(func() (*Template, error) { return newTemplate(f) })
	return f, nil
}

// Tensor returns the tensor of this name, or nil.
func (f *File) Tensor(name string) *Tensor { return f.byName[name] }

// Path returns the path the model was opened from; empty for one from memory.
func (f *File) Path() string { return f.path }

// Paths returns the paths of its files, in the order of the manifest.
func (f *File) Paths() []string {
	out := make([]string, len(f.parts))
	for i := range f.parts {
		out[i] = f.parts[i].path
	}
	return out
}

// Size returns the size of all its files in bytes.
func (f *File) Size() int64 {
	n := int64(0)
	for i := range f.parts {
		n += int64(len(f.parts[i].data))
	}
	return n
}

// Mapped returns what of its memory is mapped from disk: pages of it that are dropped
// come back when they are read.
func (f *File) Mapped() (out [][]byte) {
	for i := range f.parts {
		if f.parts[i].mapped {
			out = append(out, f.parts[i].data)
		}
	}
	return out
}

// Tokenizer returns the model's tokenizer, built at the first call.
func (f *File) Tokenizer() (*Tokenizer, error) { return f.tokenizer() }

// Template returns the model's chat template, compiled at the first call.
func (f *File) Template() (*Template, error) { return f.template() }

// Close releases the memory of the model.
func (f *File) Close() error { return closeParts(f.parts) }
