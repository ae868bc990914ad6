"""Batches that a run skips: its answer to a loss or gradient that is not finite.

The batch of a step is the step's own number plus one for every batch that was skipped before it. So the others keep
their order, each is read once, and the whole run is a function of its identity and this list. The list is a file beside
the checkpoints, and its entries are part of `config.json` and `reports/train.json`.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from foundry.config import CheckpointError
from foundry.models.facts import SkipDecision
from foundry.utils.files import read_json, write_json

SKIPPED, FORMER = "skipped.json", "passed.json"


class SkippedBatches:
    """The decisions of one run, in their order.

    Raises:
        CheckpointError: if the file is damaged, or the run was started by a version that kept this list elsewhere.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if (former := path.with_name(FORMER)).exists():
            raise CheckpointError(
                f"{former} is the list of skipped batches of an earlier version of Foundry, which this one does not "
                "read: finish the run with that version, or move its folder away to train from scratch"
            )
        known = read_json(path, "the batches that a run skips", CheckpointError) if path.exists() else []
        try:
            self.decisions = [SkipDecision.model_validate(d) for d in known]
        except (TypeError, ValidationError) as e:
            raise CheckpointError(f"{path} is not a list of skipped batches ({e}): move its folder away") from None

    def __len__(self) -> int:
        return sum(len(d.batches) for d in self.decisions)

    def batch(self, step: int) -> int:
        """The number of the batch that a step, counted from 0, reads."""
        for b in sorted(b for d in self.decisions for b in d.batches):
            if b <= step:
                step += 1
        return step

    def add(self, decision: SkipDecision, *, write: bool = True) -> None:
        """Skips batches from now on; written at once. Only rank 0 writes."""
        self.decisions.append(decision)
        if write:
            write_json(self._path, self.to_json())

    def to_json(self) -> list[dict]:
        return [d.model_dump() for d in self.decisions]
