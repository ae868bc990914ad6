"""Verifiers: programs that check an answer.

A verifier is a pure function of its arguments and of the answer's text up to its end symbol. Those of Foundry are
total: they give a verdict on every text, in time proportional to its length. A user's verifier that raises is an error
that names it; no answer counts as wrong because a program failed.

The score is 1 exactly when the answer is right; what lies between 0 and 1 is partial credit, for rewards. The parts say
what was right, so that a report can show which part of a reward grew.

Texts are compared without regard to case, white space at their ends and in a row, and final full stops.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from foundry.chat.example import Arguments
from foundry.chat.gym import data_set
from foundry.config import DataError, FoundryError

VERIFIER_VERSION = 2  # raised when a verdict on any answer changes; part of the identity of what depends on verdicts


@dataclass(frozen=True)
class Verdict:
    """What a verifier says about an answer.

    Attributes:
        score: in [0, 1]; 1: the answer is right.
        parts: named numbers in [0, 1] that explain the score.
    """

    score: float
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        return self.score >= 1.0


class VerifierError(FoundryError):
    """A user's verifier failed.

    Attributes:
        verifier: its name.
        problem: what it did.
        answer: the text that it was given.
    """

    def __init__(self, verifier: str, problem: str, answer: str) -> None:
        super().__init__(verifier, problem, answer)
        self.verifier, self.problem, self.answer = verifier, problem, answer

    def __str__(self) -> str:
        return (
            f"the verifier {self.verifier} {self.problem}, for the answer {self.answer[:80]!r}; a verifier must return "
            "a score in [0, 1], or a Verdict, for every text, the empty one included"
        )


def verify(name: str, arguments: Arguments, answer: str) -> Verdict:
    """Checks an answer.

    Args:
        name: of the verifier: one of `BUILT_IN`, one that `load_verifiers` read, or `gym:NAME` for a data set of
            reasoning-gym.
        arguments: of the verifier.
        answer: the text up to its end symbol, which is not part of it.

    Raises:
        DataError: for an unknown verifier, and for arguments that it does not take.
        ConfigError: if `gym:NAME` is not installed or unknown.
        VerifierError: if a user's verifier raises, or returns something else than a score in [0, 1].
    """
    if user := _USERS.get(name):
        return _run(name, lambda: user(dict(arguments), answer), answer)
    check_arguments(name, arguments)
    if name.startswith("gym:"):
        questions, entry = data_set(name), json.loads(arguments["entry"])
        return _run(name, lambda: questions.score_answer(answer, entry), answer)
    return BUILT_IN[name](answer, **arguments)


def check_arguments(name: str, arguments: Arguments) -> None:
    """Refuses a verifier that is not known, and arguments that a built-in one does not take.

    Raises:
        DataError: naming the verifier, what was seen and what it takes.
    """
    if name in _USERS:
        return
    if name.startswith("gym:"):
        if not isinstance(arguments.get("entry"), str):
            raise DataError(f"the verifier {name} takes entry: the entry of the data set as JSON text")
        return
    if name not in BUILT_IN:
        known = ", ".join([*sorted(BUILT_IN), *sorted(_USERS), "gym:NAME"])
        raise DataError(f"unknown verifier {name!r}; known are {known}")
    wanted = {p.name: str(p.annotation) for p in list(inspect.signature(BUILT_IN[name]).parameters.values())[1:]}
    if wanted.keys() != arguments.keys() or not all(_is(arguments[key], kind) for key, kind in wanted.items()):
        takes = ", ".join(f"{key}: {kind}" for key, kind in wanted.items()) or "no arguments"
        raise DataError(f"the verifier {name} takes {takes}; got {json.dumps(dict(arguments), default=repr)[:200]}")
    if name == "number" and _decimal(str(arguments["expected"])) is None:
        raise DataError(f"the verifier number expects a number of at most 25 characters, got {arguments['expected']!r}")


def _is(value: Any, kind: str) -> bool:
    if kind == "list[str]":
        return isinstance(value, list) and bool(value) and all(isinstance(x, str) for x in value)
    return type(value).__name__ in kind.split(" | ")


# Texts.


def plain(text: str) -> str:
    """The text as answers are compared: NFC, without case, spaces in a row, and full stops at its end."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split()).rstrip(".。 ")


