// A stand-in for libnvidia-ml.so.1 of an old driver: two GPUs, of which the second is
// lost, and none of the functions that came later. Types as in NVIDIA's nvml.h.
#include <stdio.h>
#include <string.h>

typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned int gpu, memory; } utilization;
typedef struct { char legacy[16]; unsigned int domain, bus, device, id, subsystem; char address[32]; } pci;

static int open_count;
static int device;

int nvmlInit_v2(void) { open_count++; return 0; }
int nvmlShutdown(void) { return open_count-- > 0 ? 0 : 1; }
const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : "error"; }
int nvmlSystemGetDriverVersion(char *s, unsigned int n) { snprintf(s, n, "384.81"); return 0; }
int nvmlDeviceGetCount_v2(unsigned int *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int i, void **h) { *h = &device; return i == 0 ? 0 : 15; }
int nvmlDeviceGetName(void *h, char *s, unsigned int n) { snprintf(s, n, "Tesla K80"); return 0; }
int nvmlDeviceGetUUID(void *h, char *s, unsigned int n) { snprintf(s, n, "GPU-0badcafe-0000-0000-0000-000000000000"); return 0; }
int nvmlDeviceGetMemoryInfo(void *h, memory *m) { m->total = 12ull << 30; m->free = 11ull << 30; m->used = 1ull << 30; return 0; }
int nvmlDeviceGetUtilizationRates(void *h, utilization *u) { u->gpu = 64; u->memory = 8; return 0; }
int nvmlDeviceGetPowerUsage(void *h, unsigned int *mw) { *mw = 149500; return 0; }
int nvmlDeviceGetPciInfo_v3(void *h, pci *p) { memset(p, 0, sizeof *p); strcpy(p->address, "00000000:05:00.0"); return 0; }
