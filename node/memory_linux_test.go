package node

import "testing"

// TestDropStartPages: the process lives on, and what a linker wrote at its start too.
// Under cgo and the race detector there is such a linker.
func TestDropStartPages(t *testing.T) {
	before := residentMemory()
	for range 3 {
		DropStartPages()
	}
	after := residentMemory()
	if after >= before {
		t.Errorf("%d bytes are resident after, %d before", after, before)
	}
}
