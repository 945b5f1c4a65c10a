package kernel

// Formats with less than 8 bits a weight are unpacked, some blocks of 16 rows at a time, before products take them: Q4_0
// to the packed form of Q8_0, the others to blocks of 32 columns that begin with 8 quads of unsigned bytes and go on with
// binary32 numbers, one for each row:
//
//	Q4_K, Q5_K: scales times factors; minimums times factors
//	Q6_K: (32 was added to the weights) scales; factors of the first halves; factors of the second halves. AVX2 has
//	      two 16-bit integers for each row in place of the first factor, and no second
// n counts blocks of the file, pairs of them in Q4_0; nb blocks of 32 columns; strides are in bytes.

//go:noescape
func avx2UnpackQ4_0(dst, src *byte, n int)

//go:noescape
func avx2UnpackQ4_K(dst, src *byte, n int)

//go:noescape
func avx2UnpackQ5_K(dst, src *byte, n int)

//go:noescape
func avx2UnpackQ6_K(dst, src *byte, n int)

//go:noescape
func avx2Leastx1(w, x *byte, nb int, out *float32, stride int)

//go:noescape
func avx2Leastx4(w, x *byte, nb int, out *float32, stride int)

//go:noescape
func avx2Halvesx1(w, x *byte, nb int, out *float32, stride int)

//go:noescape
func avx2Halvesx4(w, x *byte, nb int, out *float32, stride int)

//go:noescape
func avx512UnpackQ4_0(dst, src *byte, n int)

//go:noescape
func avx512UnpackQ4_K(dst, src *byte, n int)

//go:noescape
func avx512UnpackQ5_K(dst, src *byte, n int)

//go:noescape
func avx512UnpackQ6_K(dst, src *byte, n int)

//go:noescape
func avx512Least1x1(w *byte, step int, x *byte, nb int, out *float32, stride int)

//go:noescape
func avx512Least1x4(w *byte, step int, x *byte, nb int, out *float32, stride int)

//go:noescape
func avx512Least2x4(w *byte, step int, x *byte, nb int, out *float32, stride int)

//go:noescape
func avx512Least3x4(w *byte, step int, x *byte, nb int, out *float32, stride int)

//go:noescape
func avx512Halves1x1(w *byte, step int, x *byte, nb int, out *float32, stride int)

//go:noescape
func avx512Halves1x4(w *byte, step int, x *byte, nb int, out *float32, stride int)

//go:noescape
func avx512Halves2x4(w *byte, step int, x *byte, nb int, out *float32, stride int)

type unpackers struct{ q40, q4k, q5k, q6k func(dst, src *byte, n int) }

// unpack writes nb blocks of 32 columns of 16 packed rows to dst.
func (u *unpackers) unpack(f Format, dst, src []byte, nb int) {
	cols, size := f.unit()
	_, n := unpacked(f, nb)
	_, _ = dst[n-1], src[nb*32/cols*size*lanes-1]
	n = nb * 32 / cols
	switch f {
	case Q4_0:
		if n/2 > 0 {
			u.q40(&dst[0], &src[0], n/2)
		}
		if n%2 == 1 { // a last block that is no pair, with one of zeros
			var pair [2 * 288]byte
			var out [1088]byte
			copy(pair[:], src[(n-1)*288:][:288])
			u.q40(&out[0], &pair[0], 1)
			copy(dst[n/2*1088:], out[:])
		}
	case Q4_K:
		u.q4k(&dst[0], &src[0], n)
	case Q5_K:
		u.q5k(&dst[0], &src[0], n)
	case Q6_K:
		u.q6k(&dst[0], &src[0], n)
	}
}

// avx2Unpacked is blocks for the unpacked forms of Q4_K, Q5_K and Q6_K.
func avx2Unpacked(f Format, w []byte, step, groups int, x []byte, nb, width int, out []float32, stride int) {
	checkUnpacked(f, w, step, groups, x, nb, width, out, stride)
	single, tiled := avx2Leastx1, avx2Leastx4
	if f == Q6_K {
		single, tiled = avx2Halvesx1, avx2Halvesx4
	}
	for i := range groups {
		if width == 1 {
			single(&w[i*step], &x[0], nb, &out[i*lanes], 0)
			continue
		}
		tiled(&w[i*step], &x[0], nb, &out[i*lanes], 4*stride)
		tiled(&w[i*step+32], &x[0], nb, &out[i*lanes+8], 4*stride)
	}
}

// avx512Unpacked is avx2Unpacked with AVX-512.
func avx512Unpacked(f Format, w []byte, step, groups int, x []byte, nb, width int, out []float32, stride int) {
	checkUnpacked(f, w, step, groups, x, nb, width, out, stride)
	for i := 0; i < groups; {
		w, out, n := &w[i*step], &out[i*lanes], 1
		switch left := groups - i; {
		case f == Q6_K && width == 1:
			avx512Halves1x1(w, step, &x[0], nb, out, 4*stride)
		case f == Q6_K && left > 1:
			avx512Halves2x4(w, step, &x[0], nb, out, 4*stride)
			n = 2
		case f == Q6_K:
			avx512Halves1x4(w, step, &x[0], nb, out, 4*stride)
		case width == 1:
			avx512Least1x1(w, step, &x[0], nb, out, 4*stride)
		case left > 2:
			avx512Least3x4(w, step, &x[0], nb, out, 4*stride)
			n = 3
		case left == 2:
			avx512Least2x4(w, step, &x[0], nb, out, 4*stride)
			n = 2
		default:
			avx512Least1x4(w, step, &x[0], nb, out, 4*stride)
		}
		i += n
	}
}

func checkUnpacked(f Format, w []byte, step, groups int, x []byte, nb, width int, out []float32, stride int) {
	_, n := unpacked(f, nb)
	_, _, _ = w[(groups-1)*step+n-1], x[nb*actBlock*width-1], out[(width-1)*stride+groups*lanes-1]
}
