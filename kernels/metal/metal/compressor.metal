// Pooling the tokens of a group into one compressed row: `kernels/core/src/ops/compressor.rs`.

struct Append {
    uint count, width, first, ratio, ring;
};

// Appends the tokens' values, and their gates with the bias of their place in the group, to the ring of state rows [values | gates]. `bias` is
// [ratio][width]. A thread per value.
kernel void append_state(device const float* values [[buffer(0)]], device const float* gates [[buffer(1)]], device const float* bias [[buffer(2)]],
                         device float* state [[buffer(3)]], constant Append& c [[buffer(4)]], PLACE) {
    const uint i = group.x * threads.x + thread_index;
    if (i >= c.count) return;
    const uint position = c.first + i / c.width, channel = i % c.width;
    device float* row = state + ulong(position % c.ring) * 2 * c.width;
    row[channel] = values[i];
    row[c.width + channel] = gates[i] + bias[ulong(position % c.ratio) * c.width + channel];
}

struct Pool {
    uint count, width, out_width, first_group, ratio, ring;
};

// Rows of groups first_group.., [groups][out_width]: per channel the mean of the group's values weighted by the softmax of their gates. Where `width`
// is twice `out_width` groups overlap: the group before gives its first part, this one its second. A thread per channel.
kernel void pool_groups(device const float* state [[buffer(0)]], device float* out [[buffer(1)]], constant Pool& c [[buffer(2)]], PLACE) {
    const uint i = group.x * threads.x + thread_index;
    if (i >= c.count) return;
    const uint number = c.first_group + i / c.out_width, channel = i % c.out_width, start = number * c.ratio;
    const bool overlap = c.width == 2 * c.out_width;
    const uint from = overlap && number > 0 ? start - c.ratio : start, to = start + c.ratio;
    device const float* at = state + channel;
    float most = -INFINITY;
    for (uint position = from; position < to; position++) {
        const uint part = overlap && position >= start ? c.out_width : 0;
        most = fmax(most, at[ulong(position % c.ring) * 2 * c.width + c.width + part]);
    }
    float sum = 0.0f, total = 0.0f;
    for (uint position = from; position < to; position++) {
        const uint part = overlap && position >= start ? c.out_width : 0;
        device const float* row = at + ulong(position % c.ring) * 2 * c.width + part;
        const float weight = exp_fixed(row[c.width] - most);
        total += weight;
        sum = fma(weight, row[0], sum);
    }
    out[i] = sum / total;
}
