package kernel

import "golang.org/x/sys/cpu"

// hasF16C reads the feature bit that package cpu does not have.
func hasF16C() bool

func backends() []*backend { return backendList }

// The features below include what the operating system saves of the registers.
var backendList = func() []*backend {
	x := &cpu.X86
	if !x.HasAVX2 || !x.HasFMA || !hasF16C() {
		return []*backend{portable}
	}
	if !x.HasAVX512F || !x.HasAVX512DQ || !x.HasAVX512BW || !x.HasAVX512VL || !x.HasAVX512VNNI {
		return []*backend{avx2, portable}
	}
	return []*backend{avx512, avx2, portable}
}()
