// Choosing the compressed rows that a query attends to: `kernels/core/src/ops/indexer.rs`.
#include "codec.cuh"

constexpr unsigned SCORE_THREADS = 128;

// 8 nibbles as two words of doubled values, in their order.
DEVICE void twice_of_word(unsigned nibbles, int* out) {
    for (int half = 0; half < 2; half++) {
        unsigned word = 0;
        for (int i = 0; i < 4; i++) word |= unsigned(e2m1_twice(nibbles >> (16 * half + 4 * i) & 15) & 0xff) << (8 * i);
        out[half] = int(word);
    }
}

// scores[token][row] = sum over heads of relu(query . row) * weight, heads ascending: a thread per row, grid (rows, tokens). Rows that a token does not
// see (from `seen[token]` on) are left alone. A block of 32 is an exact integer; blocks are added ascending with their two scales.
// Dynamic shared memory: the token's codes, scales and weights.
GLOBAL __launch_bounds__(SCORE_THREADS)
    index_scores(const int8_t* __restrict__ codes, const float* __restrict__ scales, const float* __restrict__ weights,
                 const uint8_t* __restrict__ rows, const unsigned* __restrict__ seen, float* __restrict__ scores, unsigned stride,
                 unsigned heads, unsigned dim, float factor) {
    DYNAMIC_SHARED(int, shared);
    const unsigned token = blockIdx.y, row = blockIdx.x * SCORE_THREADS + threadIdx.x, blocks = dim / 32;
    const unsigned words = heads * dim / 4, visible = seen[token];
    if (blockIdx.x * SCORE_THREADS >= visible) return;
    float* of_block = reinterpret_cast<float*>(shared + words);
    float* of_head = of_block + heads * blocks;
    const int* query = reinterpret_cast<const int*>(codes + size_t(token) * heads * dim);
    for (unsigned i = threadIdx.x; i < words; i += SCORE_THREADS) shared[i] = query[i];
    for (unsigned i = threadIdx.x; i < heads * blocks; i += SCORE_THREADS) of_block[i] = scales[size_t(token) * heads * blocks + i];
    for (unsigned i = threadIdx.x; i < heads; i += SCORE_THREADS) of_head[i] = weights[size_t(token) * heads + i] * factor;
    __syncthreads();
    if (row >= visible) return;
    const uint8_t* bytes = rows + size_t(row) * (dim / 2 + blocks);
    constexpr unsigned MOST = 4;  // blocks of a row: a width of 128
    int values[MOST][8];
    float powers[MOST];
#pragma unroll
    for (unsigned b = 0; b < MOST; b++) {
        if (b >= blocks) break;
        for (int word = 0; word < 4; word++) {
            unsigned nibbles = 0;
            for (int i = 0; i < 4; i++) nibbles |= unsigned(bytes[16 * b + 4 * word + i]) << (8 * i);
            twice_of_word(nibbles, &values[b][2 * word]);
        }
        powers[b] = stored_power(bytes[dim / 2 + b]);
    }
    float score = 0.0f;
    for (unsigned head = 0; head < heads; head++) {
        float dot = 0.0f;
#pragma unroll
        for (unsigned b = 0; b < MOST; b++) {
            if (b >= blocks) break;
            int integer = 0;
            for (int i = 0; i < 8; i++) integer = __dp4a(shared[head * (dim / 4) + 8 * b + i], values[b][i], integer);
            dot = fmaf(float(integer) * of_block[head * blocks + b], powers[b], dot);
        }
        score = fmaf(fmaxf(dot, 0.0f), of_head[head], score);
    }
    scores[size_t(token) * stride + row] = score;
}
KERNEL(index_scores)

// Bits in the order of the numbers.
DEVICE unsigned ordered(float x) {
    const unsigned bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

constexpr unsigned PICK_THREADS = 256;

// How many of the block's threads before this one have the flag, and how many have it in all.
DEVICE uint2 rank_in_block(bool flag, unsigned* of_warp) {
    const unsigned votes = __ballot_sync(ALL, flag), lane = lane_of_thread();
    if (lane == 0) of_warp[warp_of_thread()] = __popc(votes);
    __syncthreads();
    unsigned before = __popc(votes & ((1u << lane) - 1)), total = 0;
    for (unsigned warp = 0; warp < PICK_THREADS / LANES; warp++) {
        if (warp < unsigned(warp_of_thread())) before += of_warp[warp];
        total += of_warp[warp];
    }
    __syncthreads();
    return {before, total};
}

// The k best of a token's visible rows, ties to the lowest index, ascending; a block per token. `picks` is [tokens][k], `counts` how many there are.
// The k-th best key is found digit by digit, eight bits at a time.
GLOBAL __launch_bounds__(PICK_THREADS)
    pick_rows(const float* __restrict__ scores, const unsigned* __restrict__ seen, unsigned* __restrict__ picks,
              unsigned* __restrict__ counts, unsigned stride, unsigned k) {
    SHARED(unsigned, histogram, [256]);
    SHARED(unsigned, of_warp, [PICK_THREADS / LANES]);
    SHARED(unsigned, found, [2]);
    const unsigned token = blockIdx.x, visible = seen[token];
    const float* of_token = scores + size_t(token) * stride;
    unsigned* out = picks + size_t(token) * k;
    if (threadIdx.x == 0) counts[token] = visible < k ? visible : k;
    if (visible <= k) {
        for (unsigned i = threadIdx.x; i < visible; i += PICK_THREADS) out[i] = i;
        return;
    }
    unsigned prefix = 0, wanted = k;
    for (int shift = 24; shift >= 0; shift -= 8) {
        histogram[threadIdx.x] = 0;
        __syncthreads();
        for (unsigned i = threadIdx.x; i < visible; i += PICK_THREADS) {
            const unsigned key = ordered(of_token[i]);
            if (shift == 24 || key >> (shift + 8) == prefix) atomicAdd(&histogram[key >> shift & 255], 1u);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            unsigned digit = 255, better = 0;
            while (better + histogram[digit] < wanted) better += histogram[digit--];
            found[0] = digit;
            found[1] = wanted - better;
        }
        __syncthreads();
        prefix = prefix << 8 | found[0];
        wanted = found[1];
    }
    // `prefix` is the k-th best key; `wanted` of those equal to it are taken, the first ones.
    unsigned written = 0, ties = 0;
    for (unsigned from = 0; from < visible; from += PICK_THREADS) {
        const unsigned i = from + threadIdx.x;
        const unsigned key = i < visible ? ordered(of_token[i]) : 0;
        const bool tie = i < visible && key == prefix;
        const uint2 of_ties = rank_in_block(tie, of_warp);
        const bool kept = i < visible && (key > prefix || (tie && ties + of_ties.x < wanted));
        const uint2 of_kept = rank_in_block(kept, of_warp);
        if (kept) out[written + of_kept.x] = i;
        ties += of_ties.y;
        written += of_kept.y;
    }
}
KERNEL(pick_rows)
