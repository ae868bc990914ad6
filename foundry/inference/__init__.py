"""Generation of text: generator, sampling, key/value cache."""

from foundry.config.sampling import Sampling
from foundry.inference.cache import KVCache
from foundry.inference.generator import Generator

__all__ = ["Generator", "KVCache", "Sampling"]
