package main

import "fmt"

func avx512() {
	g := open("avx512", 64)
	g.vnniSingle("avx512Q8Single", false)
	g.vnniSingle("avx512Q8SingleCold", true)
	for rows := 1; rows <= 3; rows++ {
		for _, cold := range []bool{true, false} {
			g.vnniTile(rows, cold)
		}
	}
	for _, f := range []string{"F32", "F16", "BF16"} {
		for tokens := 1; tokens <= 8; tokens++ {
			g.widePanel(f, tokens)
		}
	}
	g.wideLoops()
	g.close()
}

// vnniSingle: 16 rows of Q8_0, one token. The integers start at the bias, -128 times the sum of the activations, which undoes
// the 128 that the weights have in excess; VPDPBUSD sums in 32 bits without saturation.
func (g *gen) vnniSingle(name string, cold bool) {
	g.fn(name, "w:AX", "x:BX", "nb:CX", "from:SI", "out:DI")
	g.p("VMOVUPS (SI), Z0\nLEAQ 1024(AX), DX")
	g.pairs("R8", "R9")
	g.p("loop:\nVPBROADCASTD 32(BX), Z1\nVPXORD Z2, Z2, Z2\nVCVTPH2PS (DX), Z3\nVMULPS.BCST 36(BX), Z3, Z3")
	g.fetchAhead(cold, "DX", 0)
	for q := range 8 {
		g.p("VMOVDQU64 %d(AX), Z%d\nVPDPBUSD.BCST %d(BX), Z%d, Z%d", 64*q, 4+q, 4*q, 4+q, 1+q%2)
		g.fetchAhead(cold, "AX", 64*q)
	}
	g.p("VPADDD Z1, Z2, Z1\nVCVTDQ2PS Z1, Z1\nVFMADD231PS Z1, Z3, Z0")
	g.nextOfPair("AX", "R8", "DX", "R9")
	g.p("ADDQ $48, BX\nDECQ CX\nJNE loop\nVMOVUPS Z0, (DI)")
	g.end()
}

// vnniTile: 16, 32 or 48 rows of Q8_0, four tokens; groups of rows are step bytes apart, tokens of out stride bytes. An
// activation is broadcast once for all rows: as a memory operand of each VPDPBUSD it would keep the load ports busier
// than the multipliers. Where the weights come from memory they are fetched ahead.
func (g *gen) vnniTile(rows int, cold bool) {
	const tokens = 4
	name := fmt.Sprintf("avx512Q8x%d", 16*rows)
	if cold {
		name += "Cold"
	}
	g.fn(name, "w:AX", "step:DX", "x:BX", "nb:CX", "from:R11", "fromStride:R12", "out:DI", "stride:SI")
	acc := func(r, t int) int { return r*tokens + t }
	dot := func(r, t int) int { return (rows+r)*tokens + t }
	weight := func(r int) int { return 2*rows*tokens + r }
	free := 2*rows*tokens + rows // the registers from here on
	at := []string{"", "(DX*1)", "(DX*2)"}
	g.p("LEAQ 1024(AX), R10")
	for t := range tokens {
		for r := range rows {
			g.p("VMOVUPS %d(R11), Z%d", 64*r, acc(r, t))
		}
		g.p("ADDQ R12, R11")
	}
	g.pairs("R8", "R9")
	g.p("loop:")
	for t := range tokens {
		g.p("VPBROADCASTD %d(BX), Z%d", 32*tokens+4*t, dot(0, t))
		for r := 1; r < rows; r++ {
			g.p("VMOVDQA64 Z%d, Z%d", dot(0, t), dot(r, t))
		}
	}
	for q := range 8 {
		for r := range rows {
			g.p("VMOVDQU64 %d(AX)%s, Z%d", 64*q, at[r], weight(r))
			if cold {
				g.p("PREFETCHT0 %d(AX)%s", ahead+64*q, at[r])
			}
		}
		for t := range tokens {
			x := free + t%2
			g.p("VPBROADCASTD %d(BX), Z%d", 4*(tokens*q+t), x)
			for r := range rows {
				g.p("VPDPBUSD Z%d, Z%d, Z%d", x, weight(r), dot(r, t))
			}
		}
	}
	for r := range rows {
		g.p("VCVTPH2PS (R10)%s, Z%d", at[r], weight(r))
		if cold {
			g.p("PREFETCHT0 %d(R10)%s", ahead, at[r])
		}
	}
	for t := range tokens {
		for r := range rows {
			scale := free + (t*rows+r)%min(5, 32-free)
			g.p("VCVTDQ2PS Z%d, Z%d\nVMULPS.BCST %d(BX), Z%d, Z%d", dot(r, t), dot(r, t), 36*tokens+4*t, weight(r), scale)
			g.p("VFMADD231PS Z%d, Z%d, Z%d", dot(r, t), scale, acc(r, t))
		}
	}
	g.nextOfPair("AX", "R8", "R10", "R9")
	g.p("ADDQ $%d, BX\nDECQ CX\nJNE loop", 48*tokens)
	for t := range tokens {
		for r := range rows {
			g.p("VMOVUPS Z%d, %d(DI)", acc(r, t), 64*r)
		}
		g.p("ADDQ SI, DI")
	}
	g.end()
}

