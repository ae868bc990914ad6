"""How long a run will take: from some of its own steps, or for a GPU that is not here from its data sheet."""

from __future__ import annotations

import logging
import math
import statistics
import tempfile
import time
from pathlib import Path

from foundry.config import Config, ConfigError
from foundry.training.plan import Plan
from foundry.utils.device import PEAKS
from foundry.utils.log import get_logger

STEPS = 20
MOST_GPUS = 100_000
UTILISATION = 0.4  # share of a GPU's peak that a run of this size is expected to reach


def probe_seconds(cfg: Config, data: str | Path = "data/shards", steps: int = STEPS) -> float:
    """Seconds of the whole run on this machine, from `steps` of its steps and one validation; nothing is kept.

    Raises:
        FoundryError: as for the run itself.
    """
    from foundry.training.numerics import numerics
    from foundry.training.trainer import Trainer

    log = get_logger()
    with tempfile.TemporaryDirectory() as tmp:
        level = log.level
        log.setLevel(logging.WARNING)  # the run's own plan: the caller has printed it
        try:
            trainer = Trainer.from_shards(
                cfg.model, cfg.train, data, seed=cfg.seed, runtime=cfg.runtime, state=Path(tmp)
            )
        finally:
            log.setLevel(level)
        with numerics(trainer.runtime, trainer.world):
            session = trainer.session()
            taken = []
            for _ in range(3 + steps):
                begin = time.perf_counter()
                session.step(session.state)
                taken.append(time.perf_counter() - begin)
                session.state.step += 1
            begin = time.perf_counter()
            trainer.validate(session)
            validation = time.perf_counter() - begin
    validations = math.ceil(cfg.train.steps / cfg.train.eval_interval)  # the last step has one in any case
    return statistics.median(taken[3:]) * cfg.train.steps + validation * validations


def gpu_seconds(plan: Plan, gpu: str, count: int) -> float:
    """Seconds of the run on `count` GPUs of one kind, at the expected utilisation; only the parameters are needed.

    Raises:
        ConfigError: for a GPU whose peak is not known, or a number of them that no machine has.
    """
    if not 1 <= count <= MOST_GPUS:
        raise ConfigError(f"the number of GPUs must lie in [1, {MOST_GPUS}], got {count}")
    if gpu not in PEAKS:
        raise ConfigError(f"the peak of {gpu!r} is not known; known are {', '.join(PEAKS)}")
    return plan.flops / (PEAKS[gpu][0] * 1e12 * count * UTILISATION)
