//go:build cgo && linux

package gpu

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
)

// dgx is go-nvml's fake DGX A100 with the telemetry that the fake leaves out.
func dgx(t *testing.T) (*dgxa100.Server, *nvmlSource) {
	t.Helper()
	server := dgxa100.New()
	for i, h := range server.Devices {
		d := h.(*dgxa100.Device)
		d.MemoryInfo.Used = uint64(i) << 30
		d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) {
			return nvml.Utilization{Gpu: uint32(10 * i)}, nvml.SUCCESS
		}
		d.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return uint32(30 + i), nvml.SUCCESS }
		d.GetPowerUsageFunc = func() (uint32, nvml.Return) { return 65_500, nvml.SUCCESS }
		d.GetEnforcedPowerLimitFunc = func() (uint32, nvml.Return) { return 400_000, nvml.SUCCESS }
		d.GetCurrPcieLinkGenerationFunc = func() (int, nvml.Return) { return 4, nvml.SUCCESS }
		d.GetCurrPcieLinkWidthFunc = func() (int, nvml.Return) { return 16, nvml.SUCCESS }
		d.GetPciInfoFunc = func() (nvml.PciInfo, nvml.Return) {
			var p nvml.PciInfo
			for k, c := range fmt.Sprintf("00000000:%02X:00.0", 0x0a+i) {
				p.BusId[k] = int8(c)
			}
			return p, nvml.SUCCESS
		}
	}
	return server, &nvmlSource{lib: server, turn: new(sync.Mutex)}
}

func TestNVMLReadsADGX(t *testing.T) {
	server, s := dgx(t)
	server.Devices[3].(*dgxa100.Device).MigMode = nvml.DEVICE_MIG_ENABLE
	inventory, err := s.read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if inventory.Source != "NVML" || inventory.Driver != "550.54.15" || inventory.CUDA != "12.4" || len(inventory.Devices) != 8 {
		t.Fatalf("%+v", inventory)
	}
	for i, d := range inventory.Devices {
		want := Device{i, "Mock NVIDIA A100-SXM4-40GB", server.Devices[i].(*dgxa100.Device).UUID[:12], fmt.Sprintf("0000:%02x:00.0", 0x0a+i), "8.0",
			40 << 30, uint64(i) << 30, 10 * i, 30 + i, 65.5, 400, 4, 16, i == 3, ""}
		if d != want {
			t.Errorf("got  %+v\nwant %+v", d, want)
		}
	}
	if got := len(server.InitCalls()); got != 1 {
		t.Fatalf("Init %d times", got)
	}
	if _, err := s.read(t.Context()); err != nil || len(server.InitCalls()) != 1 {
		t.Errorf("the second look opened NVML again: %v", err)
	}
	s.close()
	s.close()
	if got := len(server.ShutdownCalls()); got != 1 {
		t.Errorf("Shutdown %d times", got)
	}
}

// A GPU falls off the bus while it is watched; the others go on, and NVML is let go
// so that the GPU can be reset.
func TestNVMLLosesAGPU(t *testing.T) {
	for _, c := range []struct {
		name string
		lose func(*dgxa100.Server, *dgxa100.Device)
		want string
	}{
		{"at its handle", func(s *dgxa100.Server, d *dgxa100.Device) {
			get := s.DeviceGetHandleByIndexFunc
			s.DeviceGetHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
				if i == d.Index {
					return nil, nvml.ERROR_GPU_IS_LOST
				}
				return get(i)
			}
		}, lostWords},
		{"between two questions", func(_ *dgxa100.Server, d *dgxa100.Device) {
			d.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 0, nvml.ERROR_GPU_IS_LOST }
		}, lostWords},
		{"reset wanted", func(_ *dgxa100.Server, d *dgxa100.Device) {
			d.GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) { return nvml.Memory{}, nvml.ERROR_RESET_REQUIRED }
		}, resetWords},
		{"another error", func(s *dgxa100.Server, d *dgxa100.Device) {
			get := s.DeviceGetHandleByIndexFunc
			s.DeviceGetHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
				if i == d.Index {
					return nil, nvml.ERROR_UNKNOWN
				}
				return get(i)
			}
		}, "NVML: ERROR_UNKNOWN"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server, s := dgx(t)
			if _, err := s.read(t.Context()); err != nil {
				t.Fatal(err)
			}
			c.lose(server, server.Devices[5].(*dgxa100.Device))
			for range 2 {
				i, err := s.read(t.Context())
				if err != nil || len(i.Devices) != 8 || len(i.Usable()) != 7 {
					t.Fatalf("%+v, %v", i, err)
				}
				d := i.Devices[5]
				if d.Fault != c.want || d.Index != 5 || d.Name != "Mock NVIDIA A100-SXM4-40GB" || d.PCI != "0000:0f:00.0" || d.Memory != 40<<30 {
					t.Errorf("%+v", d)
				}
			}
			if opened, shut := len(server.InitCalls()), len(server.ShutdownCalls()); opened != 2 || shut != 2 {
				t.Errorf("NVML opened %d times and let go %d times", opened, shut)
			}
		})
	}
}

