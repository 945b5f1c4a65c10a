package kernel

import (
	"encoding/binary"
	"fmt"
	"math"
)

// chunk is the number of positions that attention folds at a time, and that a page of a Cache holds.
const chunk = 256

// maxHeadDim keeps a score one chain.
const maxHeadDim = panelCols

// Cache holds the keys and values of one sequence in one layer, in pages of 256 positions that are made when first
// stored to. Store must not run together with other uses; reading is safe from several goroutines.
type Cache struct {
	format  Format // F16 or F32
	heads   int
	dim     int
	keys    [][]byte // page: for each head, 16 groups of [dim][16 positions]
	values  [][]byte // page: for each head, groups of [256 positions][16 dimensions]
	narrowK []uint16
}

// NewCache makes an empty cache for kvHeads heads of headDim values, stored as F16 or F32.
func NewCache(f Format, kvHeads, headDim int) (*Cache, error) {
	if f != F16 && f != F32 {
		return nil, fmt.Errorf("make cache: keys and values are stored as F16 or F32, not %v", f)
	}
	if kvHeads <= 0 || headDim <= 0 || headDim > maxHeadDim {
		return nil, fmt.Errorf("make cache: %d heads of %d values, at most %d values are supported", kvHeads, headDim, maxHeadDim)
	}
	return &Cache{format: f, heads: kvHeads, dim: headDim, narrowK: make([]uint16, 2*kvHeads*headDim)}, nil
}

func (c *Cache) keyBytes() int { return c.dim * chunk * c.format.BlockBytes() } // of one head in a page

func (c *Cache) valueBytes() int {
	return (c.dim + lanes - 1) / lanes * lanes * chunk * c.format.BlockBytes()
}

// PageBytes is the memory of one page of 256 positions.
func (c *Cache) PageBytes() int { return c.heads * (c.keyBytes() + c.valueBytes()) }

// Bytes is the memory in use.
func (c *Cache) Bytes() int { return len(c.keys) * c.PageBytes() }

// Store rounds the keys (after RoPE) and values of a position, heads*headDim each, to the stored format. It may
// overwrite. ErrNumeric reports a value that the format does not hold.
func (c *Cache) Store(position int, k, v []float32) error {
	n := c.heads * c.dim
	k, v = k[:n], v[:n]
	for len(c.keys) <= position/chunk {
		c.keys = append(c.keys, make([]byte, c.heads*c.keyBytes()))
		c.values = append(c.values, make([]byte, c.heads*c.valueBytes()))
	}
	keys, values, at := c.keys[position/chunk], c.values[position/chunk], position%chunk
	if c.format == F32 {
		if !Finite(k) || !Finite(v) {
			return fmt.Errorf("store position %d: %w", position, ErrNumeric)
		}
		for h := range c.heads {
			for d := range c.dim {
				i := h*c.dim + d
				binary.LittleEndian.PutUint32(keys[h*c.keyBytes()+4*c.keyAt(at, d):], math.Float32bits(k[i]))
				binary.LittleEndian.PutUint32(values[h*c.valueBytes()+4*c.valueAt(at, d):], math.Float32bits(v[i]))
			}
		}
		return nil
	}
	b := active()
	nk, nv := c.narrowK[:n], c.narrowK[n:]
	if okK, okV := b.narrow(nk, k), b.narrow(nv, v); !okK || !okV {
		return fmt.Errorf("store position %d as %v: %w", position, c.format, ErrNumeric)
	}
	for h := range c.heads {
		kh, vh := keys[h*c.keyBytes():][:c.keyBytes()], values[h*c.valueBytes():][:c.valueBytes()]
		for d := range c.dim {
			binary.LittleEndian.PutUint16(kh[2*c.keyAt(at, d):], nk[h*c.dim+d])
			binary.LittleEndian.PutUint16(vh[2*c.valueAt(at, d):], nv[h*c.dim+d])
		}
	}
	return nil
}

// keyAt is the index of dimension d of a position in a head of a page of keys: lanes are positions.
func (c *Cache) keyAt(position, d int) int {
	return (position/lanes*c.dim+d)*lanes + position%lanes
}

// valueAt is the same for values: lanes are dimensions.
func (c *Cache) valueAt(position, d int) int {
	return (d/lanes*chunk+position)*lanes + d%lanes
}

// Clone copies the pages that hold the first n positions into a new cache.
func (c *Cache) Clone(n int) *Cache {
	d := &Cache{format: c.format, heads: c.heads, dim: c.dim, narrowK: make([]uint16, len(c.narrowK))}
	for i := range min((n+chunk-1)/chunk, len(c.keys)) {
		d.keys = append(d.keys, append([]byte(nil), c.keys[i]...))
		d.values = append(d.values, append([]byte(nil), c.values[i]...))
	}
	return d
}

// Truncate frees the pages past the first n positions.
func (c *Cache) Truncate(n int) {
	pages := min((n+chunk-1)/chunk, len(c.keys))
	clear(c.keys[pages:])
	clear(c.values[pages:])
	c.keys, c.values = c.keys[:pages], c.values[:pages]
}
