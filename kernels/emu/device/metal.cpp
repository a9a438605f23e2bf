// What the emulated Metal driver calls: memory, and launches that run when they are called.
#include "metal.h"

#include <map>
#include <string>
#include <vector>

#include "block.h"
#include "memory.h"
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace {

std::map<std::string, std::vector<simt::Parameter>>& parameters() {
    static std::map<std::string, std::vector<simt::Parameter>> all;
    return all;
}

std::string reason;
bool flushing = false;

// Results and operands below the normal numbers are zero while a launch runs, as a device may have it.
struct Flush {
#if defined(__x86_64__)
    unsigned before = _mm_getcsr();
    Flush() {
        if (flushing) _mm_setcsr(before | 0x8040);
    }
    ~Flush() { _mm_setcsr(before); }
#endif
};

}  // namespace

namespace simt {

MetalKernel::MetalKernel(const char* name, Thunk thunk, const Parameter* of_kernel, size_t count) {
    std::vector<size_t> sizes;
    for (size_t i = 0; i < count; i++) sizes.push_back(of_kernel[i].size);
    Kernel(name, thunk, sizes.data(), count);
    parameters()[name] = std::vector<Parameter>(of_kernel, of_kernel + count);
}

}  // namespace simt

#define API extern "C" __attribute__((visibility("default")))

API void ds4MetalOrder(unsigned long seed) { simt::set_order(seed); }
API void ds4MetalMemory(size_t bytes) { simt::set_capacity(bytes); }
API void ds4MetalFlush(int on) { flushing = on != 0; }
API size_t ds4MetalCapacity() { return simt::capacity(); }
API size_t ds4MetalUsed() { return simt::in_use(); }
// Address of NaN bytes with guards around them; 0 when there is no room.
API unsigned long ds4MetalAllocate(size_t bytes) { return simt::allocate(bytes); }
API int ds4MetalRelease(unsigned long address) { return simt::release(address); }

// Kinds and sizes of a kernel's parameters; returns their number, or -1 for an unknown name.
API int ds4MetalParameters(const char* name, char* kinds, size_t* sizes, size_t room) {
    const auto found = parameters().find(name);
    if (found == parameters().end()) return -1;
    for (size_t i = 0; i < found->second.size() && i < room; i++) {
        kinds[i] = found->second[i].kind;
        sizes[i] = found->second[i].size;
    }
    return int(found->second.size());
}

// Runs a grid; null when it ran to its end, else what was wrong.
API const char* ds4MetalLaunch(const char* name, unsigned x, unsigned y, unsigned threads, unsigned shared, void** arguments) {
    const simt::Entry* entry = simt::find(name);
    if (entry == nullptr) {
        reason = std::string("no kernel of the name ") + name;
        return reason.c_str();
    }
    const Flush flush;
    // What a group has on Apple silicon (Metal Feature Set Tables), less what the host asked for.
    simt::limit_shared(32 * 1024 - shared);
    reason = simt::launch(*entry, dim3(x, y), dim3(threads), shared, arguments);
    if (reason.empty()) {
        reason = simt::damaged();
        if (!reason.empty()) reason = entry->name + ": " + reason;
    }
    return reason.empty() ? nullptr : reason.c_str();
}
