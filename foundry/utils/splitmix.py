"""SplitMix64 (Steele et al. 2014): well-mixed 64-bit numbers for hashes, keys and seeds, the same on every machine."""

from __future__ import annotations

import numpy as np

GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_U = np.uint64


def finalize(x: np.ndarray | int) -> np.ndarray:
    """The generator's output function: a bijection of uint64."""
    with np.errstate(over="ignore"):
        z = np.asarray(x, _U)
        z = (z ^ (z >> _U(30))) * _FIRST
        z = (z ^ (z >> _U(27))) * _SECOND
        return z ^ (z >> _U(31))


def mix(x: np.ndarray | int) -> np.ndarray:
    """The generator's first output from the state `x`: uint64 → uint64."""
    with np.errstate(over="ignore"):
        return finalize(np.asarray(x, _U) + GAMMA)


def key(seed: int, *parts: int) -> int:
    """One 64-bit key from a seed and further numbers (an epoch, a purpose)."""
    k = mix(seed)
    for part in parts:
        k = mix(k ^ mix(part))
    return int(k)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of the random numbers that a rank draws in a step, in [0, 2^63)."""
    return int(finalize((seed * int(GAMMA) + step * int(_FIRST) + rank * int(_SECOND)) % 2**64)) >> 1
