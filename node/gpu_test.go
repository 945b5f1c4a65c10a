package node

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gonka-mesh/mesh/inference/gpu"
)

// h200 are two GPUs, of which the second may be lost.
func h200(lost bool) gpu.Inventory {
	i := gpu.Inventory{Source: "NVML", Driver: "570.86.15", CUDA: "12.8", Devices: []gpu.Device{
		{Index: 0, Name: "NVIDIA H200", UUID: "GPU-52a3a85d", PCI: "0000:17:00.0", Memory: 141 << 30, Used: 3 << 30, Utilisation: 37, Temperature: 41, Power: 118.5},
		{Index: 1, Name: "NVIDIA H200", UUID: "GPU-00000001", PCI: "0000:65:00.0", Memory: 141 << 30, Utilisation: gpu.Unknown, Temperature: 30, Power: gpu.Unknown},
	}}
	if lost {
		i.Devices[1] = gpu.Device{Index: gpu.Unknown, PCI: "0000:65:00.0", Fault: "it fell off the bus", Utilisation: gpu.Unknown, Temperature: gpu.Unknown, Power: gpu.Unknown}
	}
	return i
}

func TestGPUMetrics(t *testing.T) {
	w := &gpuWatch{log: slog.New(slog.DiscardHandler)}
	reg := prometheus.NewRegistry()
	reg.MustRegister(w)
	gather := func() map[string]float64 {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := make(map[string]float64)
		for _, f := range families {
			for _, m := range f.GetMetric() {
				for _, l := range m.GetLabel() {
					if l.GetName() == "gpu" {
						got[f.GetName()+" "+l.GetValue()] = m.GetGauge().GetValue()
					}
				}
			}
		}
		return got
	}
	check := func(got, want map[string]float64) {
		t.Helper()
		for k, v := range want {
			if g, ok := got[k]; !ok || g != v {
				t.Errorf("%s = %v, want %v", k, g, v)
			}
		}
		for k := range got {
			if _, ok := want[k]; !ok {
				t.Errorf("%s is there", k)
			}
		}
	}
	check(gather(), nil)
	first := map[string]float64{"mesh_gpu_info 0": 1, "mesh_gpu_up 0": 1, "mesh_gpu_memory_bytes 0": 141 << 30, "mesh_gpu_memory_used_bytes 0": 3 << 30,
		"mesh_gpu_utilisation_ratio 0": 0.37, "mesh_gpu_temperature_celsius 0": 41, "mesh_gpu_power_watts 0": 118.5}
	both := map[string]float64{"mesh_gpu_info 1": 1, "mesh_gpu_up 1": 1, "mesh_gpu_memory_bytes 1": 141 << 30, "mesh_gpu_memory_used_bytes 1": 0, "mesh_gpu_temperature_celsius 1": 30}
	lost := map[string]float64{"mesh_gpu_info unseen-1": 1, "mesh_gpu_up unseen-1": 0}
	for k, v := range first {
		both[k], lost[k] = v, v
	}
	w.see(h200(false), nil)
	check(gather(), both)
	w.see(h200(true), nil)
	check(gather(), lost)
	w.see(gpu.Inventory{}, &gpu.NotFoundError{Cause: gpu.Silent})
	check(gather(), nil)
}

// Only changes are logged.
func TestGPUWatchLogsChanges(t *testing.T) {
	var b bytes.Buffer
	w := &gpuWatch{log: slog.New(slog.NewTextHandler(&b, nil))}
	for _, c := range []struct {
		inventory gpu.Inventory
		err       error
		want      string // empty: no line
	}{
		{gpu.Inventory{}, &gpu.NotFoundError{Cause: gpu.NoDevice}, ""},
		{h200(false), nil, "level=INFO"},
		{h200(false), nil, ""},
		{h200(true), nil, "it fell off the bus"},
		{h200(true), nil, ""},
		{gpu.Inventory{}, &gpu.NotFoundError{Cause: gpu.Silent, Detail: "10s"}, "does not answer"},
		{gpu.Inventory{}, &gpu.NotFoundError{Cause: gpu.Silent, Detail: "20s"}, ""},
	} {
		b.Reset()
		w.see(c.inventory, c.err)
		if got := b.String(); c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%v, %v: logged %q, want %q", c.inventory, c.err, got, c.want)
		}
	}
}

func TestCheckGPU(t *testing.T) {
	for _, c := range []struct {
		inventory     gpu.Inventory
		err           error
		state, detail string
		remedy        bool
	}{
		{h200(false), nil, "ok", "2 x NVIDIA H200 (141 GiB), driver 570.86.15, seen by NVML", false},
		{h200(true), nil, "warn", "GPU at 0000:65:00.0: it fell off the bus", true},
		{gpu.Inventory{}, &gpu.NotFoundError{Cause: gpu.NoDevice}, "ok", "the native engine runs on the processors", false},
		{gpu.Inventory{}, &gpu.NotFoundError{Cause: gpu.NoDriver, Detail: "NVIDIA devices on the PCI bus: 1"}, "warn", "the NVIDIA driver is not loaded (NVIDIA devices on the PCI bus: 1)", true},
		{gpu.Inventory{}, errors.Join(context.Canceled), "warn", "canceled", false},
	} {
		got := checkGPU(c.inventory, c.err)
		if got.State != c.state || !strings.Contains(got.Detail, c.detail) || (got.Remedy != "") != c.remedy {
			t.Errorf("%+v, want %s %q, remedy %v", got, c.state, c.detail, c.remedy)
		}
	}
}
