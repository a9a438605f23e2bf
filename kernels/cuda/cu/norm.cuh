// Root-mean-square normalisation: `kernels/core/src/ops/norm.rs`.
#pragma once
#include "base.cuh"

// 1 / sqrt(mean(x^2) + eps) by one warp, known to all its lanes. Element i is added to lane i % 16 in f64, where squares are exact; then one tree.
DEVICE float warp_rms_scale(const float* x, int width, float eps) {
    constexpr int SQUARES = 16;
    double sum = 0.0;
    if (lane_of_thread() < SQUARES) {
        for (int i = lane_of_thread(); i < width; i += SQUARES) sum = fma(double(x[i]), double(x[i]), sum);
    }
    for (int half = SQUARES / 2; half > 0; half /= 2) sum += __shfl_down_sync(ALL, sum, half);
    sum = __shfl_sync(ALL, sum, 0);
    return float(1.0 / sqrt(sum / double(width) + double(eps)));
}
