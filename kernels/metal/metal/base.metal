// What every kernel starts from.
//
// Exactness: nothing is fused but `fma` (contraction off, math mode safe), divisions and roots are IEEE, and every order of additions is that of
// `kernels/core`, so that a result has the bits of the scalar reference.
#include <metal_stdlib>
using namespace metal;
#pragma METAL fp math_mode(safe)
#pragma METAL fp contract(off)

// The names by which `math.cuh`, `codec.cuh` and `grid.cuh` of `kernels/cuda/cu` call what each dialect has.
#define DEVICE static inline
#define TABLE static constant const
#define GIVEN device const
#define fmaf fma
#define fmaxf fmax
#define fminf fmin
#define fabsf fabs
#define sqrtf sqrt
DEVICE int __float_as_int(float x) { return as_type<int>(x); }
DEVICE uint __float_as_uint(float x) { return as_type<uint>(x); }
DEVICE float __int_as_float(int x) { return as_type<float>(x); }
DEVICE float __uint_as_float(uint x) { return as_type<float>(x); }
DEVICE float half_to_float(ushort bits) { return float(as_type<half>(bits)); }
DEVICE ushort float_to_half(float x) { return as_type<ushort>(half(x)); }

// Lanes of a SIMD group, and of the one order in which f32 products are added (`kernels/core/src/dot.rs`).
constant constexpr uint LANES = 32;

// Where a thread is: its group in the grid, and its number, lane and SIMD group within that.
#define PLACE                                                                                   \
    uint2 group [[threadgroup_position_in_grid]], uint2 threads [[threads_per_threadgroup]],    \
        uint thread_index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]], \
        uint simd [[simdgroup_index_in_threadgroup]]

// The emulator gives such an array its own memory, NaN until it is written. In the outermost block of a kernel only.
#ifndef SHARED
#define SHARED(T, name, dims) threadgroup T name dims
#endif

// A loop over numbers that are registers: matrices cannot be found by an index.
#define UNROLL _Pragma("clang loop unroll(full)")

// Rust's clamp: what is no number stays no number.
DEVICE float bounded(float x, float low, float high) { return x < low ? low : (x > high ? high : x); }

// Halves the lanes until one is left: lane i takes lane i + step. Lane 0 has the sum.
DEVICE float fold_lanes(float x) {
    for (ushort step = LANES / 2; step > 0; step /= 2) x += simd_shuffle_down(x, step);
    return x;
}
DEVICE float max_of_lanes(float x) {
    for (ushort step = LANES / 2; step > 0; step /= 2) x = fmax(x, simd_shuffle_xor(x, step));
    return x;
}

// Makes what a SIMD group's lanes wrote to threadgroup memory known among them.
DEVICE void lanes_meet() { simdgroup_barrier(mem_flags::mem_threadgroup); }
DEVICE void threads_meet() { threadgroup_barrier(mem_flags::mem_threadgroup); }
