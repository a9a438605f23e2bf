// Pooling the tokens of a group into one compressed row: `kernels/core/src/ops/compressor.rs`.
#include "math.cuh"

// Appends the tokens' values, and their gates with the bias of their place in the group, to the ring of state rows [values | gates]. `bias` is [ratio][width].
// A thread per value.
GLOBAL append_state(const float* __restrict__ values, const float* __restrict__ gates, const float* __restrict__ bias,
                    float* __restrict__ state, unsigned count, unsigned width, unsigned first, unsigned ratio, unsigned ring) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const unsigned position = first + i / width, channel = i % width;
    float* row = state + size_t(position % ring) * 2 * width;
    row[channel] = values[i];
    row[width + channel] = gates[i] + bias[size_t(position % ratio) * width + channel];
}
KERNEL(append_state)

// Rows of groups first_group.., [groups][out_width]: per channel the mean of the group's values weighted by the softmax of their gates. Where `width` is
// twice `out_width` groups overlap: the group before gives its first half, this one its second. A thread per channel.
GLOBAL pool_groups(const float* __restrict__ state, float* __restrict__ out, unsigned count, unsigned width, unsigned out_width,
                   unsigned first_group, unsigned ratio, unsigned ring) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const unsigned group = first_group + i / out_width, channel = i % out_width, start = group * ratio;
    const bool overlap = width == 2 * out_width;
    const unsigned from = overlap && group > 0 ? start - ratio : start, to = start + ratio;
    const float* at = state + channel;
    float most = -INFINITY;
    for (unsigned position = from; position < to; position++) {
        const unsigned half = overlap && position >= start ? out_width : 0;
        most = fmaxf(most, at[size_t(position % ring) * 2 * width + width + half]);
    }
    float sum = 0.0f, total = 0.0f;
    for (unsigned position = from; position < to; position++) {
        const unsigned half = overlap && position >= start ? out_width : 0;
        const float* row = at + size_t(position % ring) * 2 * width + half;
        const float weight = exp_fixed(row[width] - most);
        total += weight;
        sum = fmaf(weight, row[0], sum);
    }
    out[i] = sum / total;
}
KERNEL(pool_groups)
