"""Batches that a run passes over: the answer to a loss or gradient that is not finite.

The batch of a step is the step's own number, moved on past every batch that was passed over before it; so the rest keep their order,
each is read once, and the whole run is a function of its identity and this list. The list lies beside the checkpoints, and its entries go into
`config.json` and `reports/train.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foundry.config import CheckpointError
from foundry.utils.files import read_json, write_json


class Passed:
    """The decisions of one run.

    Attributes:
        decisions: in their order, each {step, reason, batches}.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.decisions: list[dict[str, Any]] = (
            read_json(path, "the batches that a run passes over", CheckpointError) if path.exists() else []
        )

    def batch(self, step: int) -> int:
        """The number of the batch that a step, counted from 0, reads."""
        for b in sorted(b for d in self.decisions for b in d["batches"]):
            if b <= step:
                step += 1
        return step

    def add(self, step: int, batches: list[int], reason: str) -> None:
        """Passes over batches from now on; written at once."""
        self.decisions.append({"step": step, "reason": reason, "batches": batches})
        write_json(self._path, self.decisions)
