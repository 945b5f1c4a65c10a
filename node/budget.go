package node

import (
	"fmt"
	"math"

	"github.com/gonka-mesh/mesh/inference/kernel"
	"github.com/gonka-mesh/mesh/inference/model"
)

// budget divides one limit of memory for keys and values among the models that are
// served. An engine keeps its share until it ends, so a model that is added while the
// node runs gets half of what is left, and the next one finds some too.
type budget struct {
	limit  int64 // bytes
	taken  int64
	coming int // models that are about to be loaded, and share what is left
}

// take returns a share of what is left, at most what the model can use.
func (b *budget) take(use int64) (int64, error) {
	left := b.limit - b.taken
	parts := int64(max(b.coming, 1))
	if b.coming == 0 {
		parts = 2
	}
	b.coming = max(0, b.coming-1)
	share := min(use, left/parts)
	if share < 1 {
		return 0, fmt.Errorf("the %d MiB for keys and values are taken by the models that are served: raise --memory, or remove one", b.limit>>20)
	}
	b.taken += share
	return share, nil
}

// give takes a share back.
func (b *budget) give(share int64) { b.taken -= share }

// memoryUse returns the bytes for keys and values that an engine can use: all slots at
// the full context. It is a generous estimate.
func memoryUse(c model.Config, kv string, slots int) (int64, error) {
	format := kernel.F16
	if kv == "f32" {
		format = kernel.F32
	}
	cache, err := kernel.NewCache(format, c.KVHeads, c.HeadDim)
	if err != nil {
		return 0, err
	}
	const page = 256 // positions
	pages := float64(c.Context/page+2) * float64(slots)
	return int64(min(pages*1.25*float64(cache.PageBytes())*float64(c.Layers)+1<<20, math.MaxInt64/2)), nil
}
