"""Which version is champion.

It changes by a decision with a reason, by force of a person, or by a rollback; tags record every change.

`challenger` is the newest version. The registered model's tag `foundry.champions` contains the line of champions,
oldest first; a rollback takes the last one off it and marks that version, so that registering the same content again
does not promote it again.

A change moves an alias and writes several tags, one request each. What it will do is written first, as one tag; then
the alias moves, then the tags are written. The next command finishes what a killed one left. People change aliases and
delete versions in MLflow as well: deleted versions are skipped, an alias that was set by hand counts, and one that was
removed is set again by the next change.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from foundry.config import ConfigError
from foundry.tracking.names import CHALLENGED, HISTORY, MOVE, ROLLED_BACK, WHY
from foundry.tracking.search import every_version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

LONGEST_TAG = 5000  # characters of a registered model's tag
LONGEST_REASON = 300  # characters in the line of champions


@dataclass(frozen=True)
class Decision:
    """Whether a version becomes champion.

    Attributes:
        figures: the numbers behind the reason; each becomes a tag of the version.
    """

    promote: bool
    reason: str
    figures: dict[str, float] = field(default_factory=dict)


Decide = Callable[["ModelVersion | None"], Decision]  # receives the champion's version


@dataclass(frozen=True)
class Promotion:
    """What became of a version that was a candidate for champion."""

    champion: bool
    reason: str


@dataclass(frozen=True)
class Rollback:
    """The champion before and after a rollback, as version numbers."""

    before: str
    after: str


@dataclass(frozen=True)
class Move:
    """A change of champion, as it is written before it happens.

    Attributes:
        before: the champion's version; None if there was no champion.
        after: the next champion's version.
        back: whether it is a rollback.
        reason: for the version's tag.
        why: for the line of champions.
    """

    before: str | None
    after: str
    back: bool
    reason: str
    why: str
    who: str
    when: str
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Champion:
    """An entry of the line of champions."""

    version: str
    why: str = ""
    who: str = ""
    when: str = ""


_MOVE, _LINE = TypeAdapter(Move), TypeAdapter(list[Champion])


def settle(client: MlflowClient, name: str, version: ModelVersion, decide: Decide) -> Promotion:
    """Sets `challenger`, and `champion` if `decide` promotes the version. Repeating it changes nothing.

    Raises:
        ConfigError: if a tag of the model is not what Foundry wrote.
    """
    finish(client, name)
    versions = _versions(client, name)
    client.set_registered_model_alias(name, "challenger", str(max(int(v) for v in versions)))
    champion, mine = _champion(client, name, versions), str(version.version)
    if champion == mine:
        return Promotion(True, "it is the champion")
    rolled_back = versions[mine].tags.get(ROLLED_BACK)
    if rolled_back:
        override = f"`foundry promote {mine} --force --why …` overrides"
        return Promotion(False, f"it was rolled back ({rolled_back}); {override}")
    decision = decide(versions[champion] if champion else None)
    if decision.promote:
        reason = decision.reason
        _start(client, name, Move(champion, mine, False, reason, reason, "the gate", _today(), decision.figures))
    else:
        _tag(client, name, mine, champion, "refused", decision)
    return Promotion(decision.promote, decision.reason)


def force(client: MlflowClient, name: str, version: str, why: str, who: str | None = None) -> str | None:
    """Makes a version champion against the gate, and records who did it and why.

    Returns:
        The version that was champion before; None if there was no champion.

    Raises:
        ConfigError: if there is no such model, or a tag of it is not what Foundry wrote.
    """
    finish(client, name)
    before, who = _champion(client, name, _versions(client, name)), who or whoami()
    _start(client, name, Move(before, version, False, f"forced by {who}: {why}", why, who, _today()))
    return before


def rollback(client: MlflowClient, name: str, why: str, who: str | None = None) -> Rollback:
    """Returns `champion` to the version before; versions that were deleted are skipped.

    If an earlier rollback was killed, it is finished and no second one is made.

    Raises:
        ConfigError: if there was no champion before, there is no such model, or a tag of it is not what Foundry wrote.
    """
    done = finish(client, name)
    if done and done.back:
        return Rollback(str(done.before), done.after)
    versions = _versions(client, name)
    now, line = _champion(client, name, versions), _line(registered_model(client, name), name)
    if now is None and not line:
        raise ConfigError(
            f"{name} has no champion and never had one; `foundry promote VERSION --force --why …` names one"
        )
    if now is not None and (not line or line[-1].version != now):  # the alias was set by hand
        line.append(Champion(now))
    now = now or line[-1].version  # the alias was removed, or the version was deleted
    back = next((e.version for e in reversed(line[:-1]) if e.version in versions and e.version != now), None)
    if back is None:
        raise ConfigError(
            f"{name}: there was no champion before version {now} that still exists; "
            "`foundry promote VERSION --force --why …` names one"
        )
    who = who or whoami()
    when = _today()
    _start(client, name, Move(now, back, True, f"by {who} on {when}: {why}", why, who, when))
    return Rollback(now, back)


def finish(client: MlflowClient, name: str) -> Move | None:
    """Finishes the change that a killed process left.

    Returns:
        That change; None if there is none, or if people have changed the champion since.

    Raises:
        ConfigError: if there is no such model, or its tag is not what Foundry wrote.
    """
    text = registered_model(client, name).tags.get(MOVE)
    if text is None:
        return None
    try:
        move = _MOVE.validate_json(text, strict=True)
    except ValidationError:
        raise _edited(MOVE, name, text) from None
    versions = _versions(client, name)
    if move.after in versions and _champion(client, name, versions) in (None, move.before, move.after):
        _apply(client, name, move, versions)
        return move
    client.delete_registered_model_tag(name, MOVE)
    return None


def _start(client: MlflowClient, name: str, move: Move) -> None:
    client.set_registered_model_tag(name, MOVE, json.dumps(asdict(move), ensure_ascii=False))
    _apply(client, name, move, _versions(client, name))


def _apply(client: MlflowClient, name: str, move: Move, versions: dict[str, ModelVersion]) -> None:
    """Moves the alias first, then writes the tags; each step can be repeated."""
    client.set_registered_model_alias(name, "champion", move.after)
    line = _line(registered_model(client, name), name)
    if move.back:
        if move.before in versions:
            client.set_model_version_tag(name, move.before, ROLLED_BACK, move.reason)
        while line and line[-1].version != move.after:
            line.pop()
    else:
        before = move.before if move.before in versions else None
        _tag(client, name, move.after, before, "promoted", Decision(True, move.reason, move.figures))
        if ROLLED_BACK in versions[move.after].tags:
            client.delete_model_version_tag(name, move.after, ROLLED_BACK)
    if not line or line[-1].version != move.after:
        line.append(Champion(move.after, move.why[:LONGEST_REASON], move.who, move.when))
    client.set_registered_model_tag(name, HISTORY, line_as_text(line))
    client.delete_registered_model_tag(name, MOVE)


def whoami() -> str:
    """The name of git's user, else that of the system's user."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(["git", "config", "user.name"], capture_output=True, text=True, timeout=10)
        if name := done.stdout.strip():
            return name
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the user of a container, without a name
        return f"user {os.getuid()}"


