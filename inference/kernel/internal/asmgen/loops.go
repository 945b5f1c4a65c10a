package main

// sums: n groups of 32 values into 32 lanes that are read and written.
func (g *gen) sums() {
	for _, f := range []string{"avx2Sum", "avx2SumSquares"} {
		g.fn(f, "x:SI", "n:CX", "lanes:DI")
		for i := range 4 {
			g.p("VMOVUPS %d(DI), Y%d", 32*i, i)
		}
		g.p("loop:")
		for i := range 4 {
			if f == "avx2Sum" {
				g.p("VADDPS %d(SI), Y%d, Y%d", 32*i, i, i)
			} else {
				g.p("VMOVUPS %d(SI), Y%d\nVFMADD231PS Y%d, Y%d, Y%d", 32*i, 4+i, 4+i, 4+i, i)
			}
		}
		g.p("ADDQ $128, SI\nDECQ CX\nJNE loop")
		for i := range 4 {
			g.p("VMOVUPS Y%d, %d(DI)", i, 32*i)
		}
		g.end()
	}
}

// exp replaces Y0 by its exponential; it uses Y1 to Y6.
func (g *gen) exp() {
	g.p(`VMOVUPS %s, Y1
		VFMADD213PS %s, Y0, Y1
		VSUBPS %s, Y1, Y1
		VMOVAPS Y0, Y2
		VFNMADD231PS %s, Y1, Y2
		VFNMADD231PS %s, Y1, Y2
		VMOVUPS %s, Y3`, g.c("log2e"), g.c("rounder"), g.c("rounder"), g.c("ln2High"), g.c("ln2Low"), g.c("expC6"))
	for _, c := range []string{"expC5", "expC4", "expC3", "expC2", "one", "one"} {
		g.p("VFMADD213PS %s, Y2, Y3", g.c(c))
	}
	g.p(`VCVTPS2DQ Y1, Y1
		VPSRAD $1, Y1, Y4
		VPSUBD Y4, Y1, Y1
		VPADDD %s, Y4, Y4
		VPADDD %s, Y1, Y1
		VPSLLD $23, Y4, Y4
		VPSLLD $23, Y1, Y1
		VMULPS Y4, Y3, Y3
		VMULPS Y1, Y3, Y3
		VCMPPS $0x11, %s, Y0, Y4
		VANDNPS Y3, Y4, Y3
		VCMPPS $0x1e, %s, Y0, Y4
		VBLENDVPS Y4, %s, Y3, Y3
		VCMPPS $0x03, Y0, Y0, Y4
		VBLENDVPS Y4, Y0, Y3, Y0`, g.c("bias"), g.c("bias"), g.c("expLow"), g.c("expHigh"), g.c("inf"))
}

// loop8 is a loop over n groups of 8 values; step advances the pointers.
func (g *gen) loop8(body func(), pointers ...string) {
	g.p("loop:")
	body()
	for _, r := range pointers {
		g.p("ADDQ $32, %s", r)
	}
	g.p("DECQ CX\nJNE loop")
}

