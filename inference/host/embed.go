package host

import (
	"errors"
	"fmt"
	"time"

	"github.com/gonka-mesh/mesh/inference"
)

// widthOf returns the width of an engine's vectors; 0: it makes none.
func widthOf(e inference.Engine) uint32 {
	width := e.Info().Embed
	if _, ok := e.(inference.Embedder); !ok || width < 0 || width > inference.MaxWidth {
		return 0
	}
	return uint32(width)
}

// embed runs the engine on a text that is to become a vector, within the slot that a
// prompt would take.
func (a *answer) embed() {
	from := time.Now()
	v, err := a.lane.engine.(inference.Embedder).Embed(a.ctx, a.prompt, func() { a.steps.Add(1) })
	took := time.Since(from)
	a.h.free(a.lane, a.ticket, took)
	if err == nil {
		err = a.lane.checkVector(v)
	}
	switch {
	case err == nil:
		a.h.measured(a.lane, len(a.prompt), took, 0, 0)
		a.mu.Lock()
		a.vector = v
		a.mu.Unlock()
		a.end(inference.FinishEOS)
	case a.ctx.Err() != nil:
		a.end(a.broken())
	case errors.Is(err, inference.ErrNumeric):
		a.end(inference.FinishNumeric)
	case errors.Is(err, inference.ErrBusy): // answers have its memory
		a.end(inference.FinishAborted)
	default:
		a.h.cfg.Log.Error("the engine failed", "model", a.lane.info.Name, "error", err)
		a.end(inference.FinishAborted)
	}
}

// checkVector refuses what no router would take.
func (l *lane) checkVector(v inference.Embedding) error {
	if want := int(l.capability.GetEmbed()); len(v.Vector) != want {
		return fmt.Errorf("a vector of %d numbers, want %d", len(v.Vector), want)
	}
	_, err := inference.DecodeVector(inference.EncodeVector(v.Vector))
	return err
}
