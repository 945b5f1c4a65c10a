package gpu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

const (
	rowH200 = "0, GPU-52a3a85d-3c55-ca3a-a955-82c69ed360fc, 00000000:17:00.0, 570.86.15, 143771, 1024, 37, 41, 118.42, 700.00, 5, 16, Disabled, 9.0, NVIDIA H200"
	rowMIG  = "1, GPU-00000001-3c55-ca3a-a955-82c69ed360fc, 00000000:65:00.0, 570.86.15, 81559, 4, [N/A], 33, 70.10, 700.00, 4, 8, Enabled, 9.0, NVIDIA H100 80GB HBM3"
	rowOld  = "2, GPU-00000002-aaaa-ca3a-a955-82c69ed360fc, 00000000:66:00.0, 570.86.15, 2002, 3, [Not Supported], 29, [N/A], [N/A], 1, 16, [N/A], 5.0, Quadro, the old one"
)

// standIn puts a shell script named nvidia-smi into an empty PATH.
func standIn(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "nvidia-smi"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
}

func TestSMI(t *testing.T) {
	standIn(t, `
case "$1" in
--query-gpu=index,uuid,pci.bus_id,driver_version,memory.total,memory.used,utilization.gpu,temperature.gpu,power.draw,power.limit,pcie.link.gen.current,pcie.link.width.current,mig.mode.current,compute_cap,name)
  echo '`+rowH200+`'; echo '`+rowMIG+`'; echo '`+rowOld+`' ;;
-q) printf '\n====NVSMI LOG====\n\nDriver Version                            : 570.86.15\nCUDA Version                              : 12.8\n' ;;
*) exit 2 ;;
esac`)
	i, err := newSMI(fstest.MapFS{}).read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := Inventory{Source: "nvidia-smi", Driver: "570.86.15", CUDA: "12.8", Devices: []Device{
		{0, "NVIDIA H200", "GPU-52a3a85d", "0000:17:00.0", "9.0", 143771 << 20, 1 << 30, 37, 41, 118.42, 700, 5, 16, false, ""},
		{1, "NVIDIA H100 80GB HBM3", "GPU-00000001", "0000:65:00.0", "9.0", 81559 << 20, 4 << 20, Unknown, 33, 70.1, 700, 4, 8, true, ""},
		{2, "Quadro, the old one", "GPU-00000002", "0000:66:00.0", "5.0", 2002 << 20, 3 << 20, Unknown, 29, Unknown, Unknown, 1, 16, false, ""},
	}}
	if i.Source != want.Source || i.Driver != want.Driver || i.CUDA != want.CUDA || !slices.Equal(i.Devices, want.Devices) {
		t.Errorf("got  %+v\nwant %+v", i, want)
	}
}

// An nvidia-smi that does not know two of the fields is asked again without them.
func TestSMIOfAnOldDriver(t *testing.T) {
	standIn(t, `
case "$1" in
*mig.mode*) printf 'Field "mig.mode.current" is not a valid field to query.\n\n'; exit 2 ;;
*compute_cap*) printf 'Field "compute_cap" is not a valid field to query.\n\n'; exit 2 ;;
--query*) echo '0, GPU-52a3a85d-3c55, 00000000:17:00.0, 440.33, 15109, 0, 0, 30, 9.5, 70.00, 1, 8, Tesla T4' ;;
*) echo nothing; exit 1 ;;
esac`)
	s := newSMI(fstest.MapFS{})
	for range 2 {
		i, err := s.read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d := i.Devices[0]; d.Name != "Tesla T4" || d.Compute != "" || d.MIG || i.CUDA != "" || i.Driver != "440.33" {
			t.Errorf("%+v", i)
		}
	}
	if len(s.fields) != len(smiFields)-2 {
		t.Errorf("fields %q", s.fields)
	}
}

