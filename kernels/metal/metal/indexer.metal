// Choosing the compressed rows that a query attends to: `kernels/core/src/ops/indexer.rs`.

constant constexpr uint SCORE_THREADS = 128;
constant constexpr uint ROW_BLOCKS = 4;  // blocks of an indexer row: a width of 128

// Four nibbles as a word of doubled values, in their order.
DEVICE uint twice_of_nibbles(uint nibbles) {
    uint word = 0;
    for (uint i = 0; i < 4; i++) word |= uint(e2m1_twice(nibbles >> (4 * i) & 15) & 0xff) << (8 * i);
    return word;
}

struct Score {
    uint stride, heads, dim;
    float factor;
};

// scores[token][row] = sum over heads of relu(query . row) * weight, heads ascending: a thread per row, grid (rows, tokens). Rows that a token does not
// see (from `seen[token]` on) are left alone. A block of 32 is an exact integer; blocks are added ascending with their two scales. `memory` has the
// token's codes, scales and weights.
kernel void index_scores(device const char* codes [[buffer(0)]], device const float* scales [[buffer(1)]], device const float* weights [[buffer(2)]],
                         device const uchar* rows [[buffer(3)]], device const uint* seen [[buffer(4)]], device float* scores [[buffer(5)]],
                         constant Score& c [[buffer(6)]], threadgroup uint* memory [[threadgroup(0)]], PLACE) {
    const uint token = group.y, row = group.x * SCORE_THREADS + thread_index, blocks = c.dim / 32;
    const uint words = c.heads * c.dim / 4, visible = seen[token];
    if (group.x * SCORE_THREADS >= visible) return;
    threadgroup float* of_block = reinterpret_cast<threadgroup float*>(memory + words);
    threadgroup float* of_head = of_block + c.heads * blocks;
    device const uint* query = reinterpret_cast<device const uint*>(codes + ulong(token) * c.heads * c.dim);
    for (uint i = thread_index; i < words; i += SCORE_THREADS) memory[i] = query[i];
    for (uint i = thread_index; i < c.heads * blocks; i += SCORE_THREADS) of_block[i] = scales[ulong(token) * c.heads * blocks + i];
    for (uint i = thread_index; i < c.heads; i += SCORE_THREADS) of_head[i] = weights[ulong(token) * c.heads + i] * c.factor;
    threads_meet();
    if (row >= visible) return;
    device const uchar* bytes = rows + ulong(row) * (c.dim / 2 + blocks);
    uint values[ROW_BLOCKS][8];
    float powers[ROW_BLOCKS];
    for (uint b = 0; b < ROW_BLOCKS && b < blocks; b++) {
        for (uint word = 0; word < 8; word++) {
            device const uchar* at = bytes + 16 * b + 2 * word;
            values[b][word] = twice_of_nibbles(uint(at[0]) | uint(at[1]) << 8);
        }
        powers[b] = stored_power(bytes[c.dim / 2 + b]);
    }
    float score = 0.0f;
    for (uint head = 0; head < c.heads; head++) {
        float dot = 0.0f;
        for (uint b = 0; b < ROW_BLOCKS && b < blocks; b++) {
            int integer = 0;
            for (uint i = 0; i < 8; i++) integer = dot_of_bytes(memory[head * (c.dim / 4) + 8 * b + i], values[b][i], integer);
            dot = fma(float(integer) * of_block[head * blocks + b], powers[b], dot);
        }
        score = fma(fmax(dot, 0.0f), of_head[head], score);
    }
    scores[ulong(token) * c.stride + row] = score;
}

// Bits in the order of the numbers.
DEVICE uint ordered(float x) {
    const uint bits = as_type<uint>(x);
    return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

constant constexpr uint PICK_THREADS = 256;

// How many of the group's threads before this one have the flag, and how many have it in all.
DEVICE uint2 rank_in_group(bool flag, threadgroup uint* of_simd, uint lane, uint simd) {
    const uint mine = flag, here = simd_sum(mine);
    if (lane == 0) of_simd[simd] = here;
    threads_meet();
    uint before = simd_prefix_exclusive_sum(mine), total = 0;
    for (uint other = 0; other < PICK_THREADS / LANES; other++) {
        if (other < simd) before += of_simd[other];
        total += of_simd[other];
    }
    threads_meet();
    return {before, total};
}

struct Pick {
    uint stride, k;
};

// The k best of a token's visible rows, ties to the lowest index, ascending; a group per token. `picks` is [tokens][k], `counts` how many there are.
// The k-th best key is found digit by digit, eight bits at a time.
kernel void pick_rows(device const float* scores [[buffer(0)]], device const uint* seen [[buffer(1)]], device uint* picks [[buffer(2)]],
                      device uint* counts [[buffer(3)]], constant Pick& c [[buffer(4)]], PLACE) {
    SHARED(atomic_uint, histogram, [256]);
    SHARED(uint, of_simd, [PICK_THREADS / LANES]);
    SHARED(uint, found, [2]);
    const uint token = group.x, visible = seen[token], k = c.k;
    device const float* of_token = scores + ulong(token) * c.stride;
    device uint* out = picks + ulong(token) * k;
    if (thread_index == 0) counts[token] = visible < k ? visible : k;
    if (visible <= k) {
        for (uint i = thread_index; i < visible; i += PICK_THREADS) out[i] = i;
        return;
    }
    uint prefix = 0, wanted = k;
    for (int shift = 24; shift >= 0; shift -= 8) {
        atomic_store_explicit(&histogram[thread_index], 0u, memory_order_relaxed);
        threads_meet();
        for (uint i = thread_index; i < visible; i += PICK_THREADS) {
            const uint key = ordered(of_token[i]);
            if (shift == 24 || key >> (shift + 8) == prefix)
                atomic_fetch_add_explicit(&histogram[key >> shift & 255], 1u, memory_order_relaxed);
        }
        threads_meet();
        if (thread_index == 0) {
            uint digit = 255, better = 0;
            for (;; digit--) {
                const uint here = atomic_load_explicit(&histogram[digit], memory_order_relaxed);
                if (better + here >= wanted) break;
                better += here;
            }
            found[0] = digit;
            found[1] = wanted - better;
        }
        threads_meet();
        prefix = prefix << 8 | found[0];
        wanted = found[1];
    }
    // `prefix` is the k-th best key; `wanted` of those equal to it are taken, the first ones.
    uint written = 0, ties = 0;
    for (uint from = 0; from < visible; from += PICK_THREADS) {
        const uint i = from + thread_index;
        const uint key = i < visible ? ordered(of_token[i]) : 0;
        const bool tie = i < visible && key == prefix;
        const uint2 of_ties = rank_in_group(tie, of_simd, lane, simd);
        const bool kept = i < visible && (key > prefix || (tie && ties + of_ties.x < wanted));
        const uint2 of_kept = rank_in_group(kept, of_simd, lane, simd);
        if (kept) out[written + of_kept.x] = i;
        ties += of_ties.y;
        written += of_kept.y;
    }
}
