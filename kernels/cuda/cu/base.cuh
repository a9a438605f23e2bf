// What every kernel starts from. Compiles with nvcc, and as C++ with the emulator's `simt.h`.
//
// Exactness: nothing is fused but `fmaf` (build with -fmad=false), divisions and roots are IEEE, and every order of additions is that of
// `kernels/core`, so that a result has the bits of the scalar reference on every device.
#pragma once
#ifdef __CUDACC__
#include <cuda_fp16.h>
#include <stdint.h>
#define KERNEL(name)
#define SHARED(T, name, dims) __shared__ T name dims
#define DYNAMIC_SHARED(T, name)                          \
    extern __shared__ __align__(16) unsigned char raw[]; \
    T* name = reinterpret_cast<T*>(raw)
static __device__ __forceinline__ float half_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
static __device__ __forceinline__ uint16_t float_to_half(float x) { return __half_as_ushort(__float2half_rn(x)); }
#else
#include "simt.h"
#endif

#define GLOBAL extern "C" __global__ void
#define DEVICE static __device__ __forceinline__
// `math.cuh`, `codec.cuh` and `grid.cuh` are Metal's too, where tables and what a kernel is given have address spaces of their own.
#define TABLE static __device__ const
#define GIVEN const

// Lanes of a warp, and of the one order in which f32 products are added (`kernels/core/src/dot.rs`).
constexpr int LANES = 32;
constexpr unsigned ALL = 0xffffffffu;

DEVICE int lane_of_thread() { return threadIdx.x & 31; }
DEVICE int warp_of_thread() { return threadIdx.x >> 5; }

// Rust's clamp: what is no number stays no number.
DEVICE float bounded(float x, float low, float high) { return x < low ? low : (x > high ? high : x); }

// Halves the lanes until one is left: lane i takes lane i + half. Lane 0 has the sum.
DEVICE float fold_lanes(float x) {
    for (int half = LANES / 2; half > 0; half /= 2) x += __shfl_down_sync(ALL, x, half);
    return x;
}
DEVICE float max_of_lanes(float x) {
    for (int half = LANES / 2; half > 0; half /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, half));
    return x;
}

DEVICE unsigned load_u32(const uint8_t* at) {  // 4-aligned
    return *reinterpret_cast<const unsigned*>(at);
}
DEVICE uint16_t load_u16(const uint8_t* at) {  // 2-aligned
    return *reinterpret_cast<const uint16_t*>(at);
}