def words_of(text: str) -> list[str]:
    """The words of a text without case, in order; each Chinese character is a word."""
    return _WORD.findall(text.casefold())


_WORD = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")
_NUMBER = re.compile(r"[-−]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")
_STEP = re.compile(r"([0-9]{1,4})\. +\S")
_NAME = re.compile(r"[^\W\d_]{3}|[\u3400-\u9fff]")  # a word of three letters: what an item of a list names at least


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def _bullets(lines: list[str]) -> list[str] | None:
    """The items of lines that begin with `- `; None if a line does not, or an item names nothing."""
    items = [line[2:].strip() for line in lines if line.startswith("- ")]
    return items if len(items) == len(lines) and all(map(_NAME.search, items)) else None


def _numbered(lines: list[str]) -> list[str] | None:
    """The items of lines that are numbered from 1; None if a line is not, or an item names nothing."""
    steps = [_STEP.match(line) for line in lines]
    right = [step and int(step[1]) for step in steps] == list(range(1, len(lines) + 1))
    items = [line.partition(".")[2].strip() for line in lines]
    return items if right and all(map(_NAME.search, items)) else None


# The verifiers of Foundry.


def _exact(answer: str, expected: str) -> Verdict:
    return Verdict(float(plain(answer) == plain(expected)))


def _one_of(answer: str, expected: list[str]) -> Verdict:
    return Verdict(float(plain(answer) in set(map(plain, expected))))


def _number(answer: str, expected: int | float | str) -> Verdict:
    """The last number in the answer; for answers that show how they were found."""
    found, wanted = _NUMBER.findall(answer), _decimal(str(expected))
    return Verdict(float(bool(found) and wanted is not None and _decimal(found[-1]) == wanted))


def _decimal(digits: str) -> Decimal | None:
    digits = digits.replace(",", "").replace("−", "-")
    # Longer ones are no answers to questions; Decimal would round them or raise.
    return Decimal(digits) if len(digits) <= 25 and re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", digits) else None


def _contains(answer: str, expected: list[str]) -> Verdict:
    text = plain(answer)
    return Verdict(sum(plain(phrase) in text for phrase in expected) / len(expected))


def _overlap(answer: str, expected: str) -> Verdict:
    """F1 of the words of both, as SQuAD computes it (Rajpurkar et al. 2016), with articles counted."""
    found, wanted = Counter(words_of(answer)), Counter(words_of(expected))
    shared = (found & wanted).total()
    precision, recall = shared / max(found.total(), 1), shared / max(wanted.total(), 1)
    f1 = 2 * precision * recall / (precision + recall) if shared else 0.0
    return Verdict(f1, {"precision": precision, "recall": recall})


def _list_count(answer: str, count: int, reference: list[str]) -> Verdict:
    """Nothing but a list, numbered or of bullets, of different items, as many as were asked for.

    The part `reference` is the share of them that name something of the reference list: it does not count, but a policy
    that lists the same things for every dish shows in it.
    """
    lines = _lines(answer)
    items = _numbered(lines) or _bullets(lines) or []
    form = float(bool(items))
    number = float(len(items) == count)
    distinct = float(bool(items) and len(set(map(plain, items))) == len(items))
    known = _things(" ".join(reference))
    like = sum(bool(_things(item) & known) for item in items) / max(len(items), 1)
    return Verdict(form * number * distinct, {"form": form, "count": number, "distinct": distinct, "reference": like})


