"""The graph of dvc.yaml: stages in an order that respects their dependencies, and the policy of each for Prefect."""

import difflib
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from foundry.config import ConfigError, read_yaml

OUTPUTS = ("outs", "metrics", "plots")


class Policy(BaseModel):
    """`meta.prefect` of a stage in dvc.yaml.

    Attributes:
        retries: how often the stage is retried after it was killed or asked for it (exit code 75).
        retry_delay_s: seconds before the first retry; each later wait is twice the one before.
        timeout_s: time limit in seconds; None for none.
    """

    model_config = ConfigDict(frozen=True)
    retries: int = 0
    retry_delay_s: float = 10
    timeout_s: float | None = None


@dataclass(frozen=True)
class Node:
    """One stage.

    Attributes:
        upstream: the stages whose outputs it reads, sorted.
        reads: sections of params.yaml that it, or a stage before it, depends on.
    """

    name: str
    upstream: list[str]
    policy: Policy = field(default_factory=Policy)
    reads: frozenset[str] = frozenset()


def stage_names(root: Path) -> list[str]:
    return list(read_yaml(root / "dvc.yaml")["stages"])


def plan(root: Path, target: str = "all") -> list[Node]:
    """The stages to run, each after those it depends on.

    Args:
        target: a stage, for it and all that it depends on; `all` for every stage.

    Raises:
        ConfigError: if the stage is unknown, with the nearest name; if the graph has a circle.
    """
    stages = read_yaml(root / "dvc.yaml")["stages"]
    if target != "all" and target not in stages:
        near = difflib.get_close_matches(target, stages, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"stages are all, {', '.join(stages)}"
        raise ConfigError(f"unknown stage {target!r}; {hint}")
    made = {_path(o): name for name, s in stages.items() for kind in OUTPUTS for o in s.get(kind, [])}
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
    policies = {n: Policy.model_validate((stages[n].get("meta") or {}).get("prefect", {})) for n in ordered}
    return [Node(n, upstream[n], policies[n], reads[n]) for n in ordered if n in wanted]


def reports_of(root: Path, names: list[str]) -> list[str]:
    """The reports of these stages: the outputs that git keeps (`cache: false` in dvc.yaml)."""
    stages = read_yaml(root / "dvc.yaml")["stages"]
    outs = [o for n in names for kind in OUTPUTS for o in stages[n].get(kind, [])]
    return [_path(o) for o in outs if isinstance(o, dict) and o[_path(o)].get("cache") is False]


def _path(out: str | dict[str, dict]) -> str:
    return out if isinstance(out, str) else next(iter(out))


def _within(dep: str, out: str) -> bool:
    """Whether a dependency and an output are the same path, or one contains the other."""
    return dep == out or dep.startswith(out + "/") or out.startswith(dep + "/")
