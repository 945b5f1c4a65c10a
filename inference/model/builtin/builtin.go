// Package builtin holds the small chat model that ships inside the binary, so that
// a fresh machine answers with no download. See README.md for what it is.
package builtin

import (
	_ "embed"
	"sync"

	"github.com/gonka-mesh/mesh/inference/model"
)

// Name is the name by which requests ask for the model.
const Name = "mesh-tiny"

//go:embed mesh-tiny-q8_0.gguf
var file []byte

var open = sync.OnceValues(func() (*model.File, error) { return model.OpenBytes(file) })

// Open returns the model. Every call returns the same file, which needs no Close.
func Open() (*model.File, error) { return open() }

// Bytes returns the model file. It is read-only.
func Bytes() []byte { return file }
