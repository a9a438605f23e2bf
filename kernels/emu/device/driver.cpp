// The calls of the CUDA driver that cudarc makes, on the CPU. Everything is done when a call returns, so streams and events need no work of their own.
//
// A failed launch is sticky as on a device: every later call of the context answers with it until `ds4EmulatorReset`.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "block.h"
#include "memory.h"

namespace {

using Result = int;
using Pointer = unsigned long long;
enum : Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    NOT_FOUND = 500,
    LAUNCH_FAILED = 719,
};

std::recursive_mutex lock;
Result sticky = SUCCESS;
std::string reason;      // of the last failure
std::string last_error;  // keeps what cuGetErrorString hands out

std::string spoiled;  // the kernel whose results are made wrong; empty: none
std::string failing;  // the kernel of which a launch fails as a fault of the device does; empty: none
size_t before_failure;  // launches of it that go well before
std::string raising;  // the kernel whose next launch sets the flag; empty: none
std::atomic<bool>* raised;
std::map<std::string, std::set<uint64_t>> orders;  // of every kernel that ran

struct Function {
    const simt::Entry* entry;
};

struct Graph {
    std::vector<std::function<Result()>> steps;
};
Graph* capturing = nullptr;

Result refused(const std::string& why) {
    reason = why;
    return INVALID_VALUE;
}

// Does the step now, or notes it while a stream is captured.
Result submit(std::function<Result()> step) {
    if (sticky != SUCCESS) return sticky;
    if (capturing != nullptr) {
        capturing->steps.push_back(std::move(step));
        return SUCCESS;
    }
    return step();
}

Result run(const simt::Entry* entry, dim3 grid, dim3 block, unsigned shared, void** arguments) {
    if (entry->name == raising) {
        raising.clear();
        raised->store(true);
    }
    if (entry->name == failing && before_failure-- == 0) {
        failing.clear();
        reason = entry->name + ": a fault that was asked for";
        return sticky = LAUNCH_FAILED;
    }
    const bool spoils = entry->name == spoiled;
    const simt::Snapshot before = spoils ? simt::snapshot() : simt::Snapshot{};
    std::string failure = simt::launch(*entry, grid, block, shared, arguments);
    orders[entry->name].insert(simt::order());
    if (spoils) simt::spoil(before);
    if (failure.empty()) {
        failure = simt::damaged();
        if (!failure.empty()) failure = entry->name + ": " + failure;
    }
    if (failure.empty()) return SUCCESS;
    reason = failure;
    return sticky = LAUNCH_FAILED;
}

// Limits of sm_90 (CUDA C++ Programming Guide, table of compute capabilities).
std::string wrong_shape(dim3 grid, dim3 block, unsigned shared) {
    const unsigned long long threads = 1ull * block.x * block.y * block.z;
    if (threads == 0 || threads > 1024) return "block of " + std::to_string(threads) + " threads: expected 1 to 1024";
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return "grid with a dimension of 0";
    if (grid.y > 65535 || grid.z > 65535) return "grid: expected y and z up to 65535";
    if (shared > 227 * 1024) return "dynamic shared memory of " + std::to_string(shared) + " bytes: expected at most 232448";
    return "";
}

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) Result
#define CALL const std::lock_guard<std::recursive_mutex> guard(lock)

// ---- the emulator's own controls ----
extern "C" __attribute__((visibility("default"))) void ds4EmulatorOrder(unsigned long long seed) { CALL; simt::set_order(seed); }
extern "C" __attribute__((visibility("default"))) void ds4EmulatorReset() { CALL; sticky = SUCCESS; reason.clear(); }
extern "C" __attribute__((visibility("default"))) void ds4EmulatorMemory(size_t bytes) { CALL; simt::set_capacity(bytes); }
// From now on the first byte that this kernel changes is wrong by one bit after every launch; an empty name ends it.
extern "C" __attribute__((visibility("default"))) void ds4EmulatorSpoil(const char* kernel) { CALL; spoiled = kernel; }
// The launch of this kernel after so many others fails.
extern "C" __attribute__((visibility("default"))) void ds4EmulatorFail(const char* kernel, size_t launches) {
    CALL;
    failing = kernel;
    before_failure = launches;
}
// The next launch of this kernel sets the flag.
extern "C" __attribute__((visibility("default"))) void ds4EmulatorRaise(const char* kernel, std::atomic<bool>* flag) {
    CALL;
    raising = kernel;
    raised = flag;
}
// In how many orders of threads a kernel has run.
extern "C" __attribute__((visibility("default"))) size_t ds4EmulatorOrders(const char* kernel) {
    CALL;
    const auto found = orders.find(kernel);
    return found == orders.end() ? 0 : found->second.size();
}
// Sizes of a kernel's parameters; returns their number, or -1 for an unknown name.
extern "C" __attribute__((visibility("default"))) int ds4EmulatorParameters(const char* name, size_t* sizes, size_t room) {
    const simt::Entry* entry = simt::find(name);
    if (entry == nullptr) return -1;
    for (size_t i = 0; i < entry->sizes.size() && i < room; i++) sizes[i] = entry->sizes[i];
    return int(entry->sizes.size());
}

