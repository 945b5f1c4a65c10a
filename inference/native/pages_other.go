//go:build !linux

package native

func dropPages([]byte) {}

func populate([]byte) {}
