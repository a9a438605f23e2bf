// What the tensor cores do at most: products of bytes whose operands stay in registers.
#include "mma.cuh"

constexpr int CHAINS = 8;  // products that do not wait for each other

// Every warp multiplies `rounds` times CHAINS tiles of the same operands (a's four words, then b's two); a thread's sums as one number in `out`.
GLOBAL peak_bytes(const unsigned* __restrict__ operands, int* __restrict__ out, unsigned rounds) {
    const unsigned a[4] = {operands[0], operands[1], operands[2], operands[3]}, b[2] = {operands[4], operands[5]};
    int sums[CHAINS][4] = {};
    for (unsigned round = 0; round < rounds; round++) {
#pragma unroll
        for (int chain = 0; chain < CHAINS; chain++) mma_bytes(sums[chain], a, b);
    }
    int sum = 0;
    for (int chain = 0; chain < CHAINS; chain++)
        for (int i = 0; i < 4; i++) sum += sums[chain][i];
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
KERNEL(peak_bytes)