// elementwise functions take n groups of 8 values; scalars come as pointers.
func (g *gen) elementwise() {
	g.fn("avx2ExpSub", "dst:DI", "x:SI", "n:CX", "m:DX")
	g.p("VBROADCASTSS (DX), Y15")
	g.loop8(func() {
		g.p("VMOVUPS (SI), Y0\nVSUBPS Y15, Y0, Y0")
		g.exp()
		g.p("VMOVUPS Y0, (DI)")
	}, "SI", "DI")
	g.end()

	g.fn("avx2SiluMul", "dst:DI", "gate:SI", "up:DX", "n:CX")
	g.loop8(func() {
		g.p("VMOVUPS (SI), Y8\nVXORPS %s, Y8, Y0", g.c("sign"))
		g.exp()
		g.p("VADDPS %s, Y0, Y0\nVDIVPS Y0, Y8, Y0\nVMULPS (DX), Y0, Y0\nVMOVUPS Y0, (DI)", g.c("one"))
	}, "SI", "DI", "DX")
	g.end()

	g.fn("avx2Scale", "dst:DI", "x:SI", "w:DX", "n:CX", "r:BX")
	g.p("VBROADCASTSS (BX), Y15")
	g.loop8(func() { g.p("VMULPS (SI), Y15, Y0\nVMULPS (DX), Y0, Y0\nVMOVUPS Y0, (DI)") }, "SI", "DI", "DX")
	g.end()

	g.fn("avx2Divide", "dst:DI", "x:SI", "n:CX", "d:DX")
	g.p("VBROADCASTSS (DX), Y15")
	g.loop8(func() { g.p("VMOVUPS (SI), Y0\nVDIVPS Y15, Y0, Y0\nVMOVUPS Y0, (DI)") }, "SI", "DI")
	g.end()

	g.fn("avx2Add", "dst:DI", "x:SI", "n:CX")
	g.loop8(func() { g.p("VMOVUPS (DI), Y0\nVADDPS (SI), Y0, Y0\nVMOVUPS Y0, (DI)") }, "SI", "DI")
	g.end()

	g.fn("avx2Fold", "o:DI", "c:SI", "n:CX", "a:AX", "b:BX")
	g.p("VBROADCASTSS (AX), Y14\nVBROADCASTSS (BX), Y15")
	g.loop8(func() { g.p("VMULPS (DI), Y14, Y0\nVFMADD231PS (SI), Y15, Y0\nVMOVUPS Y0, (DI)") }, "SI", "DI")
	g.end()

	g.fn("avx2Rotate", "x0:DI", "x1:SI", "cos:AX", "sin:BX", "n:CX")
	g.loop8(func() {
		g.p(`VMOVUPS (DI), Y0
			VMOVUPS (SI), Y1
			VMOVUPS (AX), Y2
			VMOVUPS (BX), Y3
			VMULPS Y1, Y3, Y4
			VMULPS Y0, Y3, Y5
			VFMSUB231PS Y0, Y2, Y4
			VFMADD231PS Y1, Y2, Y5
			VMOVUPS Y4, (DI)
			VMOVUPS Y5, (SI)`)
	}, "DI", "SI", "AX", "BX")
	g.end()

	// the pairs of 8 are (2i, 2i+1); shuffles bring dimensions, cosines and sines into one order and back
	g.fn("avx2RotateInterleaved", "x:DI", "cos:AX", "sin:BX", "n:CX")
	g.loop8(func() {
		g.p(`VMOVUPS (DI), Y6
			VMOVUPS 32(DI), Y7
			VSHUFPS $0x88, Y7, Y6, Y0
			VSHUFPS $0xdd, Y7, Y6, Y1
			VPERMQ $0xd8, (AX), Y2
			VPERMQ $0xd8, (BX), Y3
			VMULPS Y1, Y3, Y4
			VMULPS Y0, Y3, Y5
			VFMSUB231PS Y0, Y2, Y4
			VFMADD231PS Y1, Y2, Y5
			VUNPCKLPS Y5, Y4, Y0
			VUNPCKHPS Y5, Y4, Y1
			VMOVUPS Y0, (DI)
			VMOVUPS Y1, 32(DI)
			ADDQ $32, DI`)
	}, "DI", "AX", "BX")
	g.end()

	// out receives eight largest values and eight largest magnitudes.
	g.fn("avx2MaxFinite", "x:SI", "n:CX", "out:DI")
	g.p("VMOVUPS %s, Y15\nVMOVUPS %s, Y0\nVPXOR Y1, Y1, Y1", g.c("abs"), g.c("minusInf"))
	// a NaN leaves the first operand, the largest so far
	g.loop8(func() { g.p("VMOVUPS (SI), Y2\nVMAXPS Y0, Y2, Y0\nVPAND Y15, Y2, Y2\nVPMAXUD Y2, Y1, Y1") }, "SI")
	g.p("VMOVUPS Y0, (DI)\nVMOVUPS Y1, 32(DI)")
	g.end()

	g.fn("avx2MulMax", "x:SI", "n:CX", "c:DX", "out:DI")
	g.p("VBROADCASTSS (DX), Y15\nVMOVUPS (DI), Y0")
	g.loop8(func() { g.p("VMULPS (SI), Y15, Y2\nVMOVUPS Y2, (SI)\nVMAXPS Y0, Y2, Y0") }, "SI")
	g.p("VMOVUPS Y0, (DI)")
	g.end()

	g.fn("avx2Narrow", "dst:DI", "x:SI", "n:CX", "ret")
	g.p("VMOVUPS %s, Y15\nVPXOR Y1, Y1, Y1", g.c("abs"))
	g.loop8(func() {
		// not less than 65520, or NaN
		g.p("VMOVUPS (SI), Y0\nVPAND Y15, Y0, Y2\nVCMPPS $0x15, %s, Y2, Y2\nVORPS Y2, Y1, Y1", g.c("65520"))
		g.p("VCVTPS2PH $0, Y0, (DI)\nADDQ $16, DI")
	}, "SI")
	g.p("VMOVMSKPS Y1, AX\nVZEROUPPER\nMOVQ AX, ret+24(FP)\nRET")
}

