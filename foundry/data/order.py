"""The order of samples: a bijection over sample numbers, not a stored shuffle.

`permute` is a keyed Feistel network with cycle walking (Black & Rogaway 2002, "Ciphers with arbitrary finite domains"): any sample
number maps to its place in O(1) time and no memory, so seeking to a step is arithmetic. The mixing function is that of
SplitMix64 (Steele et al. 2014).
"""

from __future__ import annotations

import numpy as np

ROUNDS = 4
_U = np.uint64


def mix(x: np.ndarray | int) -> np.ndarray:
    """SplitMix64's finaliser: uint64 → uint64, well mixed."""
    with np.errstate(over="ignore"):
        z = np.asarray(x, _U) + _U(0x9E3779B97F4A7C15)
        z = (z ^ (z >> _U(30))) * _U(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> _U(27))) * _U(0x94D049BB133111EB)
        return z ^ (z >> _U(31))


def key(seed: int, *parts: int) -> int:
    """One 64-bit key of a seed and further numbers (an epoch, a purpose)."""
    k = mix(seed)
    for part in parts:
        k = mix(k ^ mix(part))
    return int(k)


def permute(i: np.ndarray, n: int, k: int) -> np.ndarray:
    """Place of each sample number in the order with key `k`: a bijection of [0, n).

    Args:
        i: integers in [0, n), any shape.

    Returns:
        int64 of the same shape.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = _U((1 << half) - 1)
    shift = _U(half)
    x = np.asarray(i, _U).copy()
    outside = np.ones(x.shape, bool)
    while outside.any():  # the network permutes [0, 4^half), at most 4n + 4 wide: a few walks at most on average
        left, right = x[outside] >> shift, x[outside] & mask
        for r in range(ROUNDS):
            left, right = right, left ^ (mix(right ^ mix(_U(k) ^ _U(r + 1))) & mask)
        x[outside] = (left << shift) | right
        outside &= x >= _U(n)
    return x.astype(np.int64)
