"""Random blocks of every quantised format and their values by gguf-py: python blocks.py FOLDER SEED.

Writes FORMAT.blocks (raw bytes) and FORMAT.f32 (little-endian). All bytes are random; scales are kept finite, as a file's are.
"""
import pathlib
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

COUNT = 4096
# Where a block keeps its f16 scales.
HALVES = {"Q8_0": [0], "Q2_K": [80, 82], "Q4_K": [0, 2], "IQ2_XXS": [0], "MXFP4": []}


def main():
    folder, rng = pathlib.Path(sys.argv[1]), np.random.default_rng(int(sys.argv[2]))
    for name, halves in HALVES.items():
        kind = GGMLQuantizationType[name]
        raw = rng.integers(0, 256, (COUNT, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
        for at in halves:
            # The exponent of all ones is infinity and not-a-number.
            raw[:, at + 1] = np.where(raw[:, at + 1] & 0x7C == 0x7C, raw[:, at + 1] & 0xBF, raw[:, at + 1])
        if name == "MXFP4":
            # Powers of two whose products with 6 stay below f32's largest.
            raw[:, 0] %= 252
        raw.tofile(folder / f"{name}.blocks")
        quants.dequantize(raw, kind).astype("<f4").tofile(folder / f"{name}.f32")


if __name__ == "__main__":
    main()