def _items(answer: str, expected: list[str]) -> Verdict:
    """The same list of bullets in the same order."""
    items = [plain(item) for item in _bullets(_lines(answer)) or ()]
    wanted = [plain(item) for item in expected]
    shared = (Counter(items) & Counter(wanted)).total()
    parts = {"precision": shared / max(len(items), 1), "recall": shared / len(wanted)}
    return Verdict(float(items == wanted), parts)


def _recipe(answer: str, name: str) -> Verdict:
    """`Ingredients:`, bullets, `Directions:`, steps numbered from 1, which name at least three quarters of the listed
    ingredients, and somewhere a word of the dish's name; fewer ingredients give partial credit. (The recipes of the
    default corpus name 77 % on average.)"""
    lines = _lines(answer)
    at = lines.index("Directions:") if "Directions:" in lines else len(lines)
    headings = float(lines[:1] == ["Ingredients:"] and 1 < at < len(lines) - 1)
    listed = (_bullets(lines[1:at]) or []) if headings else []
    steps = [_STEP.match(line) for line in lines[at + 1 :]]
    numbered = float(bool(steps) and [m and int(m[1]) for m in steps] == list(range(1, len(steps) + 1)))
    told = _things(" ".join(lines[at + 1 :]))
    used = sum(bool(_things(item) & told) for item in listed) / max(len(listed), 1)
    form = float(bool(headings and listed and numbered))
    about = float(bool(_things(name) & _things(answer)))
    score = form * about * min(1.0, used / NAMED)
    parts = {"form": form, "headings": headings, "numbering": numbered, "about": about, "used": used}
    return Verdict(score, parts)


def _things(text: str) -> set[str]:
    """The words of a list of ingredients that may be things: not the measures; without the s of the plural."""
    return {w.removesuffix("s") for w in words_of(text) if w not in _MEASURES and (len(w) > 2 or w > "\u3000")}


NAMED = 0.75
_MEASURES = frozenset(
    re.findall(
        r"\w+",
        "and the for with cup cups teaspoon teaspoons tablespoon tablespoons tsp tbsp ounce ounces pound pounds lbs "
        "gram grams liter liters litre litres pinch can cans large small medium fresh chopped sliced diced cut into",
    )
)

BUILT_IN: dict[str, Callable[..., Verdict]] = {
    "exact": _exact,
    "one_of": _one_of,
    "number": _number,
    "contains": _contains,
    "overlap": _overlap,
    "list_count": _list_count,
    "items": _items,
    "recipe": _recipe,
}


# Verifiers of others.

UserVerifier = Callable[[dict[str, Any], str], "float | Verdict"]
_USERS: dict[str, UserVerifier] = {}


def load_verifiers(path: Path) -> tuple[str, ...]:
    """Reads the verifiers of a user's Python file: its public functions `NAME(arguments, answer) -> float | Verdict`.

    A data file can only name them: which code runs is decided by whoever writes the parameters.

    Returns:
        their names, `FILE:NAME` with the file's name without its suffix.

    Raises:
        DataError: if the file cannot be imported or has no such function.
    """
    try:
        spec = importlib.util.spec_from_file_location(f"user_verifiers_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as e:
        raise DataError(f"{path} cannot be read as a Python file of verifiers: {type(e).__name__}: {e}") from e
    found = {
        f"{path.stem}:{name}": function
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
    }
    if not found:
        raise DataError(f"{path} has no verifier: a public function NAME(arguments, answer) that returns a score")
    _USERS.update(found)
    return tuple(found)


def _run(name: str, call: Callable[[], float | Verdict], answer: str) -> Verdict:
    """The verdict of code that is not ours."""
    try:
        made = call()
    except Exception as e:
        raise VerifierError(name, f"raised {type(e).__name__}: {e}", answer) from e
    verdict = made if isinstance(made, Verdict) else None
    if verdict is None and isinstance(made, int | float):
        verdict = Verdict(float(made))
    if verdict is None or not all(math.isfinite(x) and 0 <= x <= 1 for x in (verdict.score, *verdict.parts.values())):
        raise VerifierError(name, f"returned {made!r:.80}", answer)
    return verdict
