// Package builtin holds the small chat model that ships inside the binary, so that
// a fresh machine answers with no download. See README.md for what it is.
package builtin

import (
	_ "embed"
	"sync"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/model"
)

// Name is the name by which requests ask for the model.
const Name = "mesh-tiny"

// id is the model ID, which a test compares with the file: hashing it would be a good
// part of the start of every node. A new file is a new model.
const id = "f662d9eb41bb0a877ca04f475706f3e7b4332f0e2df63b6a0e5ddcf2fbdb9ec5"

// ID returns the model ID.
func ID() mesh.ModelID {
	h, err := mesh.ParseHash(id)
	if err != nil {
		panic(err) // it is a constant
	}
	return h
}

//go:embed mesh-tiny-q8_0.gguf
var file []byte

var open = sync.OnceValues(func() (*model.File, error) { return model.OpenBytes(file) })

// Open returns the model. Every call returns the same file, which needs no Close.
func Open() (*model.File, error) { return open() }

// Bytes returns the model file. It is read-only.
func Bytes() []byte { return file }