// sampling: the random words of n groups of 8 counters, and the screen of n groups of 8 tokens.
func (g *gen) sampling() {
	// keys points at the two keys of each of the ten rounds
	g.fn("avx2Philox", "dst:DI", "n:CX", "keys:AX", "counter:BX")
	g.p(`VPBROADCASTD (BX), Y15
		VPADDD %s, Y15, Y15
		VMOVDQU %s, Y14
		VMOVDQU %s, Y13
		loop:
		VMOVDQA Y15, Y0
		VPBROADCASTD 4(BX), Y1
		VPBROADCASTD 8(BX), Y2
		VPBROADCASTD 12(BX), Y3`, g.c("iota"), g.c("philox0"), g.c("philox1"))
	for round := range 10 {
		// even and odd lanes give 64-bit products; Y4, Y6 become the high words, Y5, Y7 the low ones
		for i, c := range []int{0, 2} {
			m, a, b := 14-i, 4+2*i, 5+2*i
			g.p(`VPMULUDQ Y%[1]d, Y%[2]d, Y%[3]d
				VPSRLQ $32, Y%[2]d, Y8
				VPMULUDQ Y%[1]d, Y8, Y8
				VPSLLQ $32, Y8, Y9
				VPBLENDD $0xaa, Y9, Y%[3]d, Y%[4]d
				VPSRLQ $32, Y%[3]d, Y%[3]d
				VPBLENDD $0xaa, Y8, Y%[3]d, Y%[3]d`, m, c, a, b)
		}
		g.p(`VPBROADCASTD %d(AX), Y8
			VPBROADCASTD %d(AX), Y9
			VPXOR Y1, Y8, Y8
			VPXOR Y3, Y9, Y9
			VPXOR Y6, Y8, Y0
			VPXOR Y4, Y9, Y2
			VMOVDQA Y7, Y1
			VMOVDQA Y5, Y3`, 8*round, 8*round+4)
	}
	g.p(`VPUNPCKLDQ Y1, Y0, Y4
		VPUNPCKHDQ Y1, Y0, Y5
		VPUNPCKLDQ Y3, Y2, Y6
		VPUNPCKHDQ Y3, Y2, Y7
		VPUNPCKLQDQ Y6, Y4, Y0
		VPUNPCKHQDQ Y6, Y4, Y1
		VPUNPCKLQDQ Y7, Y5, Y2
		VPUNPCKHQDQ Y7, Y5, Y3`)
	for i := range 4 {
		g.p("VMOVDQU X%d, %d(DI)\nVEXTRACTI128 $1, Y%d, %d(DI)", i, 16*i, i, 64+16*i)
	}
	g.p("VPADDD %s, Y15, Y15\nADDQ $128, DI\nDECQ CX\nJNE loop", g.c("eight"))
	g.end()

	g.fn("avx2Screen", "mask:DI", "x:SI", "r:DX", "n:CX", "best:BX")
	g.p("VBROADCASTSS (BX), Y15\nVMOVUPS %s, Y14\nVMOVUPS %s, Y13", g.c("boundSlope"), g.c("boundHigh"))
	g.loop8(func() {
		g.p(`VMOVDQU (DX), Y0
			VPSRLD $1, Y0, Y0
			VCVTDQ2PS Y0, Y0
			VCVTDQ2PS Y0, Y0
			VFNMADD213PS Y13, Y14, Y0
			VADDPS (SI), Y0, Y0
			VCMPPS $0x1d, Y15, Y0, Y0
			VMOVMSKPS Y0, AX
			MOVB AX, (DI)
			INCQ DI`)
	}, "SI", "DX")
	g.end()
}