// widePanel is panel with 16 rows in one register, for 1 to 8 tokens.
func (g *gen) widePanel(format string, tokens int) {
	g.fn(fmt.Sprintf("avx512Panel%sx%d", format, tokens), "w:AX", "x:BX", "xStride:DX", "n:CX", "out:DI", "stride:SI")
	x := []string{"(BX)", "(BX)(DX*1)", "(BX)(DX*2)", "(BX)(R8*1)", "(R9)", "(R9)(DX*1)", "(R9)(DX*2)", "(R9)(R8*1)"}
	g.p("LEAQ (DX)(DX*2), R8\nLEAQ (BX)(DX*4), R9")
	for t := range tokens {
		g.p("VPXORD Z%d, Z%d, Z%d", t, t, t)
	}
	g.p("loop:")
	bytes := 32
	switch format {
	case "F32":
		bytes = 64
		g.p("VMOVUPS (AX), Z8")
	case "F16":
		g.p("VCVTPH2PS (AX), Z8")
	case "BF16":
		g.p("VPMOVZXWD (AX), Z8\nVPSLLD $16, Z8, Z8")
	}
	g.p("PREFETCHT0 2048(AX)")
	for t := range tokens {
		g.p("VFMADD231PS.BCST %s, Z8, Z%d", x[t], t)
	}
	g.p("ADDQ $%d, AX\nADDQ $4, BX\nADDQ $4, R9\nDECQ CX\nJNE loop", bytes)
	for t := range tokens {
		g.p("VADDPS (DI), Z%d, Z%d\nVMOVUPS Z%d, (DI)\nADDQ SI, DI", t, t, t)
	}
	g.end()
}

// masked is a loop over n values, 16 at a time; body sees the mask of valid ones in K1, all of them but in the last round.
// Loads with the mask zero the rest, stores with it leave the rest. step advances the pointers.
func (g *gen) masked(body func(), pointers ...string) {
	g.p("MOVL $0xffff, R8\nKMOVW R8, K1\nSUBQ $16, CX\nJLT tail\nloop:")
	body()
	for _, r := range pointers {
		g.p("ADDQ $64, %s", r)
	}
	g.p("SUBQ $16, CX\nJGE loop\ntail:\nADDQ $16, CX\nJE done\nSHLL CX, R8\nSHRL $16, R8\nKMOVW R8, K1")
	body()
	g.p("done:")
}

// hold loads constants into the registers from Z31 downwards and returns their names.
func (g *gen) hold(names ...string) map[string]string {
	m := map[string]string{}
	for i, n := range names {
		m[n] = fmt.Sprintf("Z%d", 31-i)
		g.p("VMOVUPS %s, Z%d", g.c(n), 31-i)
	}
	return m
}

var expConstants = []string{"log2e", "rounder", "ln2High", "ln2Low", "expC6", "expC5", "expC4", "expC3", "expC2", "one", "expLow", "expHigh", "inf"}

// wideExp replaces Z0 by its exponential; it uses Z1 to Z4, K2 and K3. c are registers with expConstants.
func (g *gen) wideExp(c map[string]string) {
	g.p(`VMOVAPS %[1]s, Z1
		VFMADD213PS %[2]s, Z0, Z1
		VSUBPS %[2]s, Z1, Z1
		VMOVAPS Z0, Z2
		VFNMADD231PS %[3]s, Z1, Z2
		VFNMADD231PS %[4]s, Z1, Z2
		VMOVAPS %[5]s, Z3`, c["log2e"], c["rounder"], c["ln2High"], c["ln2Low"], c["expC6"])
	for _, n := range []string{"expC5", "expC4", "expC3", "expC2", "one", "one"} {
		g.p("VFMADD213PS %s, Z2, Z3", c[n])
	}
	// a single exact scaling by 2^n; NaN stays, the limits follow
	g.p(`VSCALEFPS Z1, Z3, Z3
		VCMPPS $0x11, %[1]s, Z0, K2
		VCMPPS $0x1e, %[2]s, Z0, K3
		VPXORD Z3, Z3, K2, Z3
		VMOVAPS %[3]s, K3, Z3
		VCMPPS $0x03, Z0, Z0, K2
		VMOVAPS Z0, K2, Z3
		VMOVAPS Z3, Z0`, c["expLow"], c["expHigh"], c["inf"])
}

