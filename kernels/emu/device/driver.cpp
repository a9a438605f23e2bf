// The calls of the CUDA driver that the host code makes, on the CPU. Work is done when it is submitted, or, on streams that `ds4EmulatorLate` names, when it
// is waited for.
//
// A failed launch is sticky as on a device: every later call of the context answers with it until `ds4EmulatorReset`.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "block.h"
#include "graph.h"
#include "memory.h"
#include "stream.h"

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
    NOT_SUPPORTED = 801,
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
// What outlives `main` (here, streams, allocations): a thread may still give its memory back while the process ends.
auto& orders = *new std::map<std::string, std::set<uint64_t>>;  // of every kernel that ran

struct Function {
    const simt::Entry* entry;
};

size_t counts[4];  // graphs instantiated, launches of graphs, nodes changed, nodes of the largest graph
bool deaf = false;  // streams do not wait for events, nodes of graphs not for those that they follow
bool hasty = false;  // the host does not wait for events
bool unified = false;  // device and host share their memory
std::string lacking;  // calls whose names begin so are not supported; empty: all are
size_t lockable = SIZE_MAX;  // host memory that may be page-locked at a time
size_t locked = 0;
auto& pinned = *new std::map<const char*, size_t>;  // host memory that copies reach while the host goes on

Result refused(const std::string& why) {
    reason = why;
    return INVALID_VALUE;
}

Result out_of_memory(size_t bytes) {
    reason = std::to_string(bytes) + " bytes were asked for, " + std::to_string(simt::capacity() - simt::in_use()) + " are free";
    return OUT_OF_MEMORY;
}

// Puts the step behind the stream's others. What fails is told by this call, or by a later one when the step is not yet due.
Result submit(void* stream, std::function<void()> step) {
    if (sticky != SUCCESS) return sticky;
    simt::submit(simt::stream(stream), [step = std::move(step)] {
        if (sticky == SUCCESS) step();
    });
    return sticky;
}

Result drained(void* stream) {
    simt::finish(simt::stream(stream));
    return sticky;
}

// Whether the bytes lie in host memory that was allocated for copies.
bool is_pinned(const void* at, size_t bytes) {
    auto next = pinned.upper_bound(static_cast<const char*>(at));
    if (next == pinned.begin()) return false;
    const auto& [start, size] = *--next;
    return static_cast<const char*>(at) + bytes <= start + size;
}

// Whether the driver was told not to know the call.
bool lacks(const std::string& call) {
    const bool lacks = !lacking.empty() && call.compare(0, lacking.size(), lacking) == 0;
    if (lacks) reason = "operation not supported";
    return lacks;
}

// A call that is refused because a test asked for that.
bool asked_to_fail(const char* call) {
    if (failing != call || before_failure-- != 0) return false;
    failing.clear();
    return true;
}

void run(const simt::Launch& launch) {
    const simt::Entry* entry = launch.entry;
    if (entry->name == raising) {
        raising.clear();
        raised->store(true);
    }
    if (entry->name == failing && before_failure-- == 0) {
        failing.clear();
        reason = entry->name + ": a fault that was asked for";
        sticky = LAUNCH_FAILED;
        return;
    }
    const bool spoils = entry->name == spoiled;
    const simt::Snapshot before = spoils ? simt::snapshot() : simt::Snapshot{};
    std::vector<void*> arguments;
    for (const auto& value : launch.values) arguments.push_back(const_cast<unsigned char*>(value.data()));
    std::string failure = simt::launch(*entry, launch.grid, launch.block, launch.shared, arguments.data());
    orders[entry->name].insert(simt::order());
    if (spoils) simt::spoil(before);
    if (failure.empty()) {
        failure = simt::damaged();
        if (!failure.empty()) failure = entry->name + ": " + failure;
    }
    if (failure.empty()) return;
    reason = failure;
    sticky = LAUNCH_FAILED;
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

// What cuLaunchKernel and a node of a graph are given; null, and the reason, when a device would refuse it.
std::shared_ptr<simt::Launch> noted(void* function, dim3 grid, dim3 block, unsigned shared, void** arguments) {
    const simt::Entry* entry = static_cast<Function*>(function)->entry;
    if (const std::string why = wrong_shape(grid, block, shared); !why.empty()) {
        refused(entry->name + ": " + why);
        return nullptr;
    }
    // A launch outlives the caller's arguments.
    auto launch = std::make_shared<simt::Launch>(simt::Launch{entry, grid, block, shared, {}});
    for (size_t i = 0; i < entry->sizes.size(); i++) {
        const auto from = static_cast<unsigned char*>(arguments[i]);
        launch->values.emplace_back(from, from + entry->sizes[i]);
    }
    return launch;
}

// CUDA_KERNEL_NODE_PARAMS_v2 of cuda.h.
struct NodeParameters {
    void* function;
    unsigned grid[3], block[3], shared;
    void **arguments, **extra;
    void *kernel, *context;
};

std::shared_ptr<simt::Launch> noted(const NodeParameters& p) {
    return noted(p.function, dim3(p.grid[0], p.grid[1], p.grid[2]), dim3(p.block[0], p.block[1], p.block[2]), p.shared, p.arguments);
}

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) Result
#define CALL const std::lock_guard<std::recursive_mutex> guard(lock)

