"""The graph of dvc.yaml: stages in an order that respects their dependencies, what each waits for, and the scheduler's policy."""

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundry.config import ConfigError, read_yaml


@dataclass(frozen=True)
class Node:
    name: str
    upstream: list[str]
    policy: dict[str, Any] = field(default_factory=dict)  # meta.prefect: retries, retry_delay_s, timeout_s
    reads: frozenset[str] = frozenset()  # sections of params.yaml that it or a stage before it depends on


def stage_names(root: Path) -> list[str]:
    return list(read_yaml(root / "dvc.yaml")["stages"])


def plan(root: Path, target: str = "all") -> list[Node]:
    """The stages to run, each after those it depends on.

    Args:
        target: a stage: it and all that it depends on; `all`: every stage.

    Raises:
        ConfigError: for an unknown name, with the nearest one.
    """
    stages = read_yaml(root / "dvc.yaml")["stages"]
    if target != "all" and target not in stages:
        near = difflib.get_close_matches(target, stages, n=1)
        raise ConfigError(
            f"unknown stage {target!r}; "
            + (f"did you mean {near[0]!r}?" if near else f"stages are all, {', '.join(stages)}")
        )
    made = {
        _path(o): name for name, s in stages.items() for kind in ("outs", "metrics", "plots") for o in s.get(kind, [])
    }
    upstream = {
        name: sorted(
            {maker for dep in s.get("deps", []) for out, maker in made.items() if maker != name and _within(dep, out)}
        )
        for name, s in stages.items()
    }
    ordered: list[str] = []
    while len(ordered) < len(stages):
        ready = [n for n in stages if n not in ordered and set(upstream[n]) <= set(ordered)]
        if not ready:
            raise ConfigError(f"dvc.yaml has a circle among {', '.join(n for n in stages if n not in ordered)}")
        ordered += ready
    reads: dict[str, frozenset[str]] = {}
    for name in ordered:
        own = {p.partition(".")[0] for p in stages[name].get("params", []) if isinstance(p, str)}
        reads[name] = frozenset(own).union(*(reads[u] for u in upstream[name]))
    wanted = set(stages) if target == "all" else {target}
    for name in reversed(ordered):
        if name in wanted:
            wanted |= set(upstream[name])
    policies = {n: (stages[n].get("meta") or {}).get("prefect", {}) for n in ordered}
    return [Node(n, upstream[n], policies[n], reads[n]) for n in ordered if n in wanted]


def reports_of(root: Path, names: list[str]) -> list[str]:
    """The metrics and plots of these stages, as far as they are files that git keeps."""
    stages = read_yaml(root / "dvc.yaml")["stages"]
    outs = [o for n in names for kind in ("outs", "metrics", "plots") for o in stages[n].get(kind, [])]
    return [next(iter(o)) for o in outs if isinstance(o, dict) and next(iter(o.values())).get("cache") is False]


def _path(out: str | dict) -> str:
    return out if isinstance(out, str) else next(iter(out))


def _within(dep: str, out: str) -> bool:
    """Whether a dependency and an out are the same path, or one lies in the other."""
    return dep == out or dep.startswith(out + "/") or out.startswith(dep + "/")
