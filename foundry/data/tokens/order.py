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
    keys = mix(_U(k) ^ np.arange(1, ROUNDS + 1, dtype=_U))
    places = np.array(i, _U).reshape(-1)
    walking = np.arange(len(places))
    while len(walking):  # the network permutes [0, 4^half), at most 4n + 4 wide: a few walks at most on average
        x = places[walking]
        left, right = x >> shift, x & mask
        for round_key in keys:
            left, right = right, left ^ (mix(right ^ round_key) & mask)
        places[walking] = x = (left << shift) | right
        walking = walking[x >= _U(n)]
    return places.reshape(np.shape(i)).astype(np.int64)
