"""Trainer, optimizers, schedules, checkpoints, the run's identity."""

from typing import Any

__all__ = ["Trainer"]


def __getattr__(name: str) -> Any:
    if name == "Trainer":  # on first use: `foundry.training.plan` needs no torch
        from foundry.training.trainer import Trainer

        return Trainer
    raise AttributeError(f"module 'foundry.training' has no attribute {name!r}")
