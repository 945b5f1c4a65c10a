package host

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gonka-mesh/mesh/inference"
)

// meter counts what the host serves.
type meter struct {
	calls     *prometheus.CounterVec // by finish reason
	refusals  *prometheus.CounterVec // by code
	tokens    prometheus.Counter
	active    prometheus.GaugeFunc
	queued    prometheus.GaugeFunc
	collected []prometheus.Collector
}

func newMeter(h *Host) *meter {
	m := &meter{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mesh_host_answers_total", Help: "Answers that ended, by finish reason."}, []string{"finish"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mesh_host_refusals_total", Help: "Calls that were refused, by code."}, []string{"code"}),
		tokens: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mesh_host_tokens_total", Help: "Output tokens of ended answers."}),
		active: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "mesh_host_active", Help: "Calls that have a slot."}, func() float64 { return float64(h.Load().Active) }),
		queued: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "mesh_host_queued", Help: "Calls that wait for a slot."}, func() float64 { return float64(h.Load().Queued) }),
	}
	m.collected = []prometheus.Collector{m.calls, m.refusals, m.tokens, m.active, m.queued}
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

func (m *meter) refused(err error) { m.refusals.WithLabelValues(inference.Refuse(err).Code).Inc() }

func (m *meter) ended(finish inference.FinishReason, tokens int) {
	m.calls.WithLabelValues(string(finish)).Inc()
	m.tokens.Add(float64(tokens))
}
