"""The graph of the pipelines: stages in an order that respects their dependencies, and Prefect's policy for each."""

import difflib
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from foundry.config import ConfigError
from foundry.config.pipelines import PIPELINES, path_of, read_stages


class Policy(BaseModel):
    """`meta.prefect` of a stage.

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


def stage_names(root: Path, *pipelines: str) -> list[str]:
    """The stages of these pipelines; without any, of all of them."""
    return [name for name, stage in read_stages(root).items() if stage.pipeline in (pipelines or PIPELINES)]


def plan(root: Path, *targets: str) -> list[Node]:
    """The stages to run, each after those it depends on.

    Args:
        targets: stages, for them and all that they depend on; pipelines (`all` is dvc.yaml, and the default), for all
            of their stages and what they depend on.

    Raises:
        ConfigError: if the stage is unknown, with the nearest name; if the graph has a circle.
    """
    stages = read_stages(root)
    known = [*dict.fromkeys(s.pipeline for s in stages.values()), *stages]
    targets = targets or ("all",)
    for target in (t for t in targets if t not in known):
        near = difflib.get_close_matches(target, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"stages are {', '.join(known)}"
        raise ConfigError(f"unknown stage {target!r}; {hint}")
    made = {out: name for name, stage in stages.items() for out in stage.outs}
    upstream = {
        name: sorted(
            {
                maker
                for dep in stage.entry.get("deps", [])
                for out, maker in made.items()
                if maker != name and _within(dep, out)
            }
        )
        for name, stage in stages.items()
    }
    ordered: list[str] = []
    while len(ordered) < len(stages):
        ready = [n for n in stages if n not in ordered and set(upstream[n]) <= set(ordered)]
        if not ready:
            raise ConfigError(f"the graph has a circle among {', '.join(n for n in stages if n not in ordered)}")
        ordered += ready
    reads: dict[str, frozenset[str]] = {}
    for name in ordered:
        own = {p.partition(".")[0] for p in stages[name].entry.get("params", []) if isinstance(p, str)}
        reads[name] = frozenset(own).union(*(reads[u] for u in upstream[name]))
    wanted = {n for n, stage in stages.items() if n in targets or stage.pipeline in targets}
    for name in reversed(ordered):
        if name in wanted:
            wanted |= set(upstream[name])
    policies = {n: Policy.model_validate((stages[n].entry.get("meta") or {}).get("prefect", {})) for n in ordered}
    return [Node(n, upstream[n], policies[n], reads[n]) for n in ordered if n in wanted]


def reports_of(root: Path, names: list[str]) -> list[str]:
    """The reports of these stages: the outputs that git keeps (`cache: false` in their file)."""
    stages = read_stages(root)
    entries = [stages[n].entry for n in names]
    outs = [o for entry in entries for kind in ("outs", "metrics", "plots") for o in entry.get(kind, [])]
    return [path_of(o) for o in outs if isinstance(o, dict) and o[path_of(o)].get("cache") is False]


def _within(dep: str, out: str) -> bool:
    """Whether a dependency and an output are the same path, or one contains the other."""
    return dep == out or dep.startswith(out + "/") or out.startswith(dep + "/")
