#include "block.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>

#include "fibre.h"

namespace simt {

thread_local Thread* current;
thread_local dim3 block_shape, grid_shape;

namespace {

// Lanes of one mask on their way to each other. Two rounds of slots: a fast lane may come again before a slow one has read.
struct Rendezvous {
    unsigned mask = 0, arrived = 0, round = 0, unread = 0;
    Operation operation = Operation::Sync;
    unsigned char slots[2][32 * SLOT];
};

struct Warp {
    Rendezvous meetings[4];
};

struct Running {
    Fibre fibre;
    Thread thread;
    const unsigned* waits_for = nullptr;  // goes on when this differs from `seen`
    unsigned seen = 0;
    const char* where = "";
    bool done = false;
};

struct Block {
    void* scheduler = nullptr;
    std::vector<Running> threads;
    std::vector<Warp> warps;
    std::vector<unsigned> order;
    std::vector<unsigned char> dynamic, statics;
    std::vector<size_t> offsets;  // of static shared memory by declaration; SIZE_MAX: not met yet
    size_t used = 0;
    unsigned count = 0, finished = 0, at_barrier = 0, barriers = 0;
    Running* running = nullptr;
    Thunk thunk = nullptr;
    void** arguments = nullptr;
    std::string failure;
};

// Shared memory of a block on the devices that the kernels are built for (sm_90: 227 KiB).
constexpr size_t STATIC_SHARED = 228 * 1024;
constexpr size_t NOT_MET = SIZE_MAX;
size_t shared_limit = STATIC_SHARED;

thread_local Block* block;
uint64_t order_seed = 0;

std::map<std::string, Entry>& registry() {
    static std::map<std::string, Entry> kernels;
    return kernels;
}

uint64_t next(uint64_t& state) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

void to_scheduler() { simt_switch(&block->running->fibre.pointer, block->scheduler); }

void wait(const unsigned& counter, unsigned seen, const char* where) {
    Running& me = *block->running;
    me.waits_for = &counter;
    me.seen = seen;
    me.where = where;
    to_scheduler();
}

void entry() {
    block->thunk(block->arguments);
    block->running->done = true;
    block->finished++;
    to_scheduler();
    __builtin_unreachable();
}

void arrange(Block& b) {
    b.order.resize(b.count);
    std::iota(b.order.begin(), b.order.end(), 0u);
    if (order_seed == 1) {
        std::vector<unsigned> reversed(b.order.rbegin(), b.order.rend());
        b.order = reversed;
    } else if (order_seed > 1) {
        uint64_t state = order_seed * 0x9e3779b97f4a7c15ull + 1;
        for (unsigned i = b.count; i > 1; i--) std::swap(b.order[i - 1], b.order[next(state) % i]);
        // A warp's threads together, warps by the first of them.
        std::vector<unsigned> place(b.count), first(b.warps.size());
        for (unsigned i = b.count; i-- > 0;) first[b.order[i] / 32] = place[b.order[i]] = i;
        std::sort(b.order.begin(), b.order.end(), [&](unsigned left, unsigned right) {
            return std::pair(first[left / 32], place[left]) < std::pair(first[right / 32], place[right]);
        });
    }
}

void set_up(Block& b, dim3 shape, unsigned dynamic) {
    b.count = shape.x * shape.y * shape.z;
    if (b.threads.size() < b.count) b.threads.resize(b.count);
    b.warps.assign((b.count + 31) / 32, Warp{});
    b.dynamic.resize(dynamic + 256);
    b.statics.resize(STATIC_SHARED + 256, 0xff);
    arrange(b);
}

unsigned char* aligned(std::vector<unsigned char>& bytes) {
    return reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(bytes.data()) + 127) & ~uintptr_t(127));
}

void start(Block& b, dim3 index, dim3 shape) {
    std::fill(b.dynamic.begin(), b.dynamic.end(), 0xff);
    std::fill(b.statics.begin(), b.statics.begin() + (b.used + 256), 0xff);
    b.offsets.assign(b.offsets.size(), NOT_MET);
    b.used = 0;
    b.finished = b.at_barrier = 0;
    for (Warp& warp : b.warps)
        for (Rendezvous& meeting : warp.meetings) meeting.mask = meeting.arrived = meeting.unread = 0;
    for (unsigned i = 0; i < b.count; i++) {
        Running& running = b.threads[i];
        running.done = false;
        running.waits_for = nullptr;
        const dim3 at(i % shape.x, i / shape.x % shape.y, i / (shape.x * shape.y));
        running.thread = Thread{at, index, i % 32, i / 32, i, aligned(b.dynamic)};
        prepare(running.fibre, entry, i);
    }
}

void deadlock(Block& b) {
    for (unsigned i = 0; i < b.count; i++) {
        const Running& running = b.threads[i];
        if (running.done) continue;
        char text[256];
        std::snprintf(text, sizeof text, "thread %u of block (%u,%u,%u) waits in %s for ever: %u of %u threads have returned", i,
                      running.thread.block.x, running.thread.block.y, running.thread.block.z, running.where, b.finished, b.count);
        b.failure = text;
        return;
    }
}

// Lets a thread run until it waits; false when it is done or still waits.
bool advance(Block& b, unsigned thread) {
    Running& running = b.threads[thread];
    if (running.done || (running.waits_for != nullptr && *running.waits_for == running.seen)) return false;
    running.waits_for = nullptr;
    b.running = &running;
    current = &running.thread;
    simt_switch(&b.scheduler, running.fibre.pointer);
    return true;
}

