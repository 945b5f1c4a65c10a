//go:build cgo && linux

package gpu

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// go-nvml keeps the symbols it loaded in package variables, so there is one library
// for the process and one caller at a time.
var (
	library = nvml.New()
	turn    sync.Mutex
)

func sources(root fs.FS) []source {
	return []source{&nvmlSource{lib: library, turn: &turn}, newSMI(root)}
}

// nvmlSource keeps NVML open from one look to the next, since opening it can wake
// the GPUs. It lets go after a fault: an open handle stands in the way of a reset.
type nvmlSource struct {
	lib   nvml.Interface
	turn  *sync.Mutex
	open  bool
	known map[int]Device // as last seen well, for the name of one that is lost
}

func (s *nvmlSource) read(ctx context.Context) (Inventory, error) {
	s.turn.Lock()
	defer s.turn.Unlock()
	if err := ctx.Err(); err != nil {
		return Inventory{}, fmt.Errorf("ask NVML: %w", err)
	}
	if !s.open {
		// Without the library Shutdown would call a function that is not there, so it
		// is called after a successful Init only.
		if ret := s.lib.Init(); ret != nvml.SUCCESS {
			return Inventory{}, notFound("open NVML", ret)
		}
		s.open = true
	}
	i := Inventory{Source: "NVML"}
	if v, ret := s.lib.SystemGetDriverVersion(); ret == nvml.SUCCESS {
		i.Driver = clean(v, maxName)
	}
	if s.has("nvmlSystemGetCudaDriverVersion") {
		if v, ret := s.lib.SystemGetCudaDriverVersion(); ret == nvml.SUCCESS && v > 0 {
			i.CUDA = fmt.Sprintf("%d.%d", v/1000, v%1000/10)
		}
	}
	n, ret := s.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		s.shut()
		return Inventory{}, notFound("count GPUs", ret)
	}
	forbidden := 0
	for at := range min(n, maxDevices) {
		h, ret := s.lib.DeviceGetHandleByIndex(at)
		if ret == nvml.ERROR_NO_PERMISSION {
			forbidden++
		}
		i.Devices = append(i.Devices, s.device(at, h, ret))
	}
	if slices.ContainsFunc(i.Devices, func(d Device) bool { return d.Fault != "" }) {
		s.shut()
	}
	switch {
	case len(i.Devices) == 0:
		s.shut()
		return Inventory{}, &NotFoundError{Cause: NoDevice, Detail: "NVML lists none"}
	case forbidden == len(i.Devices):
		return Inventory{}, notFound("open the GPUs", nvml.ERROR_NO_PERMISSION)
	}
	return i, nil
}

// device reads one GPU; ret is what came with its handle.
func (s *nvmlSource) device(index int, h nvml.Device, ret nvml.Return) Device {
	d := unknownDevice(index)
	ok := func(ret nvml.Return) bool {
		if f := fault(ret); f != "" && d.Fault == "" {
			d.Fault = f
		}
		return ret == nvml.SUCCESS
	}
	if ok(ret) {
		s.facts(&d, h, ok)
		s.telemetry(&d, h, ok)
	} else if d.Fault == "" {
		d.Fault = "NVML: " + clean(ret.Error(), maxDetail)
	}
	if d.Fault == "" {
		if s.known == nil {
			s.known = make(map[int]Device)
		}
		s.known[index] = d
		return d
	}
	if k, ok := s.known[index]; ok {
		d.Name, d.UUID, d.PCI, d.Compute, d.Memory = k.Name, k.UUID, k.PCI, k.Compute, k.Memory
	}
	return d
}

// facts reads what stays.
func (s *nvmlSource) facts(d *Device, h nvml.Device, ok func(nvml.Return) bool) {
	if v, ret := h.GetName(); ok(ret) {
		d.Name = clean(v, maxName)
	}
	if v, ret := h.GetUUID(); ok(ret) {
		d.UUID = shortUUID(v)
	}
	if v, ret := h.GetPciInfo(); ok(ret) {
		var b []byte
		for _, c := range v.BusId {
			if c == 0 {
				break
			}
			b = append(b, byte(c))
		}
		d.PCI = shortPCI(string(b))
	}
	if s.has("nvmlDeviceGetCudaComputeCapability") {
		if major, minor, ret := h.GetCudaComputeCapability(); ok(ret) {
			d.Compute = fmt.Sprintf("%d.%d", major, minor)
		}
	}
	if s.has("nvmlDeviceGetMigMode") {
		if now, _, ret := h.GetMigMode(); ok(ret) {
			d.MIG = now == nvml.DEVICE_MIG_ENABLE
		}
	}
}

// telemetry reads what changes.
func (s *nvmlSource) telemetry(d *Device, h nvml.Device, ok func(nvml.Return) bool) {
	if v, ret := h.GetMemoryInfo(); ok(ret) {
		d.Memory, d.Used = v.Total, v.Used
	}
	if v, ret := h.GetUtilizationRates(); ok(ret) {
		d.Utilisation = int(min(v.Gpu, 100))
	}
	if s.has("nvmlDeviceGetTemperature") {
		if v, ret := h.GetTemperature(nvml.TEMPERATURE_GPU); ok(ret) {
			d.Temperature = int(v)
		}
	}
	if v, ret := h.GetPowerUsage(); ok(ret) {
		d.Power = float64(v) / 1000
	}
	if s.has("nvmlDeviceGetEnforcedPowerLimit") {
		if v, ret := h.GetEnforcedPowerLimit(); ok(ret) {
			d.PowerLimit = float64(v) / 1000
		}
	}
	if s.has("nvmlDeviceGetCurrPcieLinkGeneration") {
		if v, ret := h.GetCurrPcieLinkGeneration(); ok(ret) {
			d.LinkGen = v
		}
	}
	if s.has("nvmlDeviceGetCurrPcieLinkWidth") {
		if v, ret := h.GetCurrPcieLinkWidth(); ok(ret) {
			d.LinkWidth = v
		}
	}
}

// has reports whether this driver's library knows a function. go-nvml binds lazily:
// a call of one that is missing ends the process.
func (s *nvmlSource) has(symbol string) bool {
	return s.lib.Extensions().LookupSymbol(symbol) == nil
}

func (s *nvmlSource) close() {
	s.turn.Lock()
	defer s.turn.Unlock()
	s.shut()
}

// shut needs the turn.
func (s *nvmlSource) shut() {
	if s.open {
		s.open = false
		_ = s.lib.Shutdown() // a failure leaves it open, which harms nobody
	}
}

// fault returns the words for a GPU that is no longer there.
func fault(ret nvml.Return) string {
	switch ret {
	case nvml.ERROR_GPU_IS_LOST:
		return lostWords
	case nvml.ERROR_RESET_REQUIRED:
		return resetWords
	}
	return ""
}

// notFound puts a code of NVML among the causes.
func notFound(doing string, ret nvml.Return) *NotFoundError {
	e := &NotFoundError{Detail: doing + ": " + clean(ret.Error(), maxDetail)}
	switch ret {
	case nvml.ERROR_LIBRARY_NOT_FOUND:
		e.Cause, e.Detail = NoLibrary, ""
	case nvml.ERROR_DRIVER_NOT_LOADED:
		e.Cause = NoDriver
	case nvml.ERROR_NO_PERMISSION:
		e.Cause = NoPermission
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		e.Cause = Mismatch
	case nvml.ERROR_TIMEOUT:
		e.Cause = Silent
	}
	return e
}
