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
// stored to, unless they were attached before. Store must not run together with other uses; reading is safe from several
// goroutines.
type Cache struct {
	format  Format // F16 or F32
	heads   int
	dim     int
	pages   []*Page
	narrowK []uint16
}

// Page is the memory of 256 positions. Several caches may have it; then none of them stores to it.
type Page struct {
	keys   []byte // for each head, 16 groups of [dim][16 positions]
	values []byte // for each head, groups of [256 positions][16 dimensions]
}

// Copy makes p equal to another page of the same shape.
func (p *Page) Copy(from *Page) {
	copy(p.keys, from.keys)
	copy(p.values, from.values)
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
func (c *Cache) Bytes() int { return len(c.pages) * c.PageBytes() }

// NewPage makes a page of this cache's shape, which belongs to no cache yet.
func (c *Cache) NewPage() *Page {
	return &Page{keys: make([]byte, c.heads*c.keyBytes()), values: make([]byte, c.heads*c.valueBytes())}
}

// Attach makes a page the next 256 positions; what they hold is stored already, or will be before it is read.
func (c *Cache) Attach(p *Page) { c.pages = append(c.pages, p) }

// Store rounds the keys (after RoPE) and values of a position, heads*headDim each, to the stored format. It may
// overwrite. ErrNumeric reports a value that the format does not hold.
func (c *Cache) Store(position int, k, v []float32) error {
	n := c.heads * c.dim
	k, v = k[:n], v[:n]
	for len(c.pages) <= position/chunk {
		c.Attach(c.NewPage())
	}
	keys, values, at := c.pages[position/chunk].keys, c.pages[position/chunk].values, position%chunk
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
		i := 2 * c.keyAt(at, 0)
		for _, x := range nk[h*c.dim:][:c.dim] {
			binary.LittleEndian.PutUint16(kh[i:], x)
			i += 2 * lanes
		}
		for d := 0; d < c.dim; d += lanes {
			dst := vh[2*c.valueAt(at, d):][:2*lanes]
			for j, x := range nv[h*c.dim+d:][:min(lanes, c.dim-d)] {
				binary.LittleEndian.PutUint16(dst[2*j:], x)
			}
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
	for _, p := range c.pages[:min((n+chunk-1)/chunk, len(c.pages))] {
		q := d.NewPage()
		q.Copy(p)
		d.Attach(q)
	}
	return d
}

// Truncate lets go of the pages past the first n positions.
func (c *Cache) Truncate(n int) {
	pages := min((n+chunk-1)/chunk, len(c.pages))
	clear(c.pages[pages:])
	c.pages = c.pages[:pages]
}
