// Routing tokens to experts: `kernels/core/src/ops/experts.rs`.

constant constexpr uint MOST_USED = 16;      // experts of a token
constant constexpr uint MOST_EXPERTS = 1024;  // threads of the group that sorts choices

struct Route {
    uint count, used, biased, by_token;
    float scale;
};

// The experts of each token, ascending, with their weights: a SIMD group per token. Chosen by biased probability, ties to the lowest index, or by the
// token's id from `table` ([vocabulary][used]). `logits` is [tokens][count]; probabilities replace it.
kernel void route(device float* logits [[buffer(0)]], device const float* bias [[buffer(1)]], device const int* table [[buffer(2)]],
                  device const uint* tokens [[buffer(3)]], device uint* experts [[buffer(4)]], device float* weights [[buffer(5)]],
                  constant Route& c [[buffer(6)]], PLACE) {
    SHARED(uint, chosen, [MOST_USED]);
    const uint token = group.x;
    device float* p = logits + ulong(token) * c.count;
    for (uint i = lane; i < c.count; i += LANES) p[i] = sqrt(softplus(p[i]));
    simdgroup_barrier(mem_flags::mem_device);
    uint last = 0xffffffffu;  // taken in the turn before
    float before = INFINITY;
    for (uint slot = 0; slot < c.used; slot++) {
        if (c.by_token) {
            if (lane == 0) chosen[slot] = uint(table[ulong(tokens[token]) * c.used + slot]);
            continue;
        }
        // The best of those behind the last one in the order (probability down, index up).
        float best = -INFINITY;
        uint at = 0xffffffffu;
        for (uint i = lane; i < c.count; i += LANES) {
            const float value = c.biased ? p[i] + bias[i] : p[i];
            const bool open = slot == 0 || value < before || (value == before && i > last);
            if (open && (value > best || at == 0xffffffffu)) {
                best = value;
                at = i;
            }
        }
        for (ushort step = LANES / 2; step > 0; step /= 2) {
            const float other = simd_shuffle_xor(best, step);
            const uint where = simd_shuffle_xor(at, step);
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
    for (uint i = 1; i < c.used; i++) {
        for (uint j = i; j > 0 && chosen[j] < chosen[j - 1]; j--) {
            const uint other = chosen[j];
            chosen[j] = chosen[j - 1];
            chosen[j - 1] = other;
        }
    }
    float sum = -0.0f;
    for (uint slot = 0; slot < c.used; slot++) sum += p[chosen[slot]];
    sum = fmax(sum, 6.1035156e-5f);
    for (uint slot = 0; slot < c.used; slot++) {
        experts[ulong(token) * c.used + slot] = chosen[slot];
        weights[ulong(token) * c.used + slot] = p[chosen[slot]] / sum * c.scale;
    }
}

struct Sort {
    uint choices, count;
};

// Choices sorted by expert, a choice's number ascending within one: `order` of all choices, `starts` ([count + 1]) where an expert's begin. One group
// of at least `count` threads, a thread per expert.
kernel void group_choices(device const uint* experts [[buffer(0)]], device uint* order [[buffer(1)]], device uint* starts [[buffer(2)]],
                          constant Sort& c [[buffer(3)]], PLACE) {
    SHARED(uint, sizes, [MOST_EXPERTS]);
    const uint expert = thread_index;
    uint size = 0;
    if (expert < c.count) {
        for (uint i = 0; i < c.choices; i++) size += experts[i] == expert;
    }
    sizes[expert] = size;
    threads_meet();
    uint start = 0;
    for (uint i = 0; i < expert; i++) start += sizes[i];
    if (expert >= c.count) return;
    starts[expert] = start;
    if (expert + 1 == c.count) starts[c.count] = start + size;
    for (uint i = 0; i < c.choices; i++) {
        if (experts[i] == expert) order[start++] = i;
    }
}
