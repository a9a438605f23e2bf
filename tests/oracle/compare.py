"""Compares two files of logits: python compare.py THEIRS.f32 OURS.f32 VOCABULARY. Prints one JSON object."""
import json
import sys

import numpy as np


def logarithms(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def main():
    vocabulary = int(sys.argv[3])
    theirs, ours = (np.fromfile(path, "<f4").astype(np.float64).reshape(-1, vocabulary) for path in sys.argv[1:3])
    if theirs.shape != ours.shape:
        sys.exit(f"expected {theirs.shape} logits, found {ours.shape}")
    if not (np.isfinite(theirs).all() and np.isfinite(ours).all()):
        sys.exit("expected finite logits, found others")
    relative = np.linalg.norm(theirs - ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    same = theirs.argmax(-1) == ours.argmax(-1)
    best = np.sort(theirs, -1)[:, -2:]
    clear = best[:, 1] - best[:, 0] > 1e-3
    left, right = logarithms(theirs), logarithms(ours)
    found = {
        "positions": len(theirs),
        "relative_l2_first": float(relative[0]),
        "relative_l2_most": float(relative.max()),
        "top1_equal": int(same.sum()),
        "top1_wrong_where_clear": int((clear & ~same).sum()),
        "mean_kl": float((np.exp(left) * (left - right)).sum(-1).mean()),
        "distinct_top1": int(len(set(theirs.argmax(-1)))),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