// ---- the emulator's own controls ----
extern "C" __attribute__((visibility("default"))) void ds4EmulatorOrder(unsigned long long seed) { CALL; simt::set_order(seed); }
extern "C" __attribute__((visibility("default"))) void ds4EmulatorReset() {
    CALL;
    simt::forget();
    sticky = SUCCESS;
    reason.clear();
    failing.clear();
    counts[3] = 0;
}
// Bit n: work on the n-th stream that was created is done when it is waited for, as late as can be. On others it is done at once.
extern "C" __attribute__((visibility("default"))) void ds4EmulatorLate(unsigned long long streams) { CALL; simt::set_late(streams); }
// Streams no longer wait for events, nor nodes of graphs for those that they follow: a fault to be found.
extern "C" __attribute__((visibility("default"))) void ds4EmulatorDeaf(unsigned long long on) { CALL; deaf = on != 0; }
// The host no longer waits for events: a fault to be found.
extern "C" __attribute__((visibility("default"))) void ds4EmulatorHasty(unsigned long long on) { CALL; hasty = on != 0; }
// Graphs instantiated, launches of graphs, and nodes changed, since the process began; nodes of the largest graph since `ds4EmulatorReset`.
extern "C" __attribute__((visibility("default"))) void ds4EmulatorGraphs(size_t* four) { CALL; std::copy(counts, counts + 4, four); }
// Bytes of the device that each node of an instantiated graph takes from now on.
extern "C" __attribute__((visibility("default"))) void ds4EmulatorNode(size_t bytes) { CALL; simt::Exec::bytes_of_node = bytes; }
extern "C" __attribute__((visibility("default"))) void ds4EmulatorMemory(size_t bytes) { CALL; simt::set_capacity(bytes); }
// Bytes of host memory that may be page-locked at a time; more is refused.
extern "C" __attribute__((visibility("default"))) void ds4EmulatorLockable(size_t bytes) { CALL; lockable = bytes; }
// Bytes that are page-locked now.
extern "C" __attribute__((visibility("default"))) size_t ds4EmulatorLocked() { CALL; return locked; }
// Whether a device that is opened from now on shares the host's memory.
extern "C" __attribute__((visibility("default"))) void ds4EmulatorUnified(unsigned long long on) { CALL; unified = on != 0; }
// Calls whose names begin so answer that they are not supported; an empty name ends it.
extern "C" __attribute__((visibility("default"))) void ds4EmulatorLacks(const char* calls) { CALL; lacking = calls; }
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
    if (const char* bytes = std::getenv("DS4_EMU_LOCKABLE")) ds4EmulatorLockable(std::strtoull(bytes, nullptr, 10));
    if (const char* calls = std::getenv("DS4_EMU_LACKS")) ds4EmulatorLacks(calls);
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
        case 18: *value = unified; break;  // integrated
        case 75: *value = 9; break;      // compute capability
        case 76: *value = 0; break;
        case 97: *value = 227 * 1024; break;  // shared memory per block when opted in
        default: *value = 0;             // among them: no memory pools
    }
    return SUCCESS;
}
static int context;
static thread_local void* current_context;
API cuDevicePrimaryCtxRetain(void** out, int) { *out = &context; return SUCCESS; }
API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API cuCtxGetCurrent(void** out) { *out = current_context; return SUCCESS; }
API cuCtxSetCurrent(void* to) { current_context = to; return SUCCESS; }
API cuCtxSynchronize() { CALL; simt::finish_all(); return sticky; }

