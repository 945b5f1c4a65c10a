package kernel

import "golang.org/x/sys/cpu"

// hasF16C reads the feature bit that package cpu does not have.
func hasF16C() bool

// isAMD reads the vendor, which package cpu does not tell.
func isAMD() bool

// fetchesAhead says whether the products of one token, in Q8_0, fetch weights ahead of their use. On an Ice Lake
// that gains; on AMD, measured on an EPYC of Zen 4 or later, it costs a quarter of the speed: it sees by itself that the
// weights are read in order.
var fetchesAhead = !isAMD()

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
