// Package kernel is the arithmetic of the exact class: every operation has one defined result, bit for bit, whatever
// instruction set, number of threads, batch or tile computes it. docs/numerics.md is the definition; Contract names
// its version. Backends exist in portable Go, AVX2 and AVX-512 with VNNI, chosen at run time, and each is checked
// against the others and against golden vectors (SelfTest).
//
// The package knows nothing of models: it offers matrices in the formats of GGUF files, activations, a pool of
// workers, the vector operations of a transformer, a cache of keys and values with attention, and sampling.
// Functions panic only on wrong lengths of slices, as indexing does; values that come from a model or a request can
// end in a NumericError, never in a panic.
package kernel

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
)

// Contract is the version of the numeric definition. It stands in every fingerprint; a changed bit is a new version.
const Contract = "mk1"

// ErrNumeric reports a non-finite or overflowing value. The request that met it ends with finish reason "numeric".
var ErrNumeric = errors.New("non-finite value")

// NumericError is ErrNumeric for some tokens of a batch. What was computed for the other tokens is valid.
type NumericError struct {
	Tokens []int // indexes in the batch, ascending
}

func (e *NumericError) Error() string {
	return fmt.Sprintf("non-finite activations in tokens %v", e.Tokens)
}

// Unwrap makes errors.Is(err, ErrNumeric) hold.
func (e *NumericError) Unwrap() error { return ErrNumeric }

var current atomic.Pointer[backend]

func active() *backend {
	if b := current.Load(); b != nil {
		return b
	}
	b, err := find(os.Getenv(Variable))
	if err != nil {
		b = backends()[0]
	}
	current.CompareAndSwap(nil, b)
	return current.Load()
}

// Variable names the environment variable that selects the backend a process starts with, for comparisons. A name that
// this machine does not have is passed over.
const Variable = "MESH_KERNEL"

// find returns the backend of a name, the fastest for "".
func find(name string) (*backend, error) {
	for _, b := range backends() {
		if name == "" || b.name == name {
			return b, nil
		}
	}
	return nil, fmt.Errorf("select kernel backend %q: this machine has %v", name, Backends())
}

// Backends lists the backends that run on this machine, fastest first. "portable" is always the last.
func Backends() []string {
	var names []string
	for _, b := range backends() {
		names = append(names, b.name)
	}
	return names
}

// Backend names the backend in use.
func Backend() string { return active().name }

// Use selects a backend for the whole process; "" selects the fastest. Results do not depend on it.
func Use(name string) error {
	b, err := find(name)
	if err == nil {
		current.Store(b)
	}
	return err
}