// A lost GPU ends nvidia-smi's table; the other one is then asked for by itself, and
// the lost one keeps the name that it had.
func TestSMILosesAGPU(t *testing.T) {
	dir := t.TempDir()
	flag := filepath.Join(dir, "lost")
	second := strings.Replace(strings.Replace(rowH200, "0, GPU-52a3a85d", "1, GPU-99999999", 1), ":17:", ":65:", 1)
	standIn(t, `
if [ ! -e '`+flag+`' ]; then echo '`+rowH200+`'; echo '`+second+`'; exit 0; fi
case "$3" in
--id=0000:65:00.0) echo '`+second+`' ;;
*) echo 'Unable to determine the device handle for GPU0000:17:00.0: GPU is lost.  Reboot the system to recover this GPU'; exit 15 ;;
esac`)
	s := newSMI(fstest.MapFS{"proc/driver/nvidia/gpus/0000:17:00.0/information": {}, "proc/driver/nvidia/gpus/0000:65:00.0/information": {}})
	if i, err := s.read(t.Context()); err != nil || len(i.Usable()) != 2 {
		t.Fatal(i, err)
	}
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, fresh := range []bool{false, true} {
		if fresh { // a program that never saw the GPU well
			s = newSMI(s.root)
		}
		i, err := s.read(t.Context())
		if err != nil || len(i.Devices) != 2 || len(i.Usable()) != 1 {
			t.Fatalf("%+v, %v", i, err)
		}
		lost, well := i.Devices[0], i.Devices[1]
		if lost.Fault != lostWords || lost.PCI != "0000:17:00.0" || well.UUID != "GPU-99999999" || well.Temperature != 41 {
			t.Errorf("%+v", i)
		}
		if fresh && (lost.Index != Unknown || lost.Name != "") || !fresh && (lost.Index != 0 || lost.Name != "NVIDIA H200" || lost.Memory == 0) {
			t.Errorf("fresh %v: %+v", fresh, lost)
		}
	}
}

func TestSMIRefuses(t *testing.T) {
	for _, c := range []struct {
		name, script string
		cause        Cause
		detail       string
	}{
		{"no driver", "echo \"NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA driver is installed and running.\"; exit 9", NoDriver, "communicate"},
		{"no library", "exit 12", NoLibrary, ""},
		{"no permission", "echo 'Failed to initialize NVML: Insufficient Permissions'; exit 4", NoPermission, "Insufficient"},
		{"versions", "echo 'Failed to initialize NVML: Driver/library version mismatch' >&2; exit 18", Mismatch, "mismatch"},
		{"no device", "echo 'No devices were found'; exit 6", NoDevice, ""},
		{"no device, status 0", "echo 'No devices were found'", NoDevice, ""},
		{"nothing at all", "exit 3", Failed, "says nothing and ends with status 3"},
		{"killed", "kill -9 $$", Failed, "says nothing"},
		{"nonsense", "echo 'hello, world'", Failed, "has 2 of 15 fields"},
		{"too much", "while :; do echo 0123456789012345678901234567890123456789; done", Failed, "more than 65536 bytes"},
		{"no program", "", Failed, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			standIn(t, c.script)
			_, err := newSMI(fstest.MapFS{}).read(t.Context())
			var e *NotFoundError
			if !errors.As(err, &e) || e.Cause != c.cause || !strings.Contains(e.Detail, c.detail) {
				t.Errorf("%v (%+v), want %v", err, e, c.cause)
			}
		})
	}
	t.Run("not installed", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		var e *NotFoundError
		if _, err := newSMI(fstest.MapFS{}).read(t.Context()); !errors.As(err, &e) || e.Cause != NoLibrary {
			t.Error(err)
		}
	})
}

