"""Who is champion: moved by a decision with a reason, by a person's force, or back. Every move is recorded in tags.

`challenger` is the newest version. The registered model's tag `foundry.champions` holds the line of champions, oldest first; a rollback takes the last
one off it and marks it, so that registering the same content again does not crown it again.

A move changes an alias and several tags, one request each. What it will change is written first, as one tag; then the alias moves, then the tags. The next
command finishes what a killed one left. People change aliases and delete versions in MLflow, too: deleted versions are skipped, an alias that was set by
hand counts, and one that was removed is set again by the next move.
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
from typing import TYPE_CHECKING, Any

from foundry.config import ConfigError
from foundry.tracking.names import CHALLENGED, HISTORY, MOVE, ROLLED_BACK, WHY
from foundry.tracking.search import every_version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel


@dataclass(frozen=True)
class Decision:
    promote: bool
    reason: str
    figures: dict[str, float] = field(default_factory=dict)


Decide = Callable[["ModelVersion | None"], Decision]  # given the champion's version


@dataclass(frozen=True)
class Move:
    """A change of the champion, as it is written before it happens.

    Attributes:
        before, after: versions; `before` is None if there was no champion.
        back: whether it is a rollback.
        reason: for the version's tag. `why`: for the line of champions.
    """

    before: str | None
    after: str
    back: bool
    reason: str
    why: str
    who: str
    when: str
    figures: dict[str, float] = field(default_factory=dict)


def settle(client: MlflowClient, name: str, version: ModelVersion, decide: Decide) -> tuple[bool, str]:
    """Sets `challenger`, and `champion` when it is due: (is champion, why). Repeating it changes nothing.

    Raises:
        ConfigError: if the tags of the model are not what Foundry wrote.
    """
    finish(client, name)
    here = _versions(client, name)
    client.set_registered_model_alias(name, "challenger", str(max(int(v) for v in here)))
    champion, mine = _champion(client, name, here), str(version.version)
    if champion == mine:
        return True, "it is the champion"
    marked = here[mine].tags.get(ROLLED_BACK)
    if marked:
        return False, f"it was rolled back ({marked}); `foundry promote {mine} --force --why …` overrides"
    decision = decide(here[champion] if champion else None)
    if decision.promote:
        reason = decision.reason
        _start(client, name, Move(champion, mine, False, reason, reason, "the gate", _today(), decision.figures))
    else:
        _tag(client, name, mine, champion, "refused", decision)
    return decision.promote, decision.reason


def force(client: MlflowClient, name: str, version: str, why: str, who: str | None = None) -> str:
    """Makes a version champion against the gate; records who and why. Returns the champion before, or "none".

    Raises:
        ConfigError: if there is no such model, or its tags are not what Foundry wrote.
    """
    finish(client, name)
    before, who = _champion(client, name, _versions(client, name)), who or whoami()
    _start(client, name, Move(before, version, False, f"forced by {who}: {why}", why, who, _today()))
    return before or "none"


def rollback(client: MlflowClient, name: str, why: str, who: str | None = None) -> tuple[str, str]:
    """Returns `champion` to the version before: (the one that was, the one that is). Versions that were deleted are skipped.

    A rollback that was killed is finished instead, and no second one is made.

    Raises:
        ConfigError: if there was none before, there is no such model, or its tags are not what Foundry wrote.
    """
    done = finish(client, name)
    if done and done.back:
        return str(done.before), done.after
    here = _versions(client, name)
    now, line = _champion(client, name, here), _line(_model(client, name), name)
    if now is None and not line:
        raise ConfigError(
            f"{name} has no champion and never had one; `foundry promote VERSION --force --why …` names one"
        )
    if now is not None and (not line or line[-1]["version"] != now):  # set by hand
        line.append({"version": now})
    now = now or line[-1]["version"]  # its alias was removed, or it was deleted
    back = next((e["version"] for e in reversed(line[:-1]) if e["version"] in here and e["version"] != now), None)
    if back is None:
        raise ConfigError(
            f"{name}: there was no champion before version {now} that is still there; "
            "`foundry promote VERSION --force --why …` names one"
        )
    who = who or whoami()
    when = _today()
    _start(client, name, Move(now, back, True, f"by {who} on {when}: {why}", why, who, when))
    return now, back


def finish(client: MlflowClient, name: str) -> Move | None:
    """Finishes the move that a killed process left, and returns it; None if there is none, or people changed the champion since.

    Raises:
        ConfigError: if there is no such model, or its tag is not what Foundry wrote.
    """
    model = _model(client, name)
    text = model.tags.get(MOVE)
    if text is None:
        return None
    try:
        move = Move(**json.loads(text))
    except (ValueError, TypeError):
        raise _not_ours(MOVE, name, text) from None
    here = _versions(client, name)
    if move.after in here and _champion(client, name, here) in (None, move.before, move.after):
        _apply(client, name, move, here)
        return move
    client.delete_registered_model_tag(name, MOVE)
    return None


def _start(client: MlflowClient, name: str, move: Move) -> None:
    client.set_registered_model_tag(name, MOVE, json.dumps(asdict(move), ensure_ascii=False))
    _apply(client, name, move, _versions(client, name))


def _apply(client: MlflowClient, name: str, move: Move, here: dict[str, ModelVersion]) -> None:
    """The alias first, then the tags; each step may be repeated."""
    client.set_registered_model_alias(name, "champion", move.after)
    line = _line(_model(client, name), name)
    if move.back:
        if move.before in here:
            client.set_model_version_tag(name, move.before, ROLLED_BACK, move.reason)
        while line and line[-1]["version"] != move.after:
            line.pop()
    else:
        before = move.before if move.before in here else None
        _tag(client, name, move.after, before, "promoted", Decision(True, move.reason, move.figures))
        if ROLLED_BACK in here[move.after].tags:
            client.delete_model_version_tag(name, move.after, ROLLED_BACK)
    if not line or line[-1]["version"] != move.after:
        line.append({"version": move.after, "why": move.why[:300], "who": move.who, "when": move.when})
    client.set_registered_model_tag(name, HISTORY, _told(line))
    client.delete_registered_model_tag(name, MOVE)


def whoami() -> str:
    """git's user, else the system's."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(["git", "config", "user.name"], capture_output=True, text=True, timeout=10)
        if name := done.stdout.strip():
            return name
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