// ---- streams and events ----
API cuStreamCreate(void** out, unsigned) { CALL; *out = simt::create(); return SUCCESS; }
API cuStreamCreateWithPriority(void** out, unsigned, int) { CALL; *out = simt::create(); return SUCCESS; }
API cuStreamDestroy_v2(void* stream) { CALL; return drained(stream); }
API cuStreamSynchronize(void* stream) { CALL; return drained(stream); }
API cuStreamWaitEvent(void* stream, void* event, unsigned) {
    CALL;
    if (deaf) return sticky;
    return submit(stream, [mark = static_cast<simt::Event*>(event)->mark] { simt::finish(mark); });
}
API cuEventCreate(void** event, unsigned) { *event = new simt::Event; return SUCCESS; }
API cuEventDestroy_v2(void* event) { delete static_cast<simt::Event*>(event); return SUCCESS; }
API cuEventRecord(void* event, void* stream) {
    CALL;
    static_cast<simt::Event*>(event)->mark = simt::record(simt::stream(stream));
    return sticky;
}
API cuEventSynchronize(void* event) {
    CALL;
    if (!hasty) simt::finish(static_cast<simt::Event*>(event)->mark);
    return sticky;
}
API cuEventQuery(void* event) { return cuEventSynchronize(event); }
API cuEventElapsedTime_v2(float* milliseconds, void* from, void* to) {
    const auto &a = static_cast<simt::Event*>(from)->mark->at, &b = static_cast<simt::Event*>(to)->mark->at;
    *milliseconds = float(double(b.tv_sec - a.tv_sec) * 1e3 + double(b.tv_nsec - a.tv_nsec) * 1e-6);
    return SUCCESS;
}
API cuEventElapsedTime(float* milliseconds, void* from, void* to) { return cuEventElapsedTime_v2(milliseconds, from, to); }

// ---- graphs ----
API cuGraphCreate(void** out, unsigned) {
    CALL;
    if (lacks("cuGraphCreate")) return NOT_SUPPORTED;
    *out = new simt::Graph;
    return SUCCESS;
}
API cuGraphAddKernelNode_v2(void** out, void* graph, void* const* before, size_t count, const NodeParameters* parameters) {
    CALL;
    auto launch = noted(*parameters);
    if (launch == nullptr) return INVALID_VALUE;
    *out = static_cast<simt::Graph*>(graph)->add(std::move(launch), {before, before + (deaf ? 0 : count)});
    return *out == nullptr ? refused("a node that follows one of another graph") : SUCCESS;
}
API cuGraphInstantiateWithFlags(void** out, void* graph, unsigned long long) {
    CALL;
    if (lacks("cuGraphInstantiate")) return NOT_SUPPORTED;
    if (asked_to_fail("cuGraphInstantiate")) return refused("cuGraphInstantiate: a fault that was asked for");
    auto exec = std::make_unique<simt::Exec>(*static_cast<simt::Graph*>(graph));
    if (!exec->has_room()) return out_of_memory(exec->bytes());
    counts[0]++;
    counts[3] = std::max(counts[3], exec->nodes());
    *out = exec.release();
    return sticky;
}
API cuGraphExecKernelNodeSetParams_v2(void* exec, void* node, const NodeParameters* parameters) {
    CALL;
    if (lacks("cuGraphExecKernelNodeSetParams")) return NOT_SUPPORTED;
    if (asked_to_fail("cuGraphExecKernelNodeSetParams")) return refused("cuGraphExecKernelNodeSetParams: a fault that was asked for");
    auto launch = noted(*parameters);
    if (launch == nullptr) return INVALID_VALUE;
    counts[2]++;
    return static_cast<simt::Exec*>(exec)->set(node, std::move(launch)) ? sticky : refused("a node that the graph does not have");
}
API cuGraphNodeSetEnabled(void* exec, void* node, unsigned on) {
    CALL;
    if (lacks("cuGraphNodeSetEnabled")) return NOT_SUPPORTED;
    return static_cast<simt::Exec*>(exec)->enable(node, on != 0) ? sticky : refused("a node that the graph does not have");
}
API cuGraphLaunch(void* exec, void* stream) {
    CALL;
    if (lacks("cuGraphLaunch")) return NOT_SUPPORTED;
    counts[1]++;
    for (auto& launch : static_cast<simt::Exec*>(exec)->order())
        if (const Result result = submit(stream, [launch] { run(*launch); }); result != SUCCESS) return result;
    return sticky;
}
API cuGraphExecDestroy(void* exec) { CALL; delete static_cast<simt::Exec*>(exec); return SUCCESS; }
API cuGraphDestroy(void* graph) { delete static_cast<simt::Graph*>(graph); return SUCCESS; }

