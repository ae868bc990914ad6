"""What a check of `foundry doctor` finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One fact about the machine or the project.

    Attributes:
        check: what was looked at.
        state: `ok`; `note`: something is slower or missing, and nothing fails for that; `problem`: something will fail.
        seen: what was found.
        advice: what to do; empty only if the state is `ok`.

    Raises:
        ValueError: for a note or a problem without advice.
    """

    check: str
    state: Literal["ok", "note", "problem"]
    seen: str
    advice: str = ""

    def __post_init__(self) -> None:
        if self.state != "ok" and not self.advice:
            raise ValueError(f"{self.check}: a {self.state} must say what to do")

    def to_dict(self) -> dict[str, str]:
        """As JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For a person: what was seen, and below it what to do."""
        return [f"{self.state:8} {self.check:11} {self.seen}", *([f"{'':20} {self.advice}"] if self.advice else [])]


def ok(check: str, seen: str) -> Finding:
    return Finding(check, "ok", seen)


def note(check: str, seen: str, advice: str) -> Finding:
    return Finding(check, "note", seen, advice)


def problem(check: str, seen: str, advice: str) -> Finding:
    return Finding(check, "problem", seen, advice)
