"""Deterministic weights and images, so that reference numbers need no weight file.

numpy.random.RandomState is frozen by numpy's compatibility policy, so the same name
and shape give the same values everywhere.
"""

import zlib

import numpy as np


def reference_weight(name: str, shape: tuple[int, ...], salt: str = "") -> np.ndarray:
    """Value of the state-dict entry `name` (float32, of `shape`) in the reference model."""
    noise = np.random.RandomState(zlib.crc32((salt + name).encode()))
    noise = noise.standard_normal(shape).astype(np.float32)
    if len(shape) == 1:
        if "norm" in name and name.endswith("weight"):
            return 1 + 0.1 * noise
        return 0.1 * noise
    if "pos_embed" in name or "token" in name:
        return 0.5 * noise
    if name.endswith("alpha") or name == "patch_aggregator":
        return noise
    scale = 10.0 if name == "cls_head.head.6.weight" else 1.0
    return scale * noise / np.float32(np.sqrt(np.prod(shape[1:])))


def reference_image(height: int, width: int, seed: int) -> np.ndarray:
    """(height, width, 3) uint8 image: coarse blocks plus noise, integer arithmetic only."""
    rng = np.random.RandomState(seed)
    cell = 4 + 4 * (seed % 5)
    rows, cols = -(-height // cell), -(-width // cell)
    coarse = rng.randint(0, 256, (rows, cols, 3))
    image = coarse.repeat(cell, axis=0).repeat(cell, axis=1)[:height, :width]
    noise = rng.randint(-(seed % 7) * 8, (seed % 7) * 8 + 1, (height, width, 3))
    return np.clip(image + noise, 0, 255).astype(np.uint8)