// ---- memory ----
API cuMemAlloc_v2(Pointer* out, size_t bytes) {
    CALL;
    if (sticky != SUCCESS) return sticky;
    if (bytes == 0) return refused("an allocation of 0 bytes");
    if (bytes >= no_room_once) no_room_once = SIZE_MAX;
    else if ((*out = simt::allocate(bytes)) != 0) return SUCCESS;
    return out_of_memory(bytes);
}
API cuMemFree_v2(Pointer at) { CALL; simt::finish_all(); return simt::release(at) ? SUCCESS : refused("free of an address that was not allocated"); }
API cuMemHostAlloc(void** out, size_t bytes, unsigned) {
    CALL;
    if (bytes > lockable - std::min(locked, lockable)) {
        reason = std::to_string(bytes) + " bytes cannot be page-locked";
        return OUT_OF_MEMORY;
    }
    *out = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (*out == nullptr) return OUT_OF_MEMORY;
    locked += bytes;
    std::memset(*out, 0xff, bytes);  // what nobody wrote is a NaN here too
    pinned[static_cast<char*>(*out)] = bytes;
    return SUCCESS;
}
API cuMemFreeHost(void* at) {
    CALL;
    simt::finish_all();
    const auto found = pinned.find(static_cast<char*>(at));
    if (found == pinned.end()) return refused("free of host memory that was not allocated");
    locked -= found->second;
    pinned.erase(found);
    std::free(at);
    return SUCCESS;
}
API cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t bytes, void* stream) {
    CALL;
    if (!simt::within(to, bytes)) return refused("copy of " + std::to_string(bytes) + " bytes to the device leaves its allocation");
    const auto bytes_of = static_cast<const unsigned char*>(from);
    if (is_pinned(from, bytes)) return submit(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), bytes_of, bytes); });
    // The caller may change pageable memory when the call returns.
    auto copy = std::make_shared<std::vector<unsigned char>>(bytes_of, bytes_of + bytes);
    return submit(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), copy->data(), bytes); });
}
API cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t bytes, void* stream) {
    CALL;
    if (!simt::within(from, bytes)) return refused("copy of " + std::to_string(bytes) + " bytes from the device leaves its allocation");
    const Result result = submit(stream, [=] { std::memcpy(to, reinterpret_cast<void*>(from), bytes); });
    // As a device does: pageable memory is there when the call returns.
    return is_pinned(to, bytes) ? result : drained(stream);
}
API cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, void* stream) {
    CALL;
    if (!simt::within(from, bytes) || !simt::within(to, bytes)) return refused("copy of " + std::to_string(bytes) + " bytes leaves an allocation");
    return submit(stream, [=] { std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); });
}
API cuMemsetD8Async(Pointer at, unsigned char value, size_t bytes, void* stream) {
    CALL;
    if (!simt::within(at, bytes)) return refused("set of " + std::to_string(bytes) + " bytes leaves its allocation");
    return submit(stream, [=] { std::memset(reinterpret_cast<void*>(at), value, bytes); });
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
API cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void* stream,
                   void** arguments, void**) {
    CALL;
    const auto launch = noted(function, dim3(gx, gy, gz), dim3(bx, by, bz), shared, arguments);
    return launch == nullptr ? INVALID_VALUE : submit(stream, [launch] { run(*launch); });
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
        case NOT_SUPPORTED: *out = "CUDA_ERROR_NOT_SUPPORTED"; break;
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
