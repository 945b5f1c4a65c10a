package kernel

import "math/bits"

const (
	philoxWeyl0 = 0x9E3779B9
	philoxWeyl1 = 0xBB67AE85
)

// philox is Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011): ten rounds on a counter of four words.
func philox(key [2]uint32, c [4]uint32) [4]uint32 {
	k0, k1 := key[0], key[1]
	c0, c1, c2, c3 := c[0], c[1], c[2], c[3]
	for range 10 {
		h0, l0 := bits.Mul32(0xD2511F53, c0)
		h1, l1 := bits.Mul32(0xCD9E8D57, c2)
		c0, c1, c2, c3 = h1^c1^k0, l1, h0^c3^k1, l0
		k0 += philoxWeyl0
		k1 += philoxWeyl1
	}
	return [4]uint32{c0, c1, c2, c3}
}

func philoxPortable(dst []uint32, key [2]uint32, counter [4]uint32) {
	for ; len(dst) > 0; dst = dst[4:] {
		w := philox(key, counter)
		copy(dst[:4], w[:])
		counter[0]++
	}
}
