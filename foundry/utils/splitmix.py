"""SplitMix64 (Steele et al. 2014): well-mixed 64-bit numbers for hashes, keys and seeds, the same on every machine."""

from __future__ import annotations

import numpy as np

GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_U = np.uint64


def finalize(x: np.ndarray | int) -> np.ndarray:
    """The generator's output function: a bijection of uint64."""
    return _finalized(np.array(x, _U, ndmin=1)).reshape(np.shape(x))[()]


def mix(x: np.ndarray | int) -> np.ndarray:
    """The generator's first output from the state `x`: uint64 → uint64."""
    state = np.array(x, _U, ndmin=1)
    state += GAMMA
    return _finalized(state).reshape(np.shape(x))[()]


def _finalized(z: np.ndarray) -> np.ndarray:
    """`finalize`, in place. An array of at least one dimension, because numpy warns when a scalar overflows."""
    z ^= z >> _U(30)
    z *= _FIRST
    z ^= z >> _U(27)
    z *= _SECOND
    z ^= z >> _U(31)
    return z


def key(seed: int, *parts: int) -> int:
    """One 64-bit key from a seed and further numbers (an epoch, a purpose)."""
    k = mix(seed)
    for part in parts:
        k = mix(k ^ mix(part))
    return int(k)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of the random numbers that a rank draws in a step, in [0, 2^63)."""
    return int(finalize((seed * int(GAMMA) + step * int(_FIRST) + rank * int(_SECOND)) % 2**64)) >> 1
