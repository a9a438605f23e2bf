// Many small copies in one launch: a block per copy.
#include "base.cuh"

GLOBAL copy_segments(const uint64_t* __restrict__ from, const uint64_t* __restrict__ to, const unsigned* __restrict__ bytes) {
    const uint8_t* source = reinterpret_cast<const uint8_t*>(from[blockIdx.x]);
    uint8_t* target = reinterpret_cast<uint8_t*>(to[blockIdx.x]);
    for (unsigned i = threadIdx.x; i < bytes[blockIdx.x]; i += blockDim.x) target[i] = source[i];
}
KERNEL(copy_segments)