// ---- device and context ----
// The first allocation of at least so many bytes finds no room, as when another process has it for a moment.
static size_t no_room_once = SIZE_MAX;

// What a program that finds this library as its driver cannot ask for by calls.
API cuInit(unsigned) {
    if (const char* bytes = std::getenv("DS4_EMU_MEMORY")) ds4EmulatorMemory(std::strtoull(bytes, nullptr, 10));
    if (const char* fault = std::getenv("DS4_EMU_FAIL")) {
        const std::string text = fault;
        const size_t colon = text.find(':');
        const std::string call = text.substr(0, colon);
        const size_t number = std::strtoull(text.c_str() + colon + 1, nullptr, 10);
        if (call == "cuMemAlloc") no_room_once = number;
        else ds4EmulatorFail(call.c_str(), number);
    }
    return SUCCESS;
}
API cuDriverGetVersion(int* version) { *version = 13000; return SUCCESS; }
API cuDeviceGetCount(int* count) { *count = 1; return SUCCESS; }
API cuDeviceGet(int* device, int ordinal) {
    if (ordinal != 0) return INVALID_DEVICE;
    *device = 0;
    return SUCCESS;
}
API cuDeviceGetName(char* name, int room, int) { std::snprintf(name, room, "emulated on the CPU"); return SUCCESS; }
API cuDeviceTotalMem_v2(size_t* bytes, int) { CALL; *bytes = simt::capacity(); return SUCCESS; }
API cuMemGetInfo_v2(size_t* available, size_t* total) {
    CALL;
    *total = simt::capacity();
    *available = simt::capacity() - simt::in_use();
    return sticky;
}
API cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {  // numbers of CUdevice_attribute
        case 1: *value = 1024; break;    // threads per block
        case 8: *value = 48 * 1024; break;  // shared memory per block without opting in
        case 10: *value = 32; break;     // warp
        case 16: *value = 2; break;      // multiprocessors
        case 75: *value = 9; break;      // compute capability
        case 76: *value = 0; break;
        case 97: *value = 227 * 1024; break;  // shared memory per block when opted in
        default: *value = 0;             // among them: no memory pools, not integrated
    }
    return SUCCESS;
}
static int context;
static thread_local void* current_context;
API cuDevicePrimaryCtxRetain(void** out, int) { *out = &context; return SUCCESS; }
API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API cuCtxGetCurrent(void** out) { *out = current_context; return SUCCESS; }
API cuCtxSetCurrent(void* to) { current_context = to; return SUCCESS; }
API cuCtxSynchronize() { CALL; return sticky; }

// ---- streams and events ----
static int stream;
API cuStreamCreate(void** out, unsigned) { *out = &stream; return SUCCESS; }
API cuStreamCreateWithPriority(void** out, unsigned, int) { *out = &stream; return SUCCESS; }
API cuStreamDestroy_v2(void*) { return SUCCESS; }
API cuStreamSynchronize(void*) { CALL; return sticky; }
API cuStreamWaitEvent(void*, void*, unsigned) { CALL; return sticky; }
API cuStreamIsCapturing(void*, int* status) { CALL; *status = capturing != nullptr; return SUCCESS; }
API cuStreamBeginCapture_v2(void*, int) {
    CALL;
    if (capturing != nullptr) return refused("a stream is captured already");
    capturing = new Graph;
    return sticky;
}
API cuStreamEndCapture(void*, void** graph) {
    CALL;
    if (capturing == nullptr) return refused("no stream is captured");
    *graph = capturing;
    capturing = nullptr;
    return sticky;
}
API cuGraphInstantiateWithFlags(void** out, void* graph, unsigned long long) { *out = new Graph(*static_cast<Graph*>(graph)); return SUCCESS; }
API cuGraphUpload(void*, void*) { return SUCCESS; }
API cuGraphLaunch(void* graph, void*) {
    CALL;
    for (const auto& step : static_cast<Graph*>(graph)->steps)
        if (const Result result = submit(step); result != SUCCESS) return result;
    return sticky;
}
API cuGraphExecDestroy(void* graph) { delete static_cast<Graph*>(graph); return SUCCESS; }
API cuGraphDestroy(void* graph) { delete static_cast<Graph*>(graph); return SUCCESS; }
API cuEventCreate(void** event, unsigned) { *event = new timespec{}; return SUCCESS; }
API cuEventDestroy_v2(void* event) { delete static_cast<timespec*>(event); return SUCCESS; }
API cuEventRecord(void* event, void*) { clock_gettime(CLOCK_MONOTONIC, static_cast<timespec*>(event)); return SUCCESS; }
API cuEventQuery(void*) { return SUCCESS; }
API cuEventSynchronize(void*) { CALL; return sticky; }
API cuEventElapsedTime_v2(float* milliseconds, void* from, void* to) {
    const auto &a = *static_cast<timespec*>(from), &b = *static_cast<timespec*>(to);
    *milliseconds = float(double(b.tv_sec - a.tv_sec) * 1e3 + double(b.tv_nsec - a.tv_nsec) * 1e-6);
    return SUCCESS;
}
API cuEventElapsedTime(float* milliseconds, void* from, void* to) { return cuEventElapsedTime_v2(milliseconds, from, to); }