func TestNVMLWithoutValues(t *testing.T) {
	server, s := dgx(t)
	d := server.Devices[0].(*dgxa100.Device)
	d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) {
		return nvml.Utilization{}, nvml.ERROR_NOT_SUPPORTED
	}
	d.GetPowerUsageFunc = func() (uint32, nvml.Return) { return 0, nvml.ERROR_NO_PERMISSION }
	// An old library: functions that it lacks must not be called at all.
	missing := map[string]bool{"nvmlDeviceGetMigMode": true, "nvmlDeviceGetTemperature": true, "nvmlSystemGetCudaDriverVersion": true,
		"nvmlDeviceGetCudaComputeCapability": true, "nvmlDeviceGetEnforcedPowerLimit": true, "nvmlDeviceGetCurrPcieLinkGeneration": true, "nvmlDeviceGetCurrPcieLinkWidth": true}
	server.LookupSymbolFunc = func(name string) error {
		if missing[name] {
			return errors.New("not found")
		}
		return nil
	}
	i, err := s.read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := i.Devices[0]
	if got.Fault != "" || got.Utilisation != Unknown || got.Power != Unknown || got.Temperature != Unknown || got.PowerLimit != Unknown ||
		got.LinkGen != Unknown || got.LinkWidth != Unknown || got.Compute != "" || i.CUDA != "" {
		t.Errorf("%+v", got)
	}
	if n := len(d.GetMigModeCalls()) + len(d.GetTemperatureCalls()) + len(server.SystemGetCudaDriverVersionCalls()); n != 0 {
		t.Errorf("%d calls of functions that are not there", n)
	}
}

func TestNVMLRefuses(t *testing.T) {
	for _, c := range []struct {
		ret  nvml.Return
		want Cause
	}{
		{nvml.ERROR_LIBRARY_NOT_FOUND, NoLibrary}, {nvml.ERROR_DRIVER_NOT_LOADED, NoDriver}, {nvml.ERROR_NO_PERMISSION, NoPermission},
		{nvml.ERROR_LIB_RM_VERSION_MISMATCH, Mismatch}, {nvml.ERROR_TIMEOUT, Silent}, {nvml.ERROR_UNKNOWN, Failed},
	} {
		t.Run(c.ret.Error(), func(t *testing.T) {
			server, s := dgx(t)
			server.InitFunc = func() nvml.Return { return c.ret }
			_, err := s.read(t.Context())
			var e *NotFoundError
			if !errors.As(err, &e) || e.Cause != c.want {
				t.Errorf("%v, want %v", err, c.want)
			}
			s.close()
			if n := len(server.ShutdownCalls()); n != 0 {
				t.Error("Shutdown without Init ends the process where the library is missing")
			}
		})
	}
	t.Run("no devices", func(t *testing.T) {
		server, s := dgx(t)
		server.DeviceGetCountFunc = func() (int, nvml.Return) { return 0, nvml.SUCCESS }
		var e *NotFoundError
		if _, err := s.read(t.Context()); !errors.As(err, &e) || e.Cause != NoDevice {
			t.Error(err)
		}
	})
	t.Run("none may be opened", func(t *testing.T) {
		server, s := dgx(t)
		server.DeviceGetHandleByIndexFunc = func(int) (nvml.Device, nvml.Return) { return nil, nvml.ERROR_NO_PERMISSION }
		var e *NotFoundError
		if _, err := s.read(t.Context()); !errors.As(err, &e) || e.Cause != NoPermission {
			t.Error(err)
		}
	})
	t.Run("counting fails", func(t *testing.T) {
		server, s := dgx(t)
		server.DeviceGetCountFunc = func() (int, nvml.Return) { return 0, nvml.ERROR_UNINITIALIZED }
		var e *NotFoundError
		if _, err := s.read(t.Context()); !errors.As(err, &e) || e.Cause != Failed || s.open {
			t.Error(err)
		}
	})
	t.Run("too late", func(t *testing.T) {
		_, s := dgx(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.read(ctx); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// Two watchers share one library, one caller at a time.
func TestNVMLTakesTurns(t *testing.T) {
	server, a := dgx(t)
	b := &nvmlSource{lib: server, turn: a.turn}
	var all sync.WaitGroup
	for _, s := range []*nvmlSource{a, b} {
		all.Go(func() {
			for range 20 {
				if i, err := s.read(t.Context()); err != nil || len(i.Usable()) != 8 {
					t.Error(i, err)
				}
				s.close()
			}
		})
	}
	all.Wait()
	if len(server.InitCalls()) != len(server.ShutdownCalls()) {
		t.Error("Init and Shutdown do not pair")
	}
}