// wideLoops are the functions of elementwise and sums on 16 lanes; n counts values.
func (g *gen) wideLoops() {
	g.fn("avx512ExpSub", "dst:DI", "x:SI", "n:CX", "m:DX")
	c := g.hold(expConstants...)
	g.p("VBROADCASTSS (DX), Z15")
	g.masked(func() {
		g.p("VMOVUPS.Z (SI), K1, Z0\nVSUBPS Z15, Z0, Z0")
		g.wideExp(c)
		g.p("VMOVUPS Z0, K1, (DI)")
	}, "SI", "DI")
	g.end()

	g.fn("avx512SiluMul", "dst:DI", "gate:SI", "up:DX", "n:CX")
	c = g.hold(append([]string{"sign"}, expConstants...)...)
	g.masked(func() {
		g.p("VMOVUPS.Z (SI), K1, Z8\nVPXORD %s, Z8, Z0", c["sign"])
		g.wideExp(c)
		g.p("VADDPS %s, Z0, Z0\nVDIVPS Z0, Z8, Z0\nVMULPS.Z (DX), Z0, K1, Z0\nVMOVUPS Z0, K1, (DI)", c["one"])
	}, "SI", "DI", "DX")
	g.end()

	g.fn("avx512Scale", "dst:DI", "x:SI", "w:DX", "n:CX", "r:BX")
	g.p("VBROADCASTSS (BX), Z15")
	g.masked(func() { g.p("VMULPS.Z (SI), Z15, K1, Z0\nVMULPS.Z (DX), Z0, K1, Z0\nVMOVUPS Z0, K1, (DI)") }, "SI", "DI", "DX")
	g.end()

	g.fn("avx512Divide", "dst:DI", "x:SI", "n:CX", "d:DX")
	g.p("VBROADCASTSS (DX), Z15")
	g.masked(func() { g.p("VMOVUPS.Z (SI), K1, Z0\nVDIVPS Z15, Z0, Z0\nVMOVUPS Z0, K1, (DI)") }, "SI", "DI")
	g.end()

	g.fn("avx512Add", "dst:DI", "x:SI", "n:CX")
	g.masked(func() { g.p("VMOVUPS.Z (DI), K1, Z0\nVADDPS.Z (SI), Z0, K1, Z0\nVMOVUPS Z0, K1, (DI)") }, "SI", "DI")
	g.end()

	g.fn("avx512Fold", "o:DI", "c:SI", "n:CX", "a:AX", "b:BX")
	g.p("VBROADCASTSS (AX), Z14\nVBROADCASTSS (BX), Z15")
	g.masked(func() { g.p("VMULPS.Z (DI), Z14, K1, Z0\nVFMADD231PS (SI), Z15, K1, Z0\nVMOVUPS Z0, K1, (DI)") }, "SI", "DI")
	g.end()

	g.fn("avx512MulMax", "x:SI", "n:CX", "c:DX", "out:DI")
	g.p("VBROADCASTSS (DX), Z15\nVMOVUPS %s, Z0", g.c("minusInf"))
	// a NaN leaves the operand named first, the largest so far
	g.masked(func() { g.p("VMULPS.Z (SI), Z15, K1, Z2\nVMOVUPS Z2, K1, (SI)\nVMAXPS Z0, Z2, K1, Z0") }, "SI")
	g.fold("VMAXPS")
	g.p("VMOVSS X0, (DI)")
	g.end()

	for _, f := range []string{"avx512Sum", "avx512SumSquares"} {
		add := func(at int, mask, lane string) {
			if f == "avx512Sum" {
				g.p("VADDPS %d(SI), %s, %s%s", at, lane, mask, lane)
				return
			}
			zero := ""
			if mask != "" {
				zero = ".Z"
			}
			g.p("VMOVUPS%s %d(SI), %sZ2\nVFMADD231PS Z2, Z2, %s%s", zero, at, mask, mask, lane)
		}
		g.fn(f, "x:SI", "n:CX", "out:DI")
		g.p("VPXORD Z0, Z0, Z0\nVPXORD Z1, Z1, Z1\nSUBQ $32, CX\nJLT tail\nloop:")
		add(0, "", "Z0")
		add(64, "", "Z1")
		g.p("ADDQ $128, SI\nSUBQ $32, CX\nJGE loop\ntail:\nADDQ $32, CX\nJE done")
		g.p("MOVL $1, R8\nSHLL CX, R8\nDECL R8\nKMOVW R8, K1\nSHRL $16, R8\nKMOVW R8, K2")
		add(0, "K1, ", "Z0")
		add(64, "K2, ", "Z1")
		g.p("done:\nVADDPS Z1, Z0, Z0")
		g.fold("VADDPS")
		g.p("VMOVSS X0, (DI)")
		g.end()
	}
}

// fold combines the 16 lanes of Z0 by the tree 8, 4, 2, 1.
func (g *gen) fold(op string) {
	g.p("VEXTRACTF64X4 $1, Z0, Y1\n%[1]s Y1, Y0, Y0\nVEXTRACTF128 $1, Y0, X1\n%[1]s X1, X0, X0", op)
	g.p("VPSHUFD $0x4e, X0, X1\n%[1]s X1, X0, X0\nVPSHUFD $0xb1, X0, X1\n%[1]s X1, X0, X0", op)
}
