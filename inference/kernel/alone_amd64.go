package kernel

// Products of one token with packed rows of Q4_K, Q5_K and Q6_K, which continue the chains in out. n counts blocks of 256;
// scratch is for scales times factors.

//go:noescape
func avx2AloneQ4_K(w, x *byte, n int, out *float32, scratch *[256]float32)

//go:noescape
func avx2AloneQ5_K(w, x *byte, n int, out *float32, scratch *[256]float32)

//go:noescape
func avx2AloneQ6_K(w, x *byte, n int, out *float32, scratch *[256]float32)

//go:noescape
func avx512AloneQ4_K(w, x *byte, n int, out *float32, scratch *[256]float32)

//go:noescape
func avx512AloneQ5_K(w, x *byte, n int, out *float32, scratch *[256]float32)

//go:noescape
func avx512AloneQ6_K(w, x *byte, n int, out *float32, scratch *[256]float32)

func avx2Alone(f Format, w []byte, step, groups int, x []byte, nb int, out []float32) {
	checkAlone(f, w, step, groups, x, nb, out)
	var scratch [256]float32
	for i := range groups {
		w, out := &w[i*step], &out[i*lanes]
		switch f {
		case Q4_K:
			avx2AloneQ4_K(w, &x[0], nb/8, out, &scratch)
		case Q5_K:
			avx2AloneQ5_K(w, &x[0], nb/8, out, &scratch)
		case Q6_K:
			avx2AloneQ6_K(w, &x[0], nb/8, out, &scratch)
		}
	}
}

func avx512Alone(f Format, w []byte, step, groups int, x []byte, nb int, out []float32) {
	checkAlone(f, w, step, groups, x, nb, out)
	var scratch [256]float32
	for i := range groups {
		w, out := &w[i*step], &out[i*lanes]
		switch f {
		case Q4_K:
			avx512AloneQ4_K(w, &x[0], nb/8, out, &scratch)
		case Q5_K:
			avx512AloneQ5_K(w, &x[0], nb/8, out, &scratch)
		case Q6_K:
			avx512AloneQ6_K(w, &x[0], nb/8, out, &scratch)
		}
	}
}

func checkAlone(f Format, w []byte, step, groups int, x []byte, nb int, out []float32) {
	_, _, _ = w[(groups-1)*step+nb/8*f.BlockBytes()*lanes-1], x[nb*actBlock-1], out[groups*lanes-1]
}
