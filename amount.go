package mesh

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// Amount is a sum of money in ngonka; 1 GNK = 10^9 ngonka. At most 10^18 ngonka
// exist, so every real amount fits.
type Amount uint64

// GNK is one coin, and MaxSupply is all of them.
const (
	GNK       Amount = 1_000_000_000
	MaxSupply        = 1_000_000_000 * GNK
)

// ErrOverflow is returned by arithmetic on amounts that leaves the range 0..2^64-1.
var ErrOverflow = errors.New("amount out of range")

// Add returns a + b.
func (a Amount) Add(b Amount) (Amount, error) {
	sum, carry := bits.Add64(uint64(a), uint64(b), 0)
	if carry != 0 {
		return 0, ErrOverflow
	}
	return Amount(sum), nil
}

// Sub returns a - b.
func (a Amount) Sub(b Amount) (Amount, error) {
	if b > a {
		return 0, ErrOverflow
	}
	return a - b, nil
}

// Mul returns a * n.
func (a Amount) Mul(n uint64) (Amount, error) {
	hi, lo := bits.Mul64(uint64(a), n)
	if hi != 0 {
		return 0, ErrOverflow
	}
	return Amount(lo), nil
}

// String writes the amount in GNK without trailing zeros: "1.5 GNK".
func (a Amount) String() string {
	s := strconv.FormatUint(uint64(a/GNK), 10)
	if frac := a % GNK; frac != 0 {
		s += "." + strings.TrimRight(fmt.Sprintf("%09d", uint64(frac)), "0")
	}
	return s + " GNK"
}

// ParseAmount reads an amount in GNK with up to nine decimals, with or without
// the unit: "1.5", "1.5 GNK", "20GNK".
func ParseAmount(s string) (Amount, error) {
	text := strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(s), "GNK"))
	whole, frac, dot := strings.Cut(text, ".")
	if whole == "" || len(frac) > 9 || (dot && frac == "") || strings.ContainsAny(text, "+- _") {
		return 0, fmt.Errorf("amount %.40q: want GNK with at most nine decimals, like 1.5", s)
	}
	w, err := strconv.ParseUint(whole, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("amount %.40q: want GNK with at most nine decimals, like 1.5", s)
	}
	f, err := strconv.ParseUint((frac + "000000000")[:9], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("amount %.40q: want GNK with at most nine decimals, like 1.5", s)
	}
	a, err := Amount(w).Mul(uint64(GNK))
	if err != nil {
		return 0, fmt.Errorf("amount %.40q: %w", s, err)
	}
	return a.Add(Amount(f))
}
