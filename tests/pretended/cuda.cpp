// A CUDA runtime and driver that pretend: memory is the host's, a kernel is the function that was
// bound to it. What is launched is done later, in order, when somebody waits for it; what is wrong
// to do with a GPU (a launch in a thread without a context, an access beyond an allocation, a copy
// in the wrong direction) is found out.
//
// PRETENDED_GPUS    how many there are (1)
// PRETENDED_MEMORY  bytes of each (12 GiB)
// PRETENDED_DRIVER  its version (13000)
// PRETENDED_FAULT   a file: the first process to delete it, after 40 launches, loses its GPU

#include <cuda.h>
#include <cuda_profiler_api.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#undef cuCtxPopCurrent
#undef cuCtxPushCurrent
#undef cuDeviceGetUuid
#undef cuDevicePrimaryCtxRelease
#undef cuGetProcAddress

namespace {

using Work = std::function<void()>;
using Blocks = std::map<uintptr_t, size_t>;  // begin -> bytes
using Bound = void (*)(void** arguments, const unsigned* grid, unsigned threads, uint64_t seed);

constexpr size_t ALIGNMENT = 512, MOST_WAITING = 4096;
constexpr long LAUNCHES_BEFORE_A_FAULT = 40;

struct Kernel {
    std::string name;
    Bound bound = nullptr;
    int parameters = 0;
};

struct Module {
    std::map<std::string, std::unique_ptr<Kernel>> kernels;
};

struct Event {
    std::shared_ptr<double> milliseconds = std::make_shared<double>(0);
};

std::recursive_mutex state;    // of all that follows
std::recursive_mutex running;  // held while work is done; taken before `state`
std::deque<Work> waiting;      // of all streams: the order of the calls is a valid one
Blocks device_blocks, pinned_blocks;
size_t used = 0;
long launches = 0;
bool is_dead = false;  // a kernel has failed: every call says so from now on
thread_local bool has_context = false;
thread_local int current = 0;
thread_local cudaError_t last_error = cudaSuccess;

long setting(const char* name, long otherwise) {
    const char* text = getenv(name);
    return text ? atol(text) : otherwise;
}

int gpus() { return static_cast<int>(setting("PRETENDED_GPUS", 1)); }
size_t memory() { return static_cast<size_t>(setting("PRETENDED_MEMORY", 12L << 30)); }
int version() { return static_cast<int>(setting("PRETENDED_DRIVER", 13000)); }

[[noreturn]] void refuse(const std::string& what) {
    fprintf(stderr, "pretended CUDA: %s\n", what.c_str());
    abort();
}

void finish() {
    std::lock_guard one(running);
    for (;;) {
        Work work;
        {
            std::lock_guard lock(state);
            if (waiting.empty()) return;
            work = std::move(waiting.front());
            waiting.pop_front();
        }
        work();
    }
}

void enqueue(Work work) {
    bool is_full;
    {
        std::lock_guard lock(state);
        waiting.push_back(std::move(work));
        is_full = waiting.size() > MOST_WAITING;
    }
    if (is_full) finish();
}

bool is_in(const Blocks& blocks, const void* pointer, size_t size) {
    std::lock_guard lock(state);
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    auto found = blocks.upper_bound(address);
    if (found == blocks.begin()) return false;
    --found;
    const uintptr_t end = found->first + found->second;
    if (address >= end) return false;
    if (address + size > end) refuse("an access beyond the end of an allocation");
    return true;
}

bool on_device(const void* pointer, size_t size) { return is_in(device_blocks, pointer, size); }

cudaError_t begin() {
    has_context = true;
    return is_dead ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t wait() {
    begin();
    finish();
    return begin();
}

void check_direction(const void* to, const void* from, size_t size, cudaMemcpyKind kind) {
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind == cudaMemcpyDefault) return;
    if (on_device(to, size) != to_device || on_device(from, size) != from_device)
        refuse("a copy in another direction than it says");
}

// CuPy's own element-wise kernels, as far as this project calls them. Arrays come as pointer, size,
// shape, strides, the indexer as size and shape; how many axes there are follows from the sizes.
struct Shape {
    std::vector<long> sizes;
    explicit Shape(const long* indexer) {
        for (long product = 1; product != indexer[0]; product *= sizes.back())
            sizes.push_back(indexer[1 + sizes.size()]);
        if (sizes.empty()) sizes.push_back(1);
    }
    template <class F>
    void each(F call) const {
        std::vector<long> index(sizes.size(), 0);
        for (;;) {
            call(index);
            size_t axis = sizes.size();
            while (axis && ++index[axis - 1] == sizes[axis - 1]) index[--axis] = 0;
            if (!axis) return;
        }
    }
};

struct View {
    char* data;
    std::vector<long> strides;
    View(const void* argument, size_t axes) {
        const auto* words = static_cast<const long*>(argument);
        data = reinterpret_cast<char*>(words[0]);
        strides.assign(words + 2 + axes, words + 2 + 2 * axes);
    }
    char* at(const std::vector<long>& index, size_t width) const {
        char* found = data;
        for (size_t i = 0; i < index.size(); i++) found += index[i] * strides[i];
        if (!on_device(found, width)) refuse("CuPy reaches beyond an array");
        return found;
    }
};

size_t width(const std::string& type) {
    return type.find("64") != std::string::npos   ? 8
           : type.find("32") != std::string::npos ? 4
           : type.find("16") != std::string::npos ? 2
                                                  : 1;
}

CUresult launch_of_cupy(const std::string& name, void** parameters) {
    const std::string copy = "cupy_copy__";
    if (name.rfind(copy, 0) == 0) {
        const std::string types = name.substr(copy.size());
        const size_t bytes = width(types.substr(0, types.find('_')));
        const Shape shape(static_cast<const long*>(parameters[2]));
        const View from(parameters[0], shape.sizes.size()), to(parameters[1], shape.sizes.size());
        if (bytes == width(types.substr(types.find('_') + 1))) {
            enqueue([=] {
                shape.each([&](auto& i) { memcpy(to.at(i, bytes), from.at(i, bytes), bytes); });
            });
            return CUDA_SUCCESS;
        }
    }
    if (name == "cupy_fill") {
        const auto value = *static_cast<const uint32_t*>(parameters[0]);
        const Shape shape(static_cast<const long*>(parameters[2]));
        const View to(parameters[1], shape.sizes.size());
        enqueue([=] { shape.each([&](auto& i) { memcpy(to.at(i, 4), &value, 4); }); });
        return CUDA_SUCCESS;
    }
    fprintf(stderr, "pretended CUDA: CuPy's kernel %s is not there\n", name.c_str());
    return CUDA_ERROR_NOT_SUPPORTED;
}

bool fails_now() {
    const char* file = getenv("PRETENDED_FAULT");
    return file && launches > LAUNCHES_BEFORE_A_FAULT && unlink(file) == 0;
}

}  // namespace