// Lets the threads of order[from..to] run in turn, `far`: for as long as any of them can.
bool advance(Block& b, unsigned from, unsigned to, bool far) {
    bool any = false, again = true;
    while (again && b.failure.empty()) {
        bool some = false;
        for (unsigned at = from; at < to && b.failure.empty(); at++) some |= advance(b, b.order[at]);
        any |= some;
        again = far && some;
    }
    return any;
}

// Ascending and descending all threads go on side by side; in other orders one warp goes as far as it can before the next begins, as a device may have it.
void run(Block& b) {
    const bool far = order_seed > 1;
    while (b.finished < b.count && b.failure.empty()) {
        bool progress = false;
        for (unsigned from = 0; from < b.count && b.failure.empty();) {
            unsigned to = from + 1;
            while (to < b.count && b.order[to] / 32 == b.order[from] / 32) to++;
            progress |= advance(b, from, to, far);
            from = to;
        }
        if (!progress) deadlock(b);
    }
}

// A permutation of 0..n by the order's seed: blocks must not rely on each other's order either.
uint64_t permuted(uint64_t i, uint64_t n) {
    if (order_seed == 0 || n < 2) return i;
    if (order_seed == 1) return n - 1 - i;
    uint64_t factor = (order_seed * 2654435761u) % n | 1;
    while (std::gcd(factor, n) != 1) factor += 2;
    return (i * (factor % n) + order_seed % n) % n;
}

}  // namespace

void fail(const char* message, ...) {
    char text[256];
    va_list arguments;
    va_start(arguments, message);
    std::vsnprintf(text, sizeof text, message, arguments);
    va_end(arguments);
    char all[400];
    std::snprintf(all, sizeof all, "%s (thread %u of block (%u,%u,%u))", text, current->linear, current->block.x, current->block.y,
                  current->block.z);
    block->failure = all;
    to_scheduler();  // never comes back
    std::abort();
}

void barrier() {
    const unsigned seen = block->barriers;
    if (++block->at_barrier == block->count) {
        block->at_barrier = 0;
        block->barriers++;
    } else {
        wait(block->barriers, seen, "__syncthreads");
    }
}

const unsigned char* meet(unsigned mask, Operation operation, const void* value, unsigned bytes) {
    const unsigned lane = current->lane;
    if (((mask >> lane) & 1) == 0) fail("lane %u calls a warp operation without being in its mask %08x", lane, mask);
    Rendezvous* meeting = nullptr;
    for (Rendezvous& open : block->warps[current->warp].meetings) {
        // The one that these lanes used last has a second round of slots for those who have not read the first.
        const bool free = meeting == nullptr && open.arrived == 0 && open.unread == 0;
        if (open.mask == mask || free) meeting = &open;
        if (open.mask == mask) break;
    }
    if (meeting == nullptr) fail("more than 4 masks of one warp wait at a time");
    if (meeting->arrived == 0) {
        meeting->mask = mask;
        meeting->operation = operation;
    }
    if (meeting->operation != operation) fail("lanes of mask %08x meet in different warp operations", mask);
    const unsigned round = meeting->round;
    unsigned char* slots = meeting->slots[round & 1];
    std::memcpy(slots + lane * SLOT, value, bytes);
    if (++meeting->arrived == unsigned(__builtin_popcount(mask))) {
        meeting->unread = meeting->arrived - 1;
        meeting->arrived = 0;
        meeting->round++;
    } else {
        wait(meeting->round, round, "a warp operation");
        meeting->unread--;
    }
    return slots;
}

void* shared(unsigned declaration, size_t bytes) {
    if (block->offsets.size() <= declaration) block->offsets.resize(declaration + 1, NOT_MET);
    size_t& offset = block->offsets[declaration];
    if (offset == NOT_MET) {
        offset = block->used;
        block->used += (bytes + 127) / 128 * 128;
        if (block->used > shared_limit) fail("a block uses %zu bytes of shared memory", block->used);
    }
    return aligned(block->statics) + offset;
}

Kernel::Kernel(const char* name, Thunk thunk, const size_t* sizes, size_t count) {
    registry()[name] = Entry{name, thunk, std::vector<size_t>(sizes, sizes + count)};
}

const Entry* find(const std::string& name) {
    const auto found = registry().find(name);
    return found == registry().end() ? nullptr : &found->second;
}

void limit_shared(size_t bytes) { shared_limit = bytes < STATIC_SHARED ? bytes : STATIC_SHARED; }
void set_order(uint64_t seed) { order_seed = seed; }
uint64_t order() { return order_seed; }

std::string launch(const Entry& kernel, dim3 grid, dim3 shape, unsigned dynamic, void** arguments) {
    static thread_local Block blocks;
    block = &blocks;
    block->thunk = kernel.thunk;
    block->arguments = arguments;
    block->failure.clear();
    block_shape = shape;
    grid_shape = grid;
    set_up(*block, shape, dynamic);
    const uint64_t count = uint64_t(grid.x) * grid.y * grid.z;
    for (uint64_t i = 0; i < count && block->failure.empty(); i++) {
        const uint64_t at = permuted(i, count);
        const dim3 index(unsigned(at % grid.x), unsigned(at / grid.x % grid.y), unsigned(at / (uint64_t(grid.x) * grid.y)));
        start(*block, index, shape);
        run(*block);
    }
    return block->failure.empty() ? "" : kernel.name + ": " + block->failure;
}

}  // namespace simt
