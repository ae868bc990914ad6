"""Generation of text: generator, sampling, key/value cache."""

from foundry.inference.cache import KVCache
from foundry.inference.generator import Generator
from foundry.inference.sampling import Sampling

__all__ = ["Generator", "KVCache", "Sampling"]
