package consensus

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// registerMetrics shows the figures of Status.
func (c *Chain) registerMetrics() error {
	if c.cfg.Metrics == nil {
		return nil
	}
	gauge := func(name, help string, value func(Status) float64) {
		c.metrics = append(c.metrics, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "mesh", Subsystem: "ledger", Name: name, Help: help},
			func() float64 {
				s, err := c.Status()
				if err != nil {
					return 0
				}
				return value(s)
			}))
	}
	gauge("height", "Height of the last block.", func(s Status) float64 { return float64(s.Height) })
	gauge("block_time_seconds", "Time of the last block, Unix.", func(s Status) float64 { return float64(s.Time.UnixMilli()) / 1000 })
	gauge("peers", "Nodes of the ledger that are connected.", func(s Status) float64 { return float64(s.Peers) })
	gauge("catching_up", "1 while older blocks are fetched.", func(s Status) float64 { return flag(s.CatchingUp) })
	gauge("validator", "1 when this node is in the validator set.", func(s Status) float64 { return flag(s.Validator) })
	gauge("unfit", "1 while this node does not vote for a reason of its own.", func(s Status) float64 { return flag(s.Problem != "") })
	gauge("missed_votes", "Votes of this node that blocks lack, since the start.", func(s Status) float64 { return float64(s.Missed) })
	gauge("waiting_transactions", "Transactions that wait for a block.", func(s Status) float64 { return float64(s.Waiting) })
	for _, m := range c.metrics {
		if err := c.cfg.Metrics.Register(m); err != nil {
			return fmt.Errorf("register the ledger's metrics: %w", err)
		}
	}
	return nil
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (c *Chain) unregisterMetrics() {
	for _, m := range c.metrics {
		c.cfg.Metrics.Unregister(m)
	}
	c.metrics = nil
}
