//go:build !linux

package kernel

// pages is memory outside Go's heap; there is none here.
type pages struct{}

func newPages(n int) ([]byte, *pages) { return make([]byte, n), nil }

func hugePages([]byte) {}
