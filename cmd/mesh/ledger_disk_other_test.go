//go:build !linux

package main

import "testing"

func (n *network) testDiskFull(t *testing.T) { t.Skip("a disk of its own is made on Linux only") }
