"""Kills a real build of the smoke pipeline at random moments, for a short time.

`make chaos` does it for ten minutes, or `minutes=60`. The seed decides all that is random except how fast the machine
is; it is printed, and `make chaos seed=N` uses it again.
"""

import os
import random

import pytest
from chaos import torment

SECONDS = 12  # of kills in the normal suite


@pytest.mark.slow
def test_a_build_that_is_killed_at_random_moments_ends_with_equal_bits_by_the_same_command(finished, tmp_path):
    minutes = os.environ.get("FOUNDRY_CHAOS_MINUTES")
    seed = int(os.environ.get("FOUNDRY_CHAOS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"chaos: seed {seed}", flush=True)
    seconds, first = (float(minutes) * 60, "download") if minutes else (SECONDS, "train")
    survived = torment(finished[0], tmp_path, random.Random(seed), seconds, first)
    print(f"chaos: seed {seed}: {survived}", flush=True)
    assert survived.builds and survived.stages.total() >= (1 if minutes is None else 5)
