package main

import "fmt"

// Products of one token with 16 packed rows, unpacked in registers: memory is what limits them.

// alone: n blocks of 256 of Q4_K or Q5_K; scratch has 1024 bytes for the factors of a block.
func (v *vector) alone(g *blockGen, format string, words int) {
	g.fn(v.name+"Alone"+format, "w:SI", "x:BX", "n:CX", "out:DI", "scratch:DX")
	v.chains(g, true)
	g.p("loop:")
	v.factors(g, func(i, offset int) string { return fmt.Sprintf("%d(DX)", 128*i+offset) })
	g.p("ADDQ $256, SI\nMOVQ DX, R9\nMOVQ $8, R8\nsub:")
	for i, h := range v.parts() {
		if v.wide {
			g.p("VPXORD Z6, Z6, Z6\nVPXORD Z7, Z7, Z7")
		}
		v.quads(g, h, 1, words, "bit4", v.dot(g, 0))
		switch {
		case v.wide:
			g.p("VPADDD Z6, Z7, Z6")
		case words == 0: // eight quads of 4 bits fit 16 bits
			g.p("VPADDW Y6, Y7, Y6\nVPMADDWD %s, Y6, Y6", g.c("ones"))
		default:
			g.p("VPMADDWD %s, Y6, Y6\nVPMADDWD %s, Y7, Y7\nVPADDD Y6, Y7, Y6", g.c("ones"), g.c("ones"))
		}
		acc := v.r(4 + i)
		g.p("VCVTDQ2PS %s, %s\nVBROADCASTSS %d(BX), %s\nVBROADCASTSS %d(BX), %s", v.r(6), v.r(6), 4*actDX, v.r(10), 4*actSX, v.r(11))
		g.p("VMULPS %d(R9), %s, %s\nVFMADD231PS %s, %s, %s", 32*h, v.r(10), v.r(10), v.r(6), v.r(10), acc)
		g.p("VFNMADD231PS %d(R9), %s, %s", 64+32*h, v.r(11), acc)
	}
	g.p("ADDQ $%d, SI\nADDQ $128, R9\nADDQ $%d, BX\nDECQ R8\nJNE sub\nDECQ CX\nJNE loop", 256+64*words, actBlock)
	v.chains(g, false)
	g.end()
}

// chains loads or stores the chains at DI: registers 4 and, for AVX2, 5.
func (v *vector) chains(g *blockGen, in bool) {
	for i, h := range v.parts() {
		a, b := fmt.Sprintf("%d(DI)", 32*h), v.r(4+i)
		if !in {
			a, b = b, a
		}
		g.p("VMOVUPS %s, %s", a, b)
	}
}

// dot is an emit that multiplies with the activations at BX. Sums of the lower and upper four quads are in registers 6 and
// 7, of 16 bits for AVX2, where every fresh-th quad begins new ones, or with 0 the first alone.
func (v *vector) dot(g *blockGen, fresh int) func(j int) {
	return func(j int) {
		for i := range 2 {
			at := 4 * (j + 4*i)
			switch {
			case v.wide:
				g.p("VPDPBUSD.BCST %d(BX), %s, %s", at, v.r(i), v.r(6+i))
			case j == 0 || fresh > 0 && j%fresh == 0:
				g.p("VPBROADCASTD %d(BX), %s\nVPMADDUBSW %s, %s, %s", at, v.r(10), v.r(10), v.r(i), v.r(6+i))
			default:
				g.p("VPBROADCASTD %d(BX), %s\nVPMADDUBSW %s, %s, %s", at, v.r(10), v.r(10), v.r(i), v.r(i))
				g.p("VPADDW %s, %s, %s", v.r(i), v.r(6+i), v.r(6+i))
			}
		}
	}
}

// aloneQ6: n blocks of 256. The arithmetic is that of the products named Halves.
func (v *vector) aloneQ6(g *blockGen) {
	g.fn(v.name+"AloneQ6_K", "w:SI", "x:BX", "n:CX", "out:DI", "scratch:DX")
	v.chains(g, true)
	if v.wide {
		g.p("VPBROADCASTD %s, Z30\nVPBROADCASTD %s, Z31", g.c("low32"), g.c("high32"))
	}
	g.p("loop:\nMOVQ SI, R9")
	if v.wide {
		g.p("VCVTPH2PS (R9), Z15")
	}
	g.p("ADDQ $32, SI\nMOVQ $8, R8\nsub:")
	for i, h := range v.parts() {
		acc := v.r(4 + i)
		g.p("VPMOVSXBW %d(SI), %s", 384+16*h, v.r(14))
		if v.wide {
			g.p("VPXORD Z6, Z6, Z6\nVPXORD Z7, Z7, Z7\nVPDPWSSD.BCST %d(BX), Z30, Z6\nVPDPWSSD.BCST %d(BX), Z31, Z7", 4*actPair, 4*actPair)
			v.quads(g, h, 2, 2, "bits45", v.dot(g, 0))
			g.p("VPSLLD $16, Z14, Z10\nVPSRAD $16, Z10, Z10\nVPSRAD $16, Z14, Z14\nVCVTDQ2PS Z10, Z10\nVCVTDQ2PS Z14, Z14")
			g.p("VCVTDQ2PS Z6, Z6\nVCVTDQ2PS Z7, Z7\nVMULPS Z10, Z6, Z6\nVFMADD231PS Z14, Z7, Z6")
			g.p("VMULPS.BCST %d(BX), Z15, Z10\nVFMADD231PS Z6, Z10, %s", 4*actDX, acc)
			continue
		}
		g.p("VPSHUFB %s, Y14, Y15\nVPSHUFB %s, Y14, Y11", g.c("first"), g.c("second"))
		dot := v.dot(g, 2)
		v.quads(g, h, 2, 2, "bits45", func(j int) {
			dot(j)
			switch j { // two quads fill 16 bits
			case 1:
				g.p("VPMADDWD Y15, Y6, Y12\nVPMADDWD Y11, Y7, Y13")
			case 3:
				g.p("VPMADDWD Y15, Y6, Y6\nVPMADDWD Y11, Y7, Y7\nVPADDD Y6, Y12, Y12\nVPADDD Y7, Y13, Y13")
			}
		})
		g.p("VPBROADCASTD %d(BX), Y10\nVPMADDWD Y14, Y10, Y10\nVPSLLD $5, Y10, Y10\nVPADDD Y12, Y13, Y12\nVPSUBD Y10, Y12, Y12", 4*actPair)
		g.p("VCVTPH2PS %d(R9), Y10\nVBROADCASTSS %d(BX), Y11\nVMULPS Y10, Y11, Y10", 16*h, 4*actDX)
		g.p("VCVTDQ2PS Y12, Y12\nVFMADD231PS Y12, Y10, %s", acc)
	}
	g.p("ADDQ $416, SI\nADDQ $%d, BX\nDECQ R8\nJNE sub\nDECQ CX\nJNE loop", actBlock)
	v.chains(g, false)
	g.end()
}