// A program that never ends, and leaves a child with its pipe, is ended.
func TestSMIHangs(t *testing.T) {
	sleep, err := filepath.EvalSymlinks("/bin/sleep")
	if err != nil {
		t.Skip(err)
	}
	standIn(t, sleep+" 30")
	r := &reader{sources: []source{newSMI(fstest.MapFS{})}, root: fstest.MapFS{}, patience: 50 * time.Millisecond}
	began := time.Now()
	_, err = r.read(t.Context())
	var e *NotFoundError
	if !errors.As(err, &e) || e.Cause != Silent {
		t.Errorf("error %v", err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("took %s", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newSMI(fstest.MapFS{}).read(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestDecode(t *testing.T) {
	for _, c := range []struct {
		name, out string
		devices   int
		err       string
	}{
		{"empty", "\n\r\n", 0, ""},
		{"rows", rowH200 + "\r\n" + rowMIG + "\n", 2, ""},
		{"a lost value", strings.Replace(rowH200, " 37,", " [GPU is lost],", 1), 1, ""},
		{"an odd line between", rowH200 + "\nWARNING: infoROM is corrupted at gpu 0000:17:00.0\n" + rowMIG, 2, "has 1 of 15 fields"},
		{"twice", rowH200 + "\n" + rowH200, 1, "lists GPU 0 twice"},
		{"utilisation", strings.Replace(rowH200, " 37,", " 101,", 1), 0, `utilization.gpu "101": want a number up to 100`},
		{"memory", strings.Replace(rowH200, " 143771,", " -1,", 1), 0, `memory.total "-1": want MiB`},
		{"power", strings.Replace(rowH200, " 118.42,", " NaN,", 1), 0, `power.draw "NaN": want watts`},
		{"no index", strings.Replace(rowH200, "0, GPU", "[N/A], GPU", 1), 0, "without index"},
		{"too many", strings.Repeat("Unable to determine the device handle for GPU 000:BA:80.0: Unknown Error\n", maxDevices+1), maxDevices, "more than 256"},
	} {
		t.Run(c.name, func(t *testing.T) {
			devices, _, err := decode([]byte(c.out), smiFields)
			if len(devices) != c.devices {
				t.Errorf("%d devices, want %d", len(devices), c.devices)
			}
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error %v, want %q", err, c.err)
			}
		})
	}
	lost, _, _ := decode([]byte("Unable to determine the device handle for GPU 000:BA:80.0: Unknown Error\n"), smiFields)
	if lost[0].Fault != "nvidia-smi: Unknown Error" || lost[0].PCI != "000:ba:80.0" {
		t.Errorf("%+v", lost[0])
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{rowH200, rowMIG, rowOld, rowH200 + "\n" + rowMIG, strings.Replace(rowH200, " 37,", " [GPU requires reset],", 1),
		"Unable to determine the device handle for GPU0000:17:00.0: GPU is lost.  Reboot", "No devices were found", ",,,,,,,,,,,,,,", "CUDA Version : 12.8",
		`Field "compute_cap" is not a valid field to query.`, strings.Replace(rowH200, "118.42", "0x1p-2", 1),
		strings.Replace(rowH200, "52a3a85d-", "0000000 -", 1)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, out []byte) {
		if name, ok := unknownField(out, smiFields); ok && !slices.Contains(smiFields, name) {
			t.Fatalf("unknown field %q", name)
		}
		if v := decodeCUDA(out); len(v) > 7 {
			t.Fatalf("CUDA version %q", v)
		}
		devices, driver, _ := decode(out, smiFields)
		if len(devices) > maxDevices || len(driver) > maxName {
			t.Fatalf("%d devices, driver %q", len(devices), driver)
		}
		seen := make(map[int]bool)
		for _, d := range devices {
			if d.Index >= 0 && seen[d.Index] {
				t.Fatalf("GPU %d twice", d.Index)
			}
			seen[d.Index] = true
			if d.Index < 0 && d.Fault == "" || d.Index > 4095 {
				t.Fatalf("index %d without fault", d.Index)
			}
			if d.Utilisation < Unknown || d.Utilisation > 100 || !(d.Power >= Unknown && d.Power < 1e6) || d.Memory >= 1<<51 {
				t.Fatalf("%+v", d)
			}
			for _, s := range []string{d.Name, d.UUID, d.PCI, d.Compute, strings.TrimPrefix(d.Fault, "nvidia-smi: ")} {
				if s != clean(s, maxDetail) {
					t.Fatalf("%q is not clean", s)
				}
			}
		}
		Suggest(Inventory{Devices: devices}, nil, Machine{}, nil)
	})
}
