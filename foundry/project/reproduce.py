"""Builds a recorded export again and compares every hash. Behind `foundry reproduce`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from foundry.config import Config, ConfigError, DataError, read_yaml, yaml_text
from foundry.config.pipelines import EXPORTS, PIPELINES
from foundry.project.trace import Trace, chain_of, kept_run, trace
from foundry.tracking.names import FLOW_RUN
from foundry.utils.dvc_record import md5_folder
from foundry.utils.files import write_text

DOWNLOADS = "data.lock.json"
LINKS = (  # from the first cause to the last result
    "parameters",
    "raw",
    "raw_manifest_sha256",
    "clean",
    "tokenizer",
    "shards",
    "model",
    "evaluation",
    "reports",
    "chat",
    "export",
)


def reproduce(where: str, cfg: Config, root: str | Path = ".", commit: str | None = None) -> list[str]:
    """Builds a recorded export again in a temporary clone, with nothing cached, and compares every hash.

    The parameters are those of the export's lineage, whether the commit, an edit or a flow's override gave them. How
    it was executed (`runtime`) is taken from the flow's run or the registry if they have it, else from the commit.
    Nothing is tracked or registered.

    Args:
        commit: is built instead of the recorded commit.

    Returns:
        Lines that say what differs; none if every link has the same bytes.

    Raises:
        ConfigError: if the commit is not known, or the export was made from code that was not committed.
        DataError: if the clone cannot be made or its pipeline fails.
    """
    root = Path(root).resolve()
    traced = trace(where, cfg, root)
    commit = commit or traced.commit
    if not commit:
        raise ConfigError(
            f"the commit of {where} is not known here: neither a dvc.lock of this repository nor a run in "
            ".foundry/runs records it; name it with --commit"
        )
    if traced.version and traced.version.dirty:
        raise ConfigError(
            f"{where} was made from {commit[:12]} and code that was not committed: it cannot be checked out"
        )
    run = _run_of(where, traced, root)
    with tempfile.TemporaryDirectory(prefix="foundry-reproduce-") as tmp:
        top = Path(_run(["git", "rev-parse", "--show-toplevel"], root, "find the repository").strip())
        _run(["git", "clone", "-q", "--no-checkout", str(top), f"{tmp}/clone"], root, "clone the repository")
        # A project may be a folder of a larger repository.
        clone = Path(tmp) / "clone" / root.relative_to(top.resolve())
        _run(["git", "checkout", "-q", "--detach", commit], Path(tmp) / "clone", f"check out {commit[:12]}")
        _bring(root, clone, run)
        params = clone / "params.yaml"
        _set_parameters(params, traced.chain.parameters, _runtime(params, traced, run))
        env = {
            **os.environ,
            "PYTHONPATH": str(clone),
            "DVC_ROOT": str(clone),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
        }
        file, export = _pipeline(traced)
        _run([sys.executable, "-m", "dvc", "repro", "--force", file], clone, "rebuild it", env)
        new = chain_of(clone / export)
    return differences(traced.chain.to_dict(), new.to_dict())


def _pipeline(traced: Trace) -> tuple[str, str]:
    """(the file of stages that builds an export, the export's folder)."""
    chat = traced.chain.lineage.chat
    at = 0 if chat is None else 1 if chat.trainings[-1].stage == "sft" else 2
    return tuple(PIPELINES.values())[at], EXPORTS[at]


def _run_of(where: str, traced: Trace, root: Path) -> Path | None:
    """The folder in `.foundry/runs` of the flow's run that built the export, if it still exists."""
    if traced.version is None:
        return kept_run(root, md5_folder(Path(where)))
    flow_run = traced.version.tags.get(FLOW_RUN, "")
    folder = root / ".foundry" / "runs" / flow_run[:8]
    return folder if flow_run and (folder / "run.json").is_file() else None


def _bring(root: Path, clone: Path, run: Path | None) -> None:
    """Adds what git may not have to the clone: the user's text, and the recorded hashes of downloads."""
    for path in (p for p in (root / "corpus").rglob("*") if p.is_file()):
        there = clone / path.relative_to(root)
        if not there.exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            there.symlink_to(path)
    kept = run / DOWNLOADS if run else None
    source = kept if kept and kept.is_file() else root / DOWNLOADS
    if source.is_file() and (source == kept or not (clone / DOWNLOADS).exists()):
        shutil.copy2(source, clone / DOWNLOADS)


def _runtime(committed: Path, traced: Trace, run: Path | None) -> dict[str, Any] | None:
    if run and (run / "params.yaml").is_file():
        return (read_yaml(run / "params.yaml") or {}).get("runtime")
    if traced.version and traced.version.runtime:
        return traced.version.runtime
    values = read_yaml(committed)
    return values.get("runtime") if isinstance(values, dict) else None


def _set_parameters(params: Path, parameters: dict[str, Any], runtime: dict[str, Any] | None) -> None:
    write_text(params, yaml_text({**parameters, "runtime": {**(runtime or {}), "tracking": False}}))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The links that differ, the raw bytes first: where one differs, those after it have to differ.

    Args:
        old: the links of a chain by name, as JSON values.
        new: the same of another chain.
    """
    return [f"{link}: {_first(old.get(link), new.get(link))}" for link in LINKS if old.get(link) != new.get(link)]


def _first(old: Any, new: Any, at: str = "") -> str:
    """Describes the first difference of two JSON values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}, key=str):
            if old.get(key) != new.get(key):
                return _first(old.get(key), new.get(key), f"{at}.{key}" if at else str(key))
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            if a != b:
                return _first(a, b, f"{at}[{i}]")
    return f"{at} was {str(old)[:80]}, now {str(new)[:80]}"


def _run(command: list[str], cwd: Path, what: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise DataError(f"could not {what}:\n{last}")
    return done.stdout
