package consensus

import (
	"context"
	"errors"
	"testing"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
)

// fickleApp takes a transaction once, and never puts it into a block.
type fickleApp struct {
	*toyApp
	checks int
}

func (a *fickleApp) CheckTx(context.Context, *abci.RequestCheckTx) (*abci.ResponseCheckTx, error) {
	if a.checks++; a.checks == 1 {
		return &abci.ResponseCheckTx{}, nil
	}
	return &abci.ResponseCheckTx{Code: 7, Log: "the fee is too low now"}, nil
}

func (a *fickleApp) PrepareProposal(context.Context, *abci.RequestPrepareProposal) (*abci.ResponsePrepareProposal, error) {
	return &abci.ResponsePrepareProposal{}, nil
}

func (a *fickleApp) ProcessProposal(context.Context, *abci.RequestProcessProposal) (*abci.ResponseProcessProposal, error) {
	return &abci.ResponseProcessProposal{Status: abci.ResponseProcessProposal_ACCEPT}, nil
}

// TestSubmitDropped: who waits for a transaction that a later block made invalid hears why.
func TestSubmitDropped(t *testing.T) {
	n := newToyNet(t, 1, 0, func(_ int, cfg *Config) { cfg.App = &fickleApp{toyApp: cfg.App.(*toyApp)} })
	n.start()
	n.reach(1, n.nodes[0])
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var refused *Refused
	if _, err := n.nodes[0].Submit(ctx, []byte("tx")); !errors.As(err, &refused) || refused.Log != "the fee is too low now" {
		t.Errorf("dropped: %v", err)
	}
}

// TestSubmitFull: that the mempool is full says nothing about those that wait in it.
func TestSubmitFull(t *testing.T) {
	var app *gatedApp
	n := newToyNet(t, 1, 0, func(_ int, cfg *Config) {
		app = &gatedApp{toyApp: cfg.App.(*toyApp)}
		cfg.App, cfg.poolTxs = app, 1
	})
	n.start()
	chain := n.nodes[0]
	n.reach(1, chain)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		r, err := chain.Submit(ctx, []byte("tx"))
		if err == nil && r.Height == 0 {
			err = errors.New("no height")
		}
		ended <- err
	}()
	eventually(t, "the mempool is full", func() bool {
		p, err := chain.running()
		return err == nil && p.pool.Size() == 1
	})
	if err := chain.Offer([]byte("tx two")); !errors.Is(err, ErrPoolFull) {
		t.Errorf("to a full mempool: %v", err)
	}
	select {
	case err := <-ended:
		t.Fatal(err)
	case <-time.After(3 * dropEvery): // it looked twice
	}
	app.open.Store(true)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
