package router

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// meter counts what the router does.
type meter struct {
	choices   *prometheus.CounterVec // by how they ended
	tokens    prometheus.Counter
	ttft      prometheus.Histogram
	failovers *prometheus.CounterVec // by why
	gaps      prometheus.Histogram
	waits     prometheus.Counter
	collected []prometheus.Collector
}

func newMeter() *meter {
	seconds := prometheus.ExponentialBuckets(0.001, 2, 16)
	m := &meter{
		choices: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mesh_router_choices_total", Help: "Choices asked of the mesh, by how they ended."}, []string{"end"}),
		tokens: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mesh_router_tokens_total", Help: "Verified output tokens."}),
		ttft: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "mesh_router_first_token_seconds", Help: "From the question to its first token.", Buckets: seconds}),
		failovers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mesh_router_failovers_total", Help: "Hosts given up, by why."}, []string{"why"}),
		gaps: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "mesh_router_gap_seconds", Help: "Between the last token of a lost host and the next token.", Buckets: seconds}),
		waits: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mesh_router_tasks_total", Help: "Tasks announced because no host was at hand."}),
	}
	m.collected = []prometheus.Collector{m.choices, m.tokens, m.ttft, m.failovers, m.gaps, m.waits}
	return m
}

func (m *meter) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	var errs []error
	for _, c := range m.collected {
		errs = append(errs, r.Register(c))
	}
	return errors.Join(errs...)
}

func (m *meter) unregister(r prometheus.Registerer) {
	if r == nil {
		return
	}
	for _, c := range m.collected {
		r.Unregister(c)
	}
}
