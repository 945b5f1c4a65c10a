package model

import (
	"math"
	"math/big"
)

// ropeBits is the number of fraction bits of the fixed-point numbers below: far
// beyond a float32, so that rounding once gives the nearest one.
const ropeBits = 192

// InvFreq returns the inverse frequencies of RoPE, HeadDim/2 of them:
//
//	inv[i] = base^(-2i/HeadDim) / factor[i] / scale
//
// computed in integers from the exact values of base, factor and scale and rounded
// once to the nearest float32, so that every platform gets the same bits.
func (c *Config) InvFreq() []float32 { return c.frequencies(c.RopeBase, c.RopeFactors, c.RopeScale) }

// LocalInvFreq returns those of the layers where Local is true; nil where they
// rotate as the others do.
func (c *Config) LocalInvFreq() []float32 {
	if c.LocalRopeBase == 0 {
		return nil
	}
	return c.frequencies(c.LocalRopeBase, nil, 1)
}

func (c *Config) frequencies(base float32, factors []float32, scale float32) []float32 {
	n := c.HeadDim / 2
	one := new(big.Int).Lsh(big.NewInt(1), ropeBits)
	step := invRoot(base, n)
	out, power := make([]float32, n), new(big.Int).Set(one)
	for i := range out {
		f := new(big.Float).SetPrec(ropeBits).SetInt(power)
		f.SetMantExp(f, -ropeBits)
		if factors != nil {
			f.Quo(f, big.NewFloat(float64(factors[i])))
		}
		f.Quo(f, big.NewFloat(float64(scale)))
		out[i], _ = f.Float32()
		power.Mul(power, step).Rsh(power, ropeBits)
	}
	return out
}

// invRoot returns base^(-1/n) as a fixed-point number with ropeBits fraction bits,
// rounded down: the largest x with x^n·base <= 1, found bit by bit.
func invRoot(base float32, n int) *big.Int {
	b := new(big.Float).SetFloat64(float64(base))
	// base = mant·2^exp exactly, so x^n·mant is compared with a power of two.
	exp := b.MantExp(b)
	mant, _ := new(big.Float).SetMantExp(b, 24).Int(nil)
	exp -= 24
	x, try, pow := new(big.Int), new(big.Int), new(big.Int)
	bigN := big.NewInt(int64(n))
	limit := new(big.Int).Lsh(big.NewInt(1), uint(ropeBits*n-exp))
	for bit := ropeBits - 1; bit >= 0; bit-- {
		try.SetBit(x, bit, 1)
		pow.Exp(try, bigN, nil)
		pow.Mul(pow, mant)
		if pow.Cmp(limit) <= 0 {
			x.Set(try)
		}
	}
	return x
}

// llama3Factors returns the divisors of Llama 3.1 and later for the frequencies of c:
// waves longer than context/low are divided by factor, those shorter than
// context/high stay, and between them the divisor goes from one to the other. Each
// operation is rounded to float64 by itself, the result to float32.
// Source: meta-llama/llama-models, models/llama3/model.py, apply_scaling.
func (c *Config) llama3Factors(factor, low, high, context float64) []float32 {
	out := c.frequencies(c.RopeBase, nil, 1)
	for i, f := range out {
		wave := 2 * math.Pi / float64(f)
		switch {
		case wave < context/high:
			out[i] = 1
		case wave > context/low:
			out[i] = float32(factor)
		default:
			smooth := (context/wave - low) / (high - low)
			out[i] = float32(1 / (float64((1-smooth)/factor) + smooth))
		}
	}
	return out
}