def _model(client: MlflowClient, name: str) -> RegisteredModel:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as e:
        if e.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise ConfigError(f"MLflow has no model {name}; `foundry register` registers the first version") from None


def _versions(client: MlflowClient, name: str) -> dict[str, ModelVersion]:
    return {str(v.version): v for v in every_version(client, name)}


def _champion(client: MlflowClient, name: str, here: dict[str, ModelVersion]) -> str | None:
    found = str(_model(client, name).aliases.get("champion"))
    return found if found in here else None  # a store may keep the alias of a version that was deleted


def _line(model: RegisteredModel, name: str) -> list[dict[str, Any]]:
    text = model.tags.get(HISTORY, "[]")
    try:
        line = json.loads(text)
        if [str(entry["version"]) for entry in line] == [entry["version"] for entry in line]:
            return line
    except (ValueError, TypeError, KeyError):
        pass
    raise _not_ours(HISTORY, name, text)


def _not_ours(tag: str, name: str, text: str) -> ConfigError:
    return ConfigError(
        f"the tag {tag} of the model {name} is not what Foundry wrote: {text[:80]!r}. Delete that tag in MLflow; "
        "the champion itself is the alias"
    )


def _told(line: list[dict[str, str]]) -> str:
    """As JSON, the oldest left out until it fits: a registered model's tag holds 5,000 characters."""
    while len(text := json.dumps(line, ensure_ascii=False)) > 5000:
        line = line[1:]
    return text


def _tag(client: MlflowClient, name: str, version: str, champion: str | None, word: str, decision: Decision) -> None:
    """The reason and its figures, on both versions."""
    client.set_model_version_tag(name, version, WHY, f"{word}: {decision.reason}")
    for key, value in decision.figures.items():
        client.set_model_version_tag(name, version, f"{WHY}.{key}", repr(value))
    if champion and champion != version:
        client.set_model_version_tag(name, champion, CHALLENGED, f"version {version}, {word}: {decision.reason}")


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
