"""The fingerprint: one value for resume, cache and lineage (law 1).

A hash over the run's identity parameters, its data index (which contains the hash of every shard) and its tokenizer.
Execution parameters are not part of it: the same run on another machine has the same fingerprint.
"""

from __future__ import annotations

from typing import Any

from foundry.config import CheckpointError, ModelConfig, TrainConfig
from foundry.utils.files import sha256_json

# Of the code that decides what a step computes. Whoever changes that raises it: otherwise a run would resume from a
# checkpoint of the former code, and a finished one would not be trained again.
ARITHMETIC = 2
MASKED = 2  # the same of runs with document masks only


def identity(model: ModelConfig, train: TrainConfig, seed: int, data: dict[str, str]) -> dict[str, Any]:
    """Everything that makes a run this run and no other, as flat JSON values; `data`: the loader's identity."""
    return {
        **{f"model.{k}": v for k, v in model.model_dump(mode="json").items()},
        **{f"train.{k}": v for k, v in train.model_dump(mode="json").items()},
        "seed": seed,
        "arithmetic": ARITHMETIC,
        **({"arithmetic.masked": MASKED} if train.document_mask else {}),
        **data,
    }


def extends(other: dict[str, Any], mine: dict[str, Any]) -> dict[str, Any]:
    """The identity `other` with this run's length, where only the length may differ.

    With the schedules wsd and constant a longer run is the same run up to the decay of the shorter one.
    """
    if mine["train.schedule"] not in ("wsd", "constant"):
        return other
    return {**other, **{k: mine[k] for k in ("train.steps", "train.decay_fraction")}}


def fingerprint(values: dict[str, Any]) -> str:
    return sha256_json(values)[:16]


def check_same(old: dict[str, Any], new: dict[str, Any], where: str) -> None:
    """Refuses a state of another run.

    Raises:
        CheckpointError: with the two fingerprints and every key that differs, old and new.
    """
    if old == new:
        return
    keys = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
    lines = "".join(f"\n  - {k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in keys)
    raise CheckpointError(
        f"{where} belongs to run {fingerprint(old)}, this is run {fingerprint(new)}; they differ in:{lines}\n"
        "Restore the former values, or move that folder away to train from scratch"
    )
