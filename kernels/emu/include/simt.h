// The dialect of CUDA C++ that the kernels use, for an ordinary C++ compiler: a CUDA thread is a fibre, a warp operation a rendezvous.
//
// What differs from a device, on purpose: memory that nobody wrote is NaN (bytes 0xff), a warp operation names its participants exactly, a barrier
// must be reached by every thread of the block, and all arithmetic is IEEE without contraction (compile with -ffp-contract=off).
#pragma once
#include <cmath>
#include <cstring>

#include "threads.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __constant__ static const

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }

#define KERNEL(name)                                                                                              \
    static const ::simt::Kernel kernel_##name(                                                                    \
        #name, [](void** arguments) { ::simt::call(&name, arguments); },                                          \
        decltype(::simt::sizes_of(&name))::value, decltype(::simt::sizes_of(&name))::count);
// `SHARED(float, sums, [32])` declares shared memory that is NaN until it is written.
#define SHARED(T, name, dims)                                                                                     \
    using name##_type = T dims;                                                                                   \
    name##_type& name = *static_cast<name##_type*>(::simt::shared(__COUNTER__, sizeof(name##_type)))
#define DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(::simt::current->dynamic)

#define threadIdx (::simt::current->index)
#define blockIdx (::simt::current->block)
#define blockDim (::simt::block_shape)
#define gridDim (::simt::grid_shape)

static inline void __syncthreads() { ::simt::barrier(); }
static inline void __syncwarp(unsigned mask = ~0u) {
    const int none = 0;
    ::simt::meet(mask, ::simt::Operation::Sync, &none, sizeof none);
}

namespace simt {
template <class T>
T shuffle(unsigned mask, T value, unsigned source) {
    static_assert(sizeof(T) <= SLOT, "a lane deposits at most SLOT bytes");
    const unsigned char* slots = meet(mask, Operation::Shuffle, &value, sizeof value);
    if (((mask >> source) & 1) == 0) fail("lane %u shuffles from lane %u, which is not in mask %08x", current->lane, source, mask);
    T result;
    std::memcpy(&result, slots + source * SLOT, sizeof result);
    return result;
}
}  // namespace simt
template <class T>
static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const unsigned lane = ::simt::current->lane;
    return ::simt::shuffle(mask, value, (lane & ~(width - 1u)) | (source & (width - 1)));
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int other) {
    return ::simt::shuffle(mask, value, (::simt::current->lane ^ other) & 31);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, unsigned width = 32) {
    const unsigned lane = ::simt::current->lane, last = lane | (width - 1);
    return ::simt::shuffle(mask, value, lane + delta > last ? lane : lane + delta);
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, unsigned width = 32) {
    const unsigned lane = ::simt::current->lane, first = lane & ~(width - 1);
    return ::simt::shuffle(mask, value, lane < first + delta ? lane : lane - delta);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) {
    const unsigned vote = predicate != 0;
    const unsigned char* slots = ::simt::meet(mask, ::simt::Operation::Vote, &vote, sizeof vote);
    unsigned result = 0;
    for (unsigned lane = 0; lane < 32; lane++)
        if ((mask >> lane) & 1) result |= unsigned(slots[lane * ::simt::SLOT]) << lane;
    return result;
}

static inline int __dp4a(int a, int b, int sum) {
    for (int byte = 0; byte < 4; byte++) sum += int(int8_t(a >> 8 * byte)) * int(int8_t(b >> 8 * byte));
    return sum;
}
// The byte of `low` and `high` together that each nibble of the selector names. (A device's selector has a fourth bit, which the kernels leave 0.)
static inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const uint64_t all = uint64_t(high) << 32 | low;
    unsigned result = 0;
    for (int byte = 0; byte < 4; byte++) result |= unsigned(all >> 8 * (selector >> 4 * byte & 7) & 0xff) << 8 * byte;
    return result;
}
namespace simt {
// The warp's product of signed bytes, c += a . b, with the fragments of `cu/mma.cuh`: a lane finds the words of its rows and tokens with the
// lanes that hold them.
static inline void mma_m16n8k32(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    const unsigned g = current->lane / 4, t = current->lane % 4;
    unsigned words[4][4], tokens[8][2];
    const unsigned char* slots = meet(~0u, Operation::Matrix, a, sizeof a);
    for (unsigned k = 0; k < 4; k++) std::memcpy(words[k], slots + (4 * g + k) * SLOT, sizeof a);
    slots = meet(~0u, Operation::Matrix, b, sizeof b);
    for (unsigned of = 0; of < 8; of++) std::memcpy(tokens[of], slots + (4 * (2 * t + of / 4) + of % 4) * SLOT, sizeof b);
    for (unsigned i = 0; i < 4; i++)
        for (unsigned k = 0; k < 4; k++)
            for (unsigned upper = 0; upper < 2; upper++)
                c[i] = __dp4a(int(words[k][2 * upper + i / 2]), int(tokens[4 * (i % 2) + k][upper]), c[i]);
}
}  // namespace simt
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __float_as_int(float x) { int r; std::memcpy(&r, &x, 4); return r; }
static inline unsigned __float_as_uint(float x) { unsigned r; std::memcpy(&r, &x, 4); return r; }
static inline float __int_as_float(int x) { float r; std::memcpy(&r, &x, 4); return r; }
static inline float __uint_as_float(unsigned x) { float r; std::memcpy(&r, &x, 4); return r; }
// A half as its bits: the arithmetic is done in float.
static inline float half_to_float(uint16_t bits) { _Float16 h; std::memcpy(&h, &bits, 2); return float(h); }
static inline uint16_t float_to_half(float x) { const _Float16 h = _Float16(x); uint16_t r; std::memcpy(&r, &h, 2); return r; }
static inline int atomicAdd(int* at, int value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
static inline unsigned atomicAdd(unsigned* at, unsigned value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
static inline unsigned atomicOr(unsigned* at, unsigned value) { return __atomic_fetch_or(at, value, __ATOMIC_RELAXED); }
