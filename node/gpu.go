package node

import (
	"errors"
	"log/slog"
	"strconv"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gonka-mesh/mesh/inference/gpu"
	"github.com/gonka-mesh/mesh/node/api"
)

// gpuLook is one look at the GPUs of this machine.
type gpuLook struct {
	inventory gpu.Inventory
	err       error
}

// gpuWatch keeps the newest look, for the status and for /metrics.
type gpuWatch struct {
	log  *slog.Logger
	last atomic.Pointer[gpuLook]
}

// see takes what gpu.Watch hands over. It logs what an operator would act on: a change.
func (w *gpuWatch) see(i gpu.Inventory, err error) {
	before := w.last.Swap(&gpuLook{i, err})
	now := gpuWords(i, err)
	var none *gpu.NotFoundError
	switch {
	case before != nil && gpuWords(before.inventory, before.err) == now:
	case errors.As(err, &none) && none.Cause == gpu.NoDevice:
		w.log.Debug("look for GPUs", "found", now)
	case err != nil || len(i.Usable()) < len(i.Devices):
		w.log.Warn("look for GPUs", "found", now)
	default:
		w.log.Info("look for GPUs", "found", now, "driver", i.Driver, "cuda", i.CUDA, "source", i.Source)
	}
}

// gpuWords leaves out what changes from look to look.
func gpuWords(i gpu.Inventory, err error) string {
	var none *gpu.NotFoundError
	if errors.As(err, &none) {
		return none.Cause.String()
	}
	if err != nil {
		return err.Error()
	}
	return i.String()
}

// now returns the newest look; nothing before the first.
func (w *gpuWatch) now() gpuLook {
	if l := w.last.Load(); l != nil {
		return *l
	}
	return gpuLook{}
}

// documents tells the newest look to a reader of the status.
func (w *gpuWatch) documents() ([]api.GPU, string) {
	look, out := w.now(), []api.GPU{}
	if look.err != nil {
		return out, gpuWords(look.inventory, look.err)
	}
	for _, d := range look.inventory.Devices {
		g := api.GPU{
			Index: d.Index, Name: d.Name, UUID: d.UUID, PCI: d.PCI, Driver: look.inventory.Driver, CUDA: look.inventory.CUDA,
			MemoryBytes: d.Memory, UsedBytes: d.Used, Fault: d.Fault,
		}
		if d.Utilisation != gpu.Unknown {
			g.Utilisation = &d.Utilisation
		}
		if d.Temperature != gpu.Unknown {
			g.Temperature = &d.Temperature
		}
		if d.Power != gpu.Unknown {
			g.Power = &d.Power
		}
		out = append(out, g)
	}
	return out, ""
}

var (
	gpuLabels      = []string{"gpu"}
	gpuInfo        = prometheus.NewDesc("mesh_gpu_info", "1 for each GPU of this machine.", []string{"gpu", "name", "uuid", "pci", "driver", "cuda", "source"}, nil)
	gpuUp          = prometheus.NewDesc("mesh_gpu_up", "1 for a GPU that answers, 0 for one that is lost.", gpuLabels, nil)
	gpuMemory      = prometheus.NewDesc("mesh_gpu_memory_bytes", "Memory of the GPU.", gpuLabels, nil)
	gpuUsed        = prometheus.NewDesc("mesh_gpu_memory_used_bytes", "Memory that programs hold.", gpuLabels, nil)
	gpuUtilisation = prometheus.NewDesc("mesh_gpu_utilisation_ratio", "Part of the time in which a kernel ran.", gpuLabels, nil)
	gpuTemperature = prometheus.NewDesc("mesh_gpu_temperature_celsius", "Temperature of the GPU.", gpuLabels, nil)
	gpuPower       = prometheus.NewDesc("mesh_gpu_power_watts", "Power that the GPU draws.", gpuLabels, nil)
)

// Describe implements prometheus.Collector.
func (w *gpuWatch) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{gpuInfo, gpuUp, gpuMemory, gpuUsed, gpuUtilisation, gpuTemperature, gpuPower} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. A value that is unknown is left out.
func (w *gpuWatch) Collect(ch chan<- prometheus.Metric) {
	look := w.now()
	for at, d := range look.inventory.Devices {
		// A GPU that was lost before it was ever seen well has no index of its own.
		id := "unseen-" + strconv.Itoa(at)
		if d.Index >= 0 {
			id = strconv.Itoa(d.Index)
		}
		gauge := func(desc *prometheus.Desc, known bool, v float64, labels ...string) {
			if known {
				ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, append([]string{id}, labels...)...)
			}
		}
		well := d.Fault == ""
		gauge(gpuInfo, true, 1, d.Name, d.UUID, d.PCI, look.inventory.Driver, look.inventory.CUDA, look.inventory.Source)
		up := 0.0
		if well {
			up = 1
		}
		gauge(gpuUp, true, up)
		gauge(gpuMemory, d.Memory > 0, float64(d.Memory))
		gauge(gpuUsed, well && d.Memory > 0, float64(d.Used))
		gauge(gpuUtilisation, well && d.Utilisation != gpu.Unknown, float64(d.Utilisation)/100)
		gauge(gpuTemperature, well && d.Temperature != gpu.Unknown, float64(d.Temperature))
		gauge(gpuPower, well && d.Power != gpu.Unknown, d.Power)
	}
}

// checkGPU is the doctor's line about what gpu.Find returned.
func checkGPU(i gpu.Inventory, err error) api.Check {
	c := api.Check{Name: "gpu", State: "ok"}
	var none *gpu.NotFoundError
	switch {
	case errors.As(err, &none) && none.Cause == gpu.NoDevice:
		c.Detail = none.Cause.String() + ": the native engine runs on the processors"
	case errors.As(err, &none):
		c.State, c.Detail, c.Remedy = "warn", err.Error(), none.Remedy()
	case err != nil:
		c.State, c.Detail = "warn", err.Error()
	default:
		c.Detail = i.String() + ", driver " + i.Driver + ", seen by " + i.Source
		if len(i.Usable()) < len(i.Devices) {
			c.State, c.Remedy = "warn", "reset what is lost: sudo nvidia-smi --gpu-reset, or reboot; dmesg tells why"
		}
	}
	return c
}
