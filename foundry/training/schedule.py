"""Learning-rate schedules: pure functions of the step, each a factor of the peak rate."""

from __future__ import annotations

import math

from foundry.config import ConfigError, TrainConfig


def lr_factor(step: int, cfg: TrainConfig) -> float:
    """Factor of the learning rates at a step, counted from 0.

    A linear warm-up reaches the peak at `warmup_steps`; then `cosine` (Loshchilov & Hutter 2016, arXiv:1608.03983),
    `linear`, `constant`, or `wsd`: stable, then linear decay (Hu et al. 2024, arXiv:2404.06395). All but `constant` end
    at `min_lr_ratio` after the last step.

    Raises:
        ConfigError: for a schedule that has no formula here.
    """
    if step < cfg.warmup_steps:
        return (step + 1) / (cfg.warmup_steps + 1)
    if cfg.schedule == "constant":
        return 1.0
    if cfg.schedule == "wsd":
        left = min(1.0, (cfg.steps - step) / (cfg.steps - stable_steps(cfg)))
    elif cfg.schedule in ("linear", "cosine"):
        left = 1 - (step - cfg.warmup_steps) / max(1, cfg.steps - cfg.warmup_steps)
        if cfg.schedule == "cosine":
            left = 0.5 * (1 + math.cos(math.pi * (1 - left)))
    else:
        raise ConfigError(f"train.schedule {cfg.schedule!r} has no formula in foundry/training/schedule.py")
    return cfg.min_lr_ratio + (1 - cfg.min_lr_ratio) * left


def stable_steps(cfg: TrainConfig) -> int:
    """Steps before the rate depends on `steps`: up to there a longer run of the same recipe is the same run."""
    if cfg.schedule == "constant":
        return cfg.steps
    if cfg.schedule == "wsd":
        return cfg.steps - cfg.decay_steps
    return min(cfg.warmup_steps, cfg.steps)
