// What the dialects of both devices are built on: threads as fibres, rendezvous, barriers, shared memory, and a register of kernels.
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace simt {

// Where a thread is. `dynamic` is the block's dynamic shared memory.
struct Thread {
    dim3 index, block;
    unsigned lane, warp, linear;
    unsigned char* dynamic;
};
extern thread_local Thread* current;
extern thread_local dim3 block_shape, grid_shape;

// What a warp operation is, so that lanes meeting in different ones are found.
enum class Operation : unsigned { Shuffle, Vote, Sync, Matrix, Load, Store };

constexpr unsigned SLOT = 16;  // bytes per lane in a rendezvous

// Waits until every lane of `mask` has come with the same operation; returns the 32 slots of SLOT bytes.
const unsigned char* meet(unsigned mask, Operation, const void* value, unsigned bytes);
void barrier();
// In which order threads get their turn: a number, 0 for ascending.
uint64_t order();
// Shared memory of one declaration in the running block; the same address for all its threads.
void* shared(unsigned declaration, size_t bytes);
[[noreturn]] void fail(const char* message, ...) __attribute__((format(printf, 1, 2)));

using Thunk = void (*)(void** arguments);
// Makes a kernel known by name, with the size of each parameter.
struct Kernel {
    Kernel(const char* name, Thunk, const size_t* sizes, size_t count);
};
template <class... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<std::remove_reference_t<A>>*>(arguments[I])...);
}
template <class... A>
void call(void (*kernel)(A...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<A...>{});
}
template <class... A>
struct Sizes {
    static constexpr size_t count = sizeof...(A);
    static constexpr size_t value[count + 1] = {sizeof(A)..., 0};
};
template <class... A>
Sizes<A...> sizes_of(void (*)(A...));

}  // namespace simt
