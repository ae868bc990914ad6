"""A recorded export is built again, and every hash compared. Behind `foundry reproduce`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from foundry.config import Config, ConfigError, DataError, read_yaml, yaml_text
from foundry.project.trace import EXPORT, chain_of, kept_run, trace
from foundry.utils.dvc_record import md5_folder
from foundry.utils.files import write_text

DOWNLOADS = "data.lock.json"
LINKS = (
    "parameters",
    "raw",
    "raw_manifest_sha256",
    "clean",
    "tokenizer",
    "shards",
    "model",
    "evaluation",
    "reports",
    "export",
)


def reproduce(where: str, cfg: Config, root: str | Path = ".", commit: str | None = None) -> list[str]:
    """Builds a recorded export again: its commit in a temporary clone with the recorded parameters, `dvc repro` with nothing cached, every hash compared.

    The parameters are those of the export's chain, whether the commit, an edit or a flow's override gave them. How it was run (`runtime`) is taken from
    the flow's run or the registry if they know it, else from the commit; nothing is tracked or registered.

    Args:
        commit: instead of the one that is known.

    Returns:
        Lines that say what differs; none if every link has the same bytes.

    Raises:
        ConfigError: if the commit is not known, or the export was made from code that was not committed.
        DataError: if the clone cannot be made or its pipeline fails.
    """
    root = Path(root).resolve()
    chain = trace(where, cfg, root)
    commit = commit or chain.get("commit")
    if not commit:
        raise ConfigError(
            f"the commit of {where} is not known here: neither a dvc.lock of this repository nor a run in .foundry/runs "
            "records it; name it with --commit"
        )
    if chain.get("dirty"):
        raise ConfigError(
            f"{where} was made from {commit[:12]} and code that was not committed: it cannot be checked out"
        )
    run = _run_of(where, chain, root)
    with tempfile.TemporaryDirectory(prefix="foundry-reproduce-") as tmp:
        top = Path(_run(["git", "rev-parse", "--show-toplevel"], root, "find the repository").strip())
        _run(["git", "clone", "-q", "--no-checkout", str(top), f"{tmp}/clone"], root, "clone the repository")
        clone = (
            Path(tmp) / "clone" / root.relative_to(top.resolve())
        )  # a project may be a folder of a larger repository
        _run(["git", "checkout", "-q", "--detach", commit], Path(tmp) / "clone", f"check out {commit[:12]}")
        _bring(root, clone, run)
        _set_parameters(clone / "params.yaml", chain, run)
        env = {
            **os.environ,
            "PYTHONPATH": str(clone),
            "DVC_ROOT": str(clone),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
        }
        _run([sys.executable, "-m", "dvc", "repro", "--force"], clone, "rebuild it", env)
        new = chain_of(clone / EXPORT)
    return differences(chain, new)


def _run_of(where: str, chain: dict[str, Any], root: Path) -> Path | None:
    """`.foundry/runs/ID/` of the flow's run that built the export, if it is still there."""
    if not where.startswith("models:/"):
        return kept_run(root, md5_folder(Path(where)))
    flow_run = chain["tags"].get("prefect.flow_run_id", "")
    folder = root / ".foundry" / "runs" / flow_run[:8]
    return folder if flow_run and (folder / "run.json").is_file() else None


def _bring(root: Path, clone: Path, run: Path | None) -> None:
    """What git may not have: the user's text, and the recorded hashes of downloads."""
    for path in (p for p in (root / "corpus").rglob("*") if p.is_file()):
        there = clone / path.relative_to(root)
        if not there.exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            there.symlink_to(path)
    kept = run / DOWNLOADS if run else None
    source = kept if kept and kept.is_file() else root / DOWNLOADS
    if source.is_file() and (source == kept or not (clone / DOWNLOADS).exists()):
        shutil.copy2(source, clone / DOWNLOADS)


def _set_parameters(params: Path, chain: dict[str, Any], run: Path | None) -> None:
    committed = read_yaml(params)
    runtime = committed.get("runtime") if isinstance(committed, dict) else None
    if run and (run / "params.yaml").is_file():
        runtime = (read_yaml(run / "params.yaml") or {}).get("runtime")
    elif chain.get("runtime"):
        runtime = chain["runtime"]
    values = {**chain["parameters"], "runtime": {**(runtime or {}), "tracking": False}}
    write_text(params, yaml_text(values))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Links that are not the same, the raw bytes first: where the first one differs, the others must."""
    out = []
    for link in LINKS:
        if old[link] != new[link]:
            out.append(f"{link}: {_first(old[link], new[link])}")
    return out


def _first(old: Any, new: Any, at: str = "") -> str:
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
