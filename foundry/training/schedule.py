"""Learning-rate schedules: pure functions of the step, each a factor of the peak rate."""

from __future__ import annotations

import math

from foundry.config import TrainConfig


def lr_factor(step: int, cfg: TrainConfig) -> float:
    """Factor of the learning rates at a step, counted from 0.

    Linear warm-up that reaches the peak at `warmup_steps`, then `cosine` (Loshchilov & Hutter 2016, arXiv:1608.03983) or `wsd`: stable,
    then linear decay (Hu et al. 2024, arXiv:2404.06395), both ending at `min_lr_ratio` after the last step.
    """
    if step < cfg.warmup_steps:
        return (step + 1) / (cfg.warmup_steps + 1)
    if cfg.schedule == "cosine":
        done = (step - cfg.warmup_steps) / max(1, cfg.steps - cfg.warmup_steps)
        return cfg.min_lr_ratio + (1 - cfg.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * done))
    decay = max(1, round(cfg.decay_fraction * cfg.steps))
    left = min(1.0, (cfg.steps - step) / decay)
    return cfg.min_lr_ratio + (1 - cfg.min_lr_ratio) * left
