// Package model reads model files: GGUF with the llama, qwen2 and qwen3
// architectures, their tokenizers and chat templates, and the manifest whose hash
// is the model ID. It also writes synthetic models for tests and benchmarks.
//
// A file comes from anyone, so nothing in it is trusted: Open checks every field
// against the file's size before it is used, and a file that opens has every
// tensor its architecture needs in the right shape. Text from users is encoded
// with Tokenizer.Encode, which never yields a special token; only the literal
// parts of the chat template do.
package model

import (
	"fmt"
	"sync"
	"unsafe"
)

// File is an open model file. It is safe for concurrent use; tensors point into
// its memory and must not be used after Close.
type File struct {
	Config  Config
	Tensors []*Tensor // in the file's order

	path   string // empty when opened from memory
	data   []byte
	mapped bool
	header *header

	tokenizer func() (*Tokenizer, error)
	template  func() (*Template, error)
}

// Open maps a GGUF file into memory and checks it. The file must not be truncated
// while it is open.
func Open(path string) (*File, error) {
	data, mapped, err := mapFile(path)
	if err != nil {
		return nil, fmt.Errorf("open model %s: %w", path, err)
	}
	f, err := newFile(data)
	if err != nil {
		if mapped {
			unmap(data)
		}
		return nil, fmt.Errorf("open model %s: %w", path, err)
	}
	f.path, f.mapped = path, mapped
	return f, nil
}

// OpenBytes opens a GGUF file held in memory, which must not change.
func OpenBytes(data []byte) (*File, error) {
	if len(data) > 0 && uintptr(unsafe.Pointer(&data[0]))%64 != 0 {
		// Kernels read float32 in place, so the copy starts on a cache line.
		buf := make([]byte, len(data)+63)
		skip := -int(uintptr(unsafe.Pointer(&buf[0]))) & 63
		data = buf[skip : skip+copy(buf[skip:], data)]
	}
	f, err := newFile(data)
	if err != nil {
		return nil, fmt.Errorf("open model from memory: %w", err)
	}
	return f, nil
}

func newFile(data []byte) (*File, error) {
	h, err := parseHeader(data)
	if err != nil {
		return nil, err
	}
	c, err := newConfig(h)
	if err != nil {
		return nil, err
	}
	if err := validate(h, &c); err != nil {
		return nil, err
	}
	f := &File{Config: c, Tensors: h.tensors, data: data, header: h}
	f.tokenizer = sync.OnceValues(func() (*Tokenizer, error) { return newTokenizer(h, c.Vocab) })
	f.template = sync.OnceValues(func() (*Template, error) { return newTemplate(f) })
	return f, nil
}

// Tensor returns the tensor of this name, or nil.
func (f *File) Tensor(name string) *Tensor { return f.header.byName[name] }

// Path returns the path the file was opened from; empty for one from memory.
func (f *File) Path() string { return f.path }

// Bytes returns the whole file. It is read-only and valid until Close.
func (f *File) Bytes() []byte { return f.data }

// Size returns the size of the file in bytes.
func (f *File) Size() int64 { return int64(len(f.data)) }

// Tokenizer returns the file's tokenizer, built at the first call.
func (f *File) Tokenizer() (*Tokenizer, error) { return f.tokenizer() }

// Template returns the file's chat template, compiled at the first call.
func (f *File) Template() (*Template, error) { return f.template() }

// Close releases the memory of the file.
func (f *File) Close() error {
	data := f.data
	f.data = nil
	if !f.mapped || data == nil {
		return nil
	}
	return unmap(data)
}
