package kernel

import "golang.org/x/sys/cpu"

// hasF16C reads the feature bit that package cpu does not have.
func hasF16C() bool

func backends() []*backend { return backendList }

var backendList = func() []*backend {
	if cpu.X86.HasAVX2 && cpu.X86.HasFMA && hasF16C() {
		return []*backend{avx2, portable}
	}
	return []*backend{portable}
}()
