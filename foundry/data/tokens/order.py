"""The order of samples: a bijection over sample numbers, not a stored shuffle.

`permute` is a keyed Feistel network with cycle walking (Black & Rogaway 2002, "Ciphers with arbitrary finite domains"):
any sample number maps to its place in O(1) time and without memory, so seeking to a step is arithmetic.
"""

from __future__ import annotations

import numpy as np

from foundry.utils.splitmix import mix

ROUNDS = 4
_U = np.uint64


def permute(i: np.ndarray, n: int, k: int) -> np.ndarray:
    """The place of each sample number in the order of a key: a bijection of [0, n).

    Args:
        i: integers in [0, n), any shape.
        n: how many samples there are.
        k: the key.

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
