#!/usr/bin/env python3
"""Writes the golden files beside it: random blocks de-quantised by gguf-py, and KV rows rounded by plain numpy.

pip install gguf numpy; run without arguments. The rounding follows DeepSeek's reference: E4M3 with a power-of-two scale
per 64 values, Hadamard and E2M1 with one per 32, f16 for the rotary tail.
"""
import os
import numpy as np
from gguf import GGMLQuantizationType as T, quants

HERE = os.path.dirname(os.path.abspath(__file__))
rng = np.random.default_rng(4)
# Formats that came later have a generator of their own, so that the files of the others stay as they are.
later = np.random.default_rng(39)


def save(name, array):
    array.tofile(os.path.join(HERE, name))


def blocks(kind, size, halves):
    raw = rng.integers(0, 256, (6, size), dtype=np.uint8)
    for at in halves:
        raw[:, at:at + 2] = np.frombuffer(np.float16(rng.uniform(0.001, 0.1, 6)).tobytes(), np.uint8).reshape(6, 2)
    save(f"{kind.name}.blocks", raw)
    save(f"{kind.name}.f32", quants.dequantize(raw, kind).astype("<f4"))


def mxfp4_blocks():
    raw = later.integers(0, 256, (64, 17), dtype=np.uint8)
    raw[:4, 0] = [0, 1, 2, 127]  # subnormal scales, the first normal one, 1
    raw[4:, 0] = later.integers(110, 134, 60)
    save("MXFP4.blocks", raw)
    save("MXFP4.f32", quants.dequantize(raw, T.MXFP4).astype("<f4"))


def nearest(values, table):
    """Index of the nearest table entry, ties to the even index."""
    high = np.clip(np.searchsorted(table, values), 1, len(table) - 1)
    low = high - 1
    down, up = values - table[low], table[high] - values
    return np.where((down < up) | ((down == up) & (low % 2 == 0)), low, high)


def rounded(x, block, table, floor):
    parts = x.reshape(-1, block).astype(np.float32)
    amax = np.maximum(np.abs(parts).max(-1, keepdims=True), np.float32(floor))
    scale = np.exp2(np.ceil(np.log2((amax / np.float32(table[-1])).astype(np.float64)))).astype(np.float32)
    return (np.sign(parts) * table[nearest(np.minimum(np.abs(parts) / scale, table[-1]), table)] * scale).reshape(x.shape)


E4M3 = np.array([m * 2.0**-9 if e == 0 else (1 + m / 8) * 2.0**(e - 7) for e in range(16) for m in range(8)][:127], np.float32)
E2M1 = np.array([0, .5, 1, 1.5, 2, 3, 4, 6], np.float32)

blocks(T.Q8_0, 34, [0])
blocks(T.Q2_K, 84, [80, 82])
blocks(T.Q4_K, 144, [0, 2])
blocks(T.IQ2_XXS, 66, [0])
mxfp4_blocks()

rows = (rng.standard_normal((8, 192)) * np.exp(rng.uniform(-9, 4, (8, 1)))).astype("<f4")
rows[0, :64] = 0
save("kv.f32", rows)
body = rounded(rows[:, :128], 64, E4M3, 1e-4)
save("kv.rounded.f32", np.concatenate([body, rows[:, 128:].astype(np.float16).astype(np.float32)], 1).astype("<f4"))

# Integers with a power-of-two transform scale (n = 64): every sum is exact, whatever the order.
rows = rng.integers(-9, 10, (8, 64)).astype("<f4")
save("indexer.f32", rows)
n, y = 64, rows.astype(np.float32)
step = 1
while step < n:
    y = y.reshape(8, n // (2 * step), 2, step)
    y = np.stack((y[:, :, 0] + y[:, :, 1], y[:, :, 0] - y[:, :, 1]), 2).reshape(8, n)
    step *= 2
save("indexer.rounded.f32", rounded(y / np.float32(8), 32, E2M1, 7.052966e-38).astype("<f4"))
