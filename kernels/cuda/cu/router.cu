// Routing tokens to experts: `kernels/core/src/ops/experts.rs`.
#include "math.cuh"

constexpr unsigned MOST_USED = 16;  // experts of a token

// The experts of each token, ascending, with their weights: a warp per token. Chosen by biased probability, ties to the lowest index, or by the
// token's id where `table` ([vocabulary][used]) is given. `logits` is [tokens][count]; probabilities replace it.
GLOBAL route(float* __restrict__ logits, const float* __restrict__ bias, const int* __restrict__ table, const unsigned* __restrict__ tokens,
             unsigned* __restrict__ experts, float* __restrict__ weights, unsigned count, unsigned used, float scale) {
    const unsigned token = blockIdx.x, lane = lane_of_thread();
    float* p = logits + size_t(token) * count;
    for (unsigned i = lane; i < count; i += LANES) p[i] = sqrtf(softplus(p[i]));
    __syncwarp();
    SHARED(unsigned, chosen, [MOST_USED]);
    unsigned last = 0xffffffffu;  // taken in the round before
    float before = INFINITY;
    for (unsigned slot = 0; slot < used; slot++) {
        if (table != nullptr) {
            if (lane == 0) chosen[slot] = unsigned(table[size_t(tokens[token]) * used + slot]);
            continue;
        }
        // The best of those behind the last one in the order (probability down, index up).
        float best = -INFINITY;
        unsigned at = 0xffffffffu;
        for (unsigned i = lane; i < count; i += LANES) {
            const float value = bias != nullptr ? p[i] + bias[i] : p[i];
            const bool open = slot == 0 || value < before || (value == before && i > last);
            if (open && (value > best || at == 0xffffffffu)) {
                best = value;
                at = i;
            }
        }
        for (int half = LANES / 2; half > 0; half /= 2) {
            const float other = __shfl_xor_sync(ALL, best, half);
            const unsigned where = __shfl_xor_sync(ALL, at, half);
            if (other > best || (other == best && where < at)) {
                best = other;
                at = where;
            }
        }
        before = best;
        last = at;
        if (lane == 0) chosen[slot] = at;
    }
    if (lane != 0) return;
    for (unsigned i = 1; i < used; i++) {
        for (unsigned j = i; j > 0 && chosen[j] < chosen[j - 1]; j--) {
            const unsigned swap = chosen[j];
            chosen[j] = chosen[j - 1];
            chosen[j - 1] = swap;
        }
    }
    float sum = -0.0f;
    for (unsigned slot = 0; slot < used; slot++) sum += p[chosen[slot]];
    sum = fmaxf(sum, 6.1035156e-5f);
    for (unsigned slot = 0; slot < used; slot++) {
        experts[size_t(token) * used + slot] = chosen[slot];
        weights[size_t(token) * used + slot] = p[chosen[slot]] / sum * scale;
    }
}
KERNEL(route)

// Choices sorted by expert, a choice's number ascending within one: `order` of all choices, `starts` ([count + 1]) where an expert's begin. One block of
// at least `count` threads, a thread per expert.
GLOBAL group_choices(const unsigned* __restrict__ experts, unsigned* __restrict__ order, unsigned* __restrict__ starts, unsigned choices,
                     unsigned count) {
    SHARED(unsigned, sizes, [1024]);
    const unsigned expert = threadIdx.x;
    unsigned size = 0;
    if (expert < count) {
        for (unsigned i = 0; i < choices; i++) size += experts[i] == expert;
    }
    sizes[expert] = size;
    __syncthreads();
    unsigned start = 0;
    for (unsigned i = 0; i < expert; i++) start += sizes[i];
    if (expert >= count) return;
    starts[expert] = start;
    if (expert + 1 == count) starts[count] = start + size;
    for (unsigned i = 0; i < choices; i++) {
        if (experts[i] == expert) order[start++] = i;
    }
}
KERNEL(group_choices)