extern "C" {

void pretended_bind(void* kernel, Bound function, int parameters) {
    std::lock_guard lock(state);
    static_cast<Kernel*>(kernel)->bound = function;
    static_cast<Kernel*>(kernel)->parameters = parameters;
}

// -- the runtime ---------------------------------------------------------------------------------

const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "cudaSuccess";
        case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
        case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
        case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
        case cudaErrorNoDevice: return "cudaErrorNoDevice";
        default: return "cudaError";
    }
}
const char* cudaGetErrorString(cudaError_t) { return "pretended"; }
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaDriverGetVersion(int* found) { return *found = version(), cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* found) { return *found = 13000, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* found) {
    *found = gpus();
    return version() < 13000 ? cudaErrorInsufficientDriver : *found ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaGetDevice(int* found) { return *found = current, cudaSuccess; }  // binds no context
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= gpus()) return cudaErrorInvalidDevice;
    current = device;
    return begin();
}
cudaError_t cudaDeviceSynchronize() { return wait(); }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrComputeCapabilityMajor     ? 9
             : attribute == cudaDevAttrMultiProcessorCount      ? 132
             : attribute == cudaDevAttrMemoryPoolsSupported     ? 1
                                                                : 0;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int size, int device) {
    return snprintf(text, size, "0000:%02x:00.0", device), cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int device) {
    memset(found, 0, sizeof *found);
    snprintf(found->name, sizeof found->name, "Pretended GPU %d", device);
    found->totalGlobalMem = memory();
    found->major = 9;
    found->multiProcessorCount = 132;
    found->l2CacheSize = 50 << 20;
    return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 1, cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
    std::lock_guard lock(state);
    *total = memory();
    *available = *total - used;
    return begin();
}
cudaError_t cudaMalloc(void** found, size_t size) {
    std::lock_guard lock(state);
    *found = nullptr;
    if (const auto error = begin()) return error;
    size = (std::max<size_t>(size, 1) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (used + size > memory()) return last_error = cudaErrorMemoryAllocation;
    *found = aligned_alloc(ALIGNMENT, size);
    memset(*found, 0xDB, size);
    device_blocks[reinterpret_cast<uintptr_t>(*found)] = size;
    used += size;
    return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
    if (!pointer) return begin();
    finish();
    std::lock_guard lock(state);
    const auto found = device_blocks.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == device_blocks.end()) return cudaErrorInvalidValue;
    used -= found->second;
    device_blocks.erase(found);
    free(pointer);
    return begin();
}
cudaError_t cudaHostAlloc(void** found, size_t size, unsigned) {
    std::lock_guard lock(state);
    *found = aligned_alloc(ALIGNMENT, (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    pinned_blocks[reinterpret_cast<uintptr_t>(*found)] = size;
    return begin();
}
cudaError_t cudaFreeHost(void* pointer) {
    finish();
    std::lock_guard lock(state);
    pinned_blocks.erase(reinterpret_cast<uintptr_t>(pointer));
    free(pointer);
    return begin();
}
cudaError_t cudaMemcpyAsync(
    void* to, const void* from, size_t size, cudaMemcpyKind kind, cudaStream_t) {
    if (const auto error = begin()) return error;
    if (!size) return cudaSuccess;
    check_direction(to, from, size, kind);
    if (kind == cudaMemcpyDeviceToHost && !is_in(pinned_blocks, to, size)) {
        finish();  // as CUDA does for memory that is not pinned
        memcpy(to, from, size);
        return begin();
    }
    if (kind == cudaMemcpyHostToDevice && !is_in(pinned_blocks, from, size)) {
        const auto* bytes = static_cast<const char*>(from);
        const auto held = std::make_shared<std::vector<char>>(bytes, bytes + size);
        enqueue([=] { memcpy(to, held->data(), size); });
        return cudaSuccess;
    }
    enqueue([=] { memcpy(to, from, size); });
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind kind) {
    const auto error = cudaMemcpyAsync(to, from, size, kind, nullptr);
    return error ? error : wait();
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t) {
    if (!on_device(to, size)) refuse("memory of the host is filled");
    enqueue([=] { memset(to, value, size); });
    return begin();
}
cudaError_t cudaMemset(void* to, int value, size_t size) {
    const auto error = cudaMemsetAsync(to, value, size, nullptr);
    return error ? error : wait();
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* pointer) {
    memset(found, 0, sizeof *found);
    const bool ours = on_device(pointer, 1);
    found->type = ours ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    found->device = ours ? current : cudaInvalidDeviceId;
    found->devicePointer = ours ? const_cast<void*>(pointer) : nullptr;
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* found, unsigned) {
    return *found = reinterpret_cast<cudaStream_t>(new char), begin();
}
cudaError_t cudaStreamCreate(cudaStream_t* found) { return cudaStreamCreateWithFlags(found, 0); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* found, unsigned flags, int) {
    return cudaStreamCreateWithFlags(found, flags);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    return delete reinterpret_cast<char*>(stream), wait();
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return wait(); }
cudaError_t cudaStreamQuery(cudaStream_t) { return wait(); }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* found) {
    return *found = cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* found, unsigned) {
    return *found = reinterpret_cast<cudaEvent_t>(new Event), begin();
}
cudaError_t cudaEventCreate(cudaEvent_t* found) { return cudaEventCreateWithFlags(found, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    return delete reinterpret_cast<Event*>(event), cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
    const auto at = reinterpret_cast<Event*>(event)->milliseconds;
    enqueue([at] {
        using namespace std::chrono;
        *at = duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
    });
    return begin();
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return wait(); }
cudaError_t cudaEventQuery(cudaEvent_t) { return wait(); }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return begin(); }
cudaError_t cudaEventElapsedTime(float* found, cudaEvent_t from, cudaEvent_t to) {
    const auto at = [](cudaEvent_t e) { return *reinterpret_cast<Event*>(e)->milliseconds; };
    return *found = static_cast<float>(at(to) - at(from)), cudaSuccess;
}
cudaError_t cudaProfilerStart() { return cudaSuccess; }
cudaError_t cudaProfilerStop() { return cudaSuccess; }

// -- the driver ----------------------------------------------------------------------------------

CUresult cuGetErrorName(CUresult error, const char** found) {
    *found = error == CUDA_ERROR_INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT"
             : error == CUDA_ERROR_LAUNCH_FAILED ? "CUDA_ERROR_LAUNCH_FAILED"
                                                 : "CUDA_ERROR";
    return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult, const char** found) { return *found = "pretended", CUDA_SUCCESS; }
CUresult cuInit(unsigned) { return gpus() ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE; }
CUresult cuDriverGetVersion(int* found) { return *found = version(), CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int* found) { return *found = gpus(), CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* found, int number) {
    if (number >= gpus()) return CUDA_ERROR_INVALID_DEVICE;
    return *found = number, CUDA_SUCCESS;
}
CUresult cuDeviceGetName(char* text, int size, CUdevice) {
    return snprintf(text, size, "Pretended GPU"), CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
    cudaDeviceGetAttribute(value, static_cast<cudaDeviceAttr>(attribute), device);
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetUuid_v2(CUuuid* found, CUdevice device) {
    memset(found, 0, sizeof *found);
    return found->bytes[0] = static_cast<char>(device), CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* found, CUdevice) {
    return *found = reinterpret_cast<CUcontext>(8), CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext* found) {
    return *found = reinterpret_cast<CUcontext>(has_context ? 8 : 0), CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext context) { return has_context = context, CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice* found) {
    return *found = current, has_context ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}
CUresult cuModuleLoadData(CUmodule* found, const void* image) {
    if (!has_context) return CUDA_ERROR_INVALID_CONTEXT;
    if (memcmp(image, "\177ELF", 4)) return CUDA_ERROR_INVALID_IMAGE;
    return *found = reinterpret_cast<CUmodule>(new Module), CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction* found, CUmodule module, const char* name) {
    std::lock_guard lock(state);
    if (!has_context) return CUDA_ERROR_INVALID_CONTEXT;
    auto& kernel = reinterpret_cast<Module*>(module)->kernels[name];
    if (!kernel) kernel.reset(new Kernel{name});
    return *found = reinterpret_cast<CUfunction>(kernel.get()), CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute, CUfunction) {
    return *value = 0, CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
CUresult cuLaunchKernel(
    CUfunction function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
    unsigned threads_z, unsigned, CUstream, void** parameters, void**) {
    if (!has_context) return CUDA_ERROR_INVALID_CONTEXT;
    if (is_dead) return CUDA_ERROR_LAUNCH_FAILED;
    threads *= threads_y * threads_z;
    if (!x || !y || !z || x > 0x7fffffff || y > 65535 || z > 65535 || !threads || threads > 1024)
        return CUDA_ERROR_INVALID_VALUE;
    {
        std::lock_guard lock(state);
        launches++;
        if (fails_now()) {
            waiting.push_back([] { is_dead = true; });
            return CUDA_SUCCESS;
        }
    }
    const auto* kernel = reinterpret_cast<Kernel*>(function);
    if (!kernel->bound) return launch_of_cupy(kernel->name, parameters);
    // A launch copies its arguments. Those of this project lie side by side, the last is a word.
    const auto held = std::make_shared<std::vector<std::vector<char>>>();
    for (int i = 0; i < kernel->parameters; i++) {
        const auto* from = static_cast<const char*>(parameters[i]);
        const auto* to =
            i + 1 < kernel->parameters ? static_cast<const char*>(parameters[i + 1]) : from + 8;
        held->emplace_back(from, to);
    }
    enqueue([=] {
        static std::mt19937_64 random{std::random_device{}()};
        std::vector<void*> pointers;
        for (auto& argument : *held) pointers.push_back(argument.data());
        const unsigned grid[3] = {x, y, z};
        kernel->bound(pointers.data(), grid, threads, random());
    });
    return CUDA_SUCCESS;
}
CUresult cuGetExportTable(const void** found, const CUuuid*) {
    return *found = nullptr, CUDA_ERROR_NOT_FOUND;
}
CUresult cuGetProcAddress_v2(
    const char* name, void** found, int, cuuint64_t, CUdriverProcAddressQueryResult* result) {
    static void* const self = dlopen("libcuda.so.1", RTLD_NOLOAD | RTLD_LAZY);
    *found = nullptr;
    for (const char* suffix : {"", "_v2"})
        if (!*found) *found = dlsym(self, (std::string(name) + suffix).c_str());
    if (result)
        *result = *found ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *found ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
}