def registered_model(client: MlflowClient, name: str) -> RegisteredModel:
    """The registered model of that name.

    Raises:
        ConfigError: if there is none.
    """
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as e:
        if e.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # the latter: no possible name
            raise
        raise ConfigError(f"MLflow has no model {name}; `foundry register` registers the first version") from None


def _versions(client: MlflowClient, name: str) -> dict[str, ModelVersion]:
    return {str(v.version): v for v in every_version(client, name)}


def _champion(client: MlflowClient, name: str, versions: dict[str, ModelVersion]) -> str | None:
    found = str(registered_model(client, name).aliases.get("champion"))
    return found if found in versions else None  # a store may keep the alias of a version that was deleted


def _line(model: RegisteredModel, name: str) -> list[Champion]:
    text = model.tags.get(HISTORY, "[]")
    try:
        return _LINE.validate_json(text, strict=True)
    except ValidationError:
        raise _edited(HISTORY, name, text) from None


def _edited(tag: str, name: str, text: str) -> ConfigError:
    return ConfigError(
        f"the tag {tag} of the model {name} is not what Foundry wrote: {text[:80]!r}. Delete that tag in MLflow; "
        "the champion itself is the alias"
    )


def line_as_text(line: list[Champion]) -> str:
    """The line of champions as JSON, without the oldest ones if it would be too long for a tag."""
    while len(text := json.dumps([asdict(c) for c in line], ensure_ascii=False)) > LONGEST_TAG:
        line = line[1:]
    return text


def _tag(client: MlflowClient, name: str, version: str, champion: str | None, word: str, decision: Decision) -> None:
    """Writes the reason and its figures on both versions."""
    client.set_model_version_tag(name, version, WHY, f"{word}: {decision.reason}")
    for key, value in decision.figures.items():
        client.set_model_version_tag(name, version, f"{WHY}.{key}", repr(value))
    if champion and champion != version:
        client.set_model_version_tag(name, champion, CHALLENGED, f"version {version}, {word}: {decision.reason}")


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
