// As much of NVML as Dask asks for, of the GPUs that cuda.cpp pretends.

#include <cstdio>
#include <cstdlib>
#include <cstring>

using Device = size_t;  // its number and one

static long setting(const char* name, long otherwise) {
    const char* text = getenv(name);
    return text ? atol(text) : otherwise;
}

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3 };

struct Memory {
    unsigned long long total, available, used;
};

extern "C" {
int nvmlInit_v2() { return SUCCESS; }
int nvmlInitWithFlags(unsigned) { return SUCCESS; }
int nvmlShutdown() { return SUCCESS; }
const char* nvmlErrorString(int) { return "pretended"; }
int nvmlSystemGetDriverVersion(char* text, unsigned size) {
    snprintf(text, size, "580.0");
    return SUCCESS;
}
int nvmlDeviceGetCount_v2(unsigned* found) {
    *found = static_cast<unsigned>(setting("PRETENDED_GPUS", 1));
    return SUCCESS;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned number, Device* found) {
    *found = number + 1;
    return number < setting("PRETENDED_GPUS", 1) ? SUCCESS : INVALID_ARGUMENT;
}
int nvmlDeviceGetHandleByUUID(const char* uuid, Device* found) {
    *found = strtoul(uuid + 4, nullptr, 10) + 1;
    return SUCCESS;
}
int nvmlDeviceGetIndex(Device device, unsigned* found) {
    *found = static_cast<unsigned>(device - 1);
    return SUCCESS;
}
int nvmlDeviceGetUUID(Device device, char* text, unsigned size) {
    snprintf(text, size, "GPU-%08zu-0000-0000-0000-000000000000", device - 1);
    return SUCCESS;
}
int nvmlDeviceGetName(Device, char* text, unsigned size) {
    snprintf(text, size, "Pretended GPU");
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo(Device, Memory* found) {
    found->total = found->available = setting("PRETENDED_MEMORY", 12L << 30);
    found->used = 0;
    return SUCCESS;
}
int nvmlDeviceGetUtilizationRates(Device, unsigned* found) {
    found[0] = found[1] = 0;
    return SUCCESS;
}
int nvmlDeviceGetMigMode(Device, unsigned*, unsigned*) { return NOT_SUPPORTED; }
int nvmlDeviceGetMaxMigDeviceCount(Device, unsigned* found) { return *found = 0, SUCCESS; }
int nvmlDeviceIsMigDeviceHandle(Device, unsigned* found) { return *found = 0, SUCCESS; }
int nvmlDeviceGetCpuAffinity(Device, unsigned words, unsigned long* found) {
    memset(found, 0xFF, words * sizeof *found);
    return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v2(Device, unsigned* found, void*) {
    return *found = 0, SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(Device, unsigned* found, void*) {
    return *found = 0, SUCCESS;
}
}
