"""All checks of `foundry doctor`, in the order in which a failure explains those after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from foundry.config import Config, FoundryError, Runtime, load_params
from foundry.project.doctor import machine, place
from foundry.project.doctor.finding import Finding, note, ok, problem


def examine(params: str | Path, root: Path) -> list[Finding]:
    """Looks at the machine and at the project.

    Args:
        params: the parameter file; where there is none, the defaults of `runtime` are looked at.
        root: the project's folder.

    Returns:
        What was found. A check that fails itself is a problem among the others, and they run all the same.
    """
    cfg, found = _parameters(params)
    runtime = cfg.runtime if cfg else Runtime()
    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "python": machine.versions,
        "packages": partial(machine.packages, root),
        "device": partial(machine.device, runtime),
        "compile": partial(machine.compilation, runtime),
        "forward": partial(machine.forward_pass, runtime),
        "disk": partial(place.disk, root),
        "locks": partial(place.locks, root),
        "dvc": partial(place.dvc, root),
        "mlflow": partial(place.mlflow, runtime),
        "prefect": partial(place.prefect, root),
    }
    return [*(f for name, check in checks.items() for f in _guarded(name, check)), found]


def _parameters(path: str | Path) -> tuple[Config | None, Finding]:
    try:
        if not Path(path).exists():
            seen = f"{path} does not exist: the defaults were examined"
            return None, note("parameters", seen, "run `foundry doctor` in the folder of a project")
        return load_params(path), ok("parameters", f"{path}: every key is known and every value fits")
    except (FoundryError, OSError, ValueError) as e:
        return None, problem("parameters", str(e), f"correct {path}; the defaults were examined meanwhile")


def _guarded(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except Exception as e:  # a broken installation can raise anything, and the other checks may say why
        return [
            problem(
                name, f"the check failed: {type(e).__name__}: {e}", "the findings before it may say why; else report it"
            )
        ]
