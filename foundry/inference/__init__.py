"""Generator, sampling, key/value cache."""

from foundry.inference.generator import Generator
from foundry.inference.sampling import Sampling

__all__ = ["Generator", "Sampling"]
