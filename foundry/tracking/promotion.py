"""Who is champion: moved by a decision with a reason, by a person's force, or back. Every move is told in tags.

`challenger` is the newest version. The registered model's tag `foundry.champions` holds the line of champions, oldest first; a rollback takes the last
one off it and marks it, so that registering the same content again does not crown it again.
"""

from __future__ import annotations

import getpass
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from foundry.config import ConfigError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

HISTORY, WHY, CHALLENGED, ROLLED_BACK = (
    "foundry.champions",
    "foundry.promotion",
    "foundry.challenged_by",
    "foundry.rolled_back",
)


@dataclass(frozen=True)
class Decision:
    promote: bool
    reason: str
    figures: dict[str, float] = field(default_factory=dict)


Decide = Callable[["ModelVersion | None"], Decision]  # given the champion's version


def settle(client: MlflowClient, name: str, version: ModelVersion, decide: Decide) -> tuple[bool, str]:
    """Sets `challenger`, and `champion` when it is due: (is champion, why). Repeating it changes nothing."""
    newest = max(client.search_model_versions(f"name='{name}'"), key=lambda v: int(v.version))
    client.set_registered_model_alias(name, "challenger", newest.version)
    champion = _champion(client, name)
    if champion == str(version.version):
        return True, "it is the champion"
    marked = client.get_model_version(name, version.version).tags.get(ROLLED_BACK)
    if marked:
        return False, f"it was rolled back ({marked}); `foundry promote {version.version} --force --why …` overrides"
    decision = decide(client.get_model_version(name, champion) if champion else None)
    _tag(client, name, str(version.version), champion, decision)
    if decision.promote:
        _crown(client, name, str(version.version), decision.reason, "the gate")
    return decision.promote, decision.reason


def force(client: MlflowClient, name: str, version: str, why: str, who: str | None = None) -> str:
    """Makes a version champion against the gate; records who and why. Returns the champion before, or "none"."""
    before = _champion(client, name)
    who = who or whoami()
    _tag(client, name, version, before, Decision(True, f"forced by {who}: {why}"))
    client.delete_model_version_tag(name, version, ROLLED_BACK)
    _crown(client, name, version, why, who)
    return before or "none"


def rollback(client: MlflowClient, name: str, why: str, who: str | None = None) -> tuple[str, str]:
    """Returns `champion` to the version before: (the one that was, the one that is).

    Raises:
        ConfigError: if there was none before.
    """
    line, now = _line(client, name), _champion(client, name)
    if now is None:
        raise ConfigError(f"{name} has no champion")
    if not line or line[-1]["version"] != now:  # set by hand
        line.append({"version": now, "why": "set outside of Foundry", "who": "unknown", "when": ""})
    if len(line) < 2:
        raise ConfigError(
            f"{name}: there was no champion before version {now}; `foundry promote VERSION --force --why …` names one"
        )
    line.pop()
    back = line[-1]["version"]
    client.set_model_version_tag(name, now, ROLLED_BACK, f"by {who or whoami()} on {_today()}: {why}")
    client.set_registered_model_alias(name, "champion", back)
    client.set_registered_model_tag(name, HISTORY, _told(line))
    return now, back


def whoami() -> str:
    """git's user, else the system's."""
    try:
        done = subprocess.run(["git", "config", "user.name"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return getpass.getuser()
    return done.stdout.strip() or getpass.getuser()


def _champion(client: MlflowClient, name: str) -> str | None:
    found = client.get_registered_model(name).aliases.get("champion")
    return None if found is None else str(found)


def _line(client: MlflowClient, name: str) -> list[dict[str, str]]:
    return json.loads(client.get_registered_model(name).tags.get(HISTORY, "[]"))


def _crown(client: MlflowClient, name: str, version: str, why: str, who: str) -> None:
    line = _line(client, name)
    if not line or line[-1]["version"] != version:
        line.append({"version": version, "why": why[:300], "who": who, "when": _today()})
    client.set_registered_model_alias(name, "champion", version)
    client.set_registered_model_tag(name, HISTORY, _told(line))


def _told(line: list[dict[str, str]]) -> str:
    """As JSON, the oldest left out until it fits: a registered model's tag holds 5,000 characters."""
    while len(text := json.dumps(line, ensure_ascii=False)) > 5000:
        line = line[1:]
    return text


def _tag(client: MlflowClient, name: str, version: str, champion: str | None, decision: Decision) -> None:
    """The reason and its figures, on both versions."""
    word = "promoted" if decision.promote else "refused"
    client.set_model_version_tag(name, version, WHY, f"{word}: {decision.reason}")
    for key, value in decision.figures.items():
        client.set_model_version_tag(name, version, f"{WHY}.{key}", repr(value))
    if champion and champion != version:
        client.set_model_version_tag(name, champion, CHALLENGED, f"version {version}, {word}: {decision.reason}")


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