// ---- memory ----
API cuMemAlloc_v2(Pointer* out, size_t bytes) {
    CALL;
    if (sticky != SUCCESS) return sticky;
    if (bytes == 0) return refused("an allocation of 0 bytes");
    if (bytes >= no_room_once) no_room_once = SIZE_MAX;
    else if ((*out = simt::allocate(bytes)) != 0) return SUCCESS;
    reason = std::to_string(bytes) + " bytes were asked for, " + std::to_string(simt::capacity() - simt::in_use()) + " are free";
    return OUT_OF_MEMORY;
}
API cuMemFree_v2(Pointer at) { CALL; return simt::release(at) ? SUCCESS : refused("free of an address that was not allocated"); }
API cuMemHostAlloc(void** out, size_t bytes, unsigned) {
    *out = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *out == nullptr ? OUT_OF_MEMORY : SUCCESS;
}
API cuMemFreeHost(void* at) { std::free(at); return SUCCESS; }
API cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t bytes, void*) {
    CALL;
    if (!simt::within(to, bytes)) return refused("copy of " + std::to_string(bytes) + " bytes to the device leaves its allocation");
    return submit([=] { std::memcpy(reinterpret_cast<void*>(to), from, bytes); return SUCCESS; });
}
API cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t bytes, void*) {
    CALL;
    if (!simt::within(from, bytes)) return refused("copy of " + std::to_string(bytes) + " bytes from the device leaves its allocation");
    return submit([=] { std::memcpy(to, reinterpret_cast<void*>(from), bytes); return SUCCESS; });
}
API cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, void*) {
    CALL;
    if (!simt::within(from, bytes) || !simt::within(to, bytes)) return refused("copy of " + std::to_string(bytes) + " bytes leaves an allocation");
    return submit([=] { std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); return SUCCESS; });
}
API cuMemsetD8Async(Pointer at, unsigned char value, size_t bytes, void*) {
    CALL;
    if (!simt::within(at, bytes)) return refused("set of " + std::to_string(bytes) + " bytes leaves its allocation");
    return submit([=] { std::memset(reinterpret_cast<void*>(at), value, bytes); return SUCCESS; });
}

// ---- modules and launches ----
static int module;
API cuModuleLoadData(void** out, const void*) { *out = &module; return SUCCESS; }  // any image: the kernels are linked in here
API cuModuleUnload(void*) { return SUCCESS; }
API cuModuleGetFunction(void** out, void*, const char* name) {
    CALL;
    const simt::Entry* entry = simt::find(name);
    if (entry == nullptr) {
        reason = std::string("no kernel of the name ") + name;
        return NOT_FOUND;
    }
    *out = new Function{entry};
    return SUCCESS;
}
API cuFuncGetAttribute(int* value, int, void*) { *value = 0; return SUCCESS; }
API cuFuncSetAttribute(void*, int, int) { return SUCCESS; }
API cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void*,
                   void** arguments, void**) {
    CALL;
    const simt::Entry* entry = static_cast<Function*>(function)->entry;
    const dim3 grid(gx, gy, gz), block(bx, by, bz);
    if (const std::string why = wrong_shape(grid, block, shared); !why.empty()) return refused(entry->name + ": " + why);
    // A captured launch outlives the caller's arguments.
    std::vector<std::vector<unsigned char>> values;
    for (size_t i = 0; i < entry->sizes.size(); i++) {
        const auto from = static_cast<unsigned char*>(arguments[i]);
        values.emplace_back(from, from + entry->sizes[i]);
    }
    return submit([=]() mutable {
        std::vector<void*> pointers;
        for (auto& value : values) pointers.push_back(value.data());
        return run(entry, grid, block, shared, pointers.data());
    });
}

// ---- errors ----
API cuGetErrorName(int error, const char** out) {
    switch (error) {
        case SUCCESS: *out = "CUDA_SUCCESS"; break;
        case INVALID_VALUE: *out = "CUDA_ERROR_INVALID_VALUE"; break;
        case OUT_OF_MEMORY: *out = "CUDA_ERROR_OUT_OF_MEMORY"; break;
        case INVALID_DEVICE: *out = "CUDA_ERROR_INVALID_DEVICE"; break;
        case NOT_FOUND: *out = "CUDA_ERROR_NOT_FOUND"; break;
        case LAUNCH_FAILED: *out = "CUDA_ERROR_LAUNCH_FAILED"; break;
        default: *out = "CUDA_ERROR_UNKNOWN";
    }
    return SUCCESS;
}
API cuGetErrorString(int error, const char** out) {
    CALL;
    const char* name = nullptr;
    cuGetErrorName(error, &name);
    last_error = reason.empty() ? name : reason;
    *out = last_error.c_str();
    return SUCCESS;
}
