"""The schema of `reports/gpu/<card>.json`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from foundry.utils.files import write_json
from foundry.utils.records import Record


class Card(Record):
    """The machine.

    Attributes:
        peak_tflops: of bfloat16, from the data sheet; None if `foundry/utils/device.py` does not know the card.
        tiny: whether tiny shapes were used, which proves the script and measures nothing.
    """

    name: str
    device: str
    memory_gib: float | None
    capability: str | None
    driver: str | None
    cuda: str | None
    torch: str
    python: str
    cores: int
    peak_tflops: float | None
    tiny: bool


class Side(Record):
    """One side of a comparison; its turns are rates, of which more is better.

    Attributes:
        spread: largest / smallest turn - 1.
        facts: what the side chose or found, such as the sequences of a micro-batch.
        problem: why there is no figure, or no further turn.
    """

    name: str
    turns: list[float]
    median: float | None
    best: float | None
    spread: float | None
    facts: dict[str, float | int | str | bool] = Field(default_factory=dict)
    problem: str | None = None

    @classmethod
    def of(cls, name: str, turns: Sequence[float], **rest) -> Self:
        if not turns:
            return cls(name=name, turns=[], median=None, best=None, spread=None, **rest)
        return cls(
            name=name,
            turns=[rounded(t) for t in turns],
            median=rounded(statistics.median(turns)),
            best=rounded(max(turns)),
            spread=round(max(turns) / min(turns) - 1, 4),
            **rest,
        )


class Comparison(Record):
    """Sides that took turns in one run; ours is the first. `repeated` rounds were disturbed and do not count."""

    name: str
    unit: str
    sides: list[Side]
    repeated: int = 0


class Number(Record):
    """A derived number beside what is required of it.

    Attributes:
        at_most: whether less is better.
        where: the card that the target is meant for; empty: every card.
        how: from which figures it comes.
    """

    name: str
    value: float
    unit: str
    how: str
    required: float | None = None
    moonshot: float | None = None
    at_most: bool = False
    where: str = ""

    @property
    def met(self) -> bool | None:
        if self.required is None:
            return None
        return self.value <= self.required if self.at_most else self.value >= self.required


class Outcome(Record):
    """What became of one test. `crashed`: its process ended in it; `late`: the part's time was over."""

    test: str
    result: Literal["passed", "failed", "skipped", "crashed", "late"]
    seconds: float
    message: str = ""


class Part(Record):
    """One part of the benchmark.

    Attributes:
        commit: of the code, with `+` behind it if files had been changed; None if unknown.
        complete: whether it reached its end; what was measured before stays in the report.
        problems: what went wrong in it, with the end of the traceback.
    """

    date: str
    commit: str | None
    seconds: float
    complete: bool
    problems: list[str] = Field(default_factory=list)
    comparisons: list[Comparison] = Field(default_factory=list)
    numbers: list[Number] = Field(default_factory=list)
    outcomes: list[Outcome] = Field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether it reached its end without a problem, and no test failed. A target that is missed is a finding."""
        return self.complete and not self.problems and all(o.result in ("passed", "skipped") for o in self.outcomes)


class GpuReport(Record):
    """All that is known about one card; a run with `--only` replaces only its parts."""

    card: Card
    parts: dict[str, Part] = Field(default_factory=dict)

    def write(self, path: str | Path) -> None:
        write_json(path, self.model_dump(mode="json"))


def read_report(path: str | Path) -> GpuReport:
    """Reads the report of a card.

    Raises:
        FoundryError: if the file is missing, is not readable JSON, or does not follow the schema.
    """
    return GpuReport.read(path, "a card's report is written by `make gpu`")


def rounded(value: float) -> float:
    """Six significant digits."""
    return float(f"{value:.6g}")
