"""The chain of custody: printed, checked on disk, and built anew. Behind `foundry trace`, `verify` and `reproduce`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.config import Config, ConfigError, DataError, ExportError
from foundry.export.lineage import NAME
from foundry.export.manifest import verify_export
from foundry.utils.files import read_json, sha256_file, sha256_json

EXPORT = "artifacts/export"


@dataclass(frozen=True)
class Link:
    """One file of the chain: `state` is "ok", "changed" or "missing"."""

    link: str
    path: str
    state: str


def trace(where: str, cfg: Config, root: str | Path = ".") -> dict[str, Any]:
    """The chain of an export: its `lineage.json`, and the commit and parameters as far as they are known.

    Args:
        where: an exported folder, or `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        ExportError: if the folder is no export, or was changed.
        ConfigError: if there is no such version.
        TrackingError: if MLflow is away.
    """
    root = Path(root)
    if not where.startswith("models:/"):
        record = verify_export(where)
        return _chain(Path(where), record, {"commit": commit_of(Path(where), root)})
    from foundry.tracking import tracking_uri
    from foundry.tracking.registry import fetch, find, reached

    uri = tracking_uri(cfg.runtime)
    with reached(uri, f"trace {where}") as client, tempfile.TemporaryDirectory(prefix="foundry-trace-") as tmp:
        version = find(client, where)
        folder = next(p.parent for p in fetch(client, version, uri, Path(tmp)).rglob(NAME))
        tags = {
            k: v for k, v in version.tags.items() if k.startswith(("foundry.", "git.", "dvc.", "mlflow.source.git"))
        }
        known = {"commit": tags.get("mlflow.source.git.commit"), "dirty": tags.get("git.dirty") == "true"}
        return _chain(
            folder,
            verify_export(folder),
            {**known, "version": f"{version.name} version {version.version}", "tags": tags},
        )


def _chain(folder: Path, record: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    chain = read_json(
        folder / NAME, "the chain of an export; exports from before it was written have none", ExportError
    )
    return {
        "export": {"name": record["model_name"], "sha256": sha256_json(record["files"]), "files": record["files"]},
        **chain,
        **more,
    }


def commit_of(folder: Path, root: Path) -> str | None:
    """The commit whose `dvc.lock` first recorded this export, from the local history; None if none did."""
    digest = dvc_hash(folder)
    done = subprocess.run(
        ["git", "log", "--format=%H", "--reverse", "-S", digest, "--", "dvc.lock"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    return next(iter(done.stdout.split()), None) if done.returncode == 0 else None


def dvc_hash(folder: Path) -> str:
    """What DVC records of a folder: the MD5 of the list of its files with theirs."""
    import hashlib

    def md5(path: Path) -> str:
        with open(path, "rb") as f:
            return hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()

    rows = [{"md5": md5(p), "relpath": p.relative_to(folder).as_posix()} for p in folder.rglob("*") if p.is_file()]
    rows.sort(key=lambda r: r["relpath"])
    return hashlib.md5(json.dumps(rows).encode(), usedforsecurity=False).hexdigest() + ".dir"


def lines(chain: dict[str, Any]) -> Iterator[str]:
    """The chain for a person, from the model down to the raw bytes."""
    model, shards, clean = chain["model"], chain["shards"], chain["clean"]
    yield (
        f"export      {chain['export']['name']}: {len(chain['export']['files'])} files, {chain['export']['sha256']}"
        + (f" ({chain['version']})" if "version" in chain else "")
    )
    yield f"  ← model       weights {model['weights_sha256']}"
    yield f"  ← checkpoint  run {model['fingerprint']}, step {model['steps']:,}, {model['tokens']:,} tokens"
    yield f"  ← shards      index {shards['index_sha256']}, {len(shards['files'])} files"
    yield f"  ← tokenizer   {chain['tokenizer']['sha256']}"
    yield f"  ← clean text  {clean['sha256']}, {len(clean['files'])} files"
    for source in chain["raw"]:
        yield f"  ← raw         {source['name']}: {source['url']} ({source['license']})"
        for f in source["files"]:
            yield f"                  {f['sha256']}  {f['bytes']:,} bytes  {f['path']}"
    commit = chain.get("commit")
    yield f"  ← commit      {commit or 'not known here: no dvc.lock of this repository records this export'}" + (
        " and changes that were not committed" if chain.get("dirty") else ""
    )
    yield f"  ← parameters  {sha256_json(chain['parameters'])}"


def verify(folder: str | Path, root: str | Path = ".") -> list[Link]:
    """Hashes again what is on disk: the export itself, and whatever of its chain lies in the project.

    Raises:
        ExportError: if the folder is no export, or its own record was changed.
    """
    folder, root = Path(folder), Path(root)
    found: list[Link] = []
    try:
        files = verify_export(folder)["files"]
        found += [Link("export", f"{folder}/{name}", "ok") for name in files]
    except ExportError as e:
        if "is not as it was exported" not in str(e):
            raise
        bad = {n.strip(" -").rsplit(": ", 1)[0]: n.rsplit(": ", 1)[1] for n in str(e).split("\n")[1:-1]}
        found += [Link("export", f"{folder}/{name}", state) for name, state in bad.items()]
    chain = read_json(folder / NAME, "the chain of an export", ExportError)
    expected = [("model", root / "artifacts/model/model.safetensors", chain["model"]["weights_sha256"])]
    expected += [("shards", root / "data/shards" / n, h) for n, h in chain["shards"]["files"].items()]
    expected += [("tokenizer", root / "artifacts/tokenizer/tokenizer.model", chain["tokenizer"]["sha256"])]
    expected += [("clean", root / "data/clean" / n, h) for n, h in chain["clean"]["files"].items()]
    expected += [("raw", root / "data/raw" / f["path"], f["sha256"]) for s in chain["raw"] for f in s["files"]]
    found += [Link(link, str(path), _state(path, digest)) for link, path, digest in expected]
    index = root / "data/shards/index.json"
    if index.is_file():
        try:
            same = sha256_json(json.loads(index.read_text(encoding="utf-8"))) == chain["shards"]["index_sha256"]
        except ValueError:
            same = False
        found.append(Link("shards", str(index), "ok" if same else "changed"))
    return found


def _state(path: Path, digest: str) -> str:
    if not path.is_file():
        return "missing"
    return "ok" if sha256_file(path) == digest else "changed"


def reproduce(where: str, cfg: Config, root: str | Path = ".", commit: str | None = None) -> list[str]:
    """Builds a recorded export anew: its commit in a temporary clone, `dvc repro` with nothing cached, hashes compared link by link.

    Args:
        commit: instead of the one that is known.

    Returns:
        Lines that say what differs; none if every link has the same bytes.

    Raises:
        ConfigError: if the commit is not known, or the export was made from changes that were not committed.
        DataError: if the clone cannot be made or its pipeline fails.
    """
    root = Path(root).resolve()
    chain = trace(where, cfg, root)
    commit = commit or chain.get("commit")
    if not commit:
        raise ConfigError(
            f"the commit of {where} is not known here: no dvc.lock of this repository records it; name it with --commit"
        )
    if chain.get("dirty"):
        raise ConfigError(
            f"{where} was made from {commit[:12]} and changes that were not committed: they cannot be checked out"
        )
    with tempfile.TemporaryDirectory(prefix="foundry-reproduce-") as tmp:
        clone = Path(tmp) / "project"
        _run(["git", "clone", "-q", "--no-checkout", str(root), str(clone)], root, "clone the repository")
        _run(["git", "checkout", "-q", "--detach", commit], clone, f"check out {commit[:12]}")
        for path in (p for p in (root / "corpus").rglob("*") if p.is_file()):  # the user's text, which git may not hold
            there = clone / path.relative_to(root)
            if not there.exists():
                there.parent.mkdir(parents=True, exist_ok=True)
                there.symlink_to(path)
        env = {
            **os.environ,
            "PYTHONPATH": str(clone),
            "DVC_ROOT": str(clone),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        env |= {"MLFLOW_TRACKING_URI": f"sqlite:///{clone}/.foundry/mlflow.db", "DVC_NO_ANALYTICS": "1"}
        _run([sys.executable, "-m", "dvc", "repro", "--force"], clone, "rebuild it", env)
        new = _chain(clone / EXPORT, verify_export(clone / EXPORT), {})
    return differences(chain, new)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Links that are not the same, the raw bytes first: where the first one differs, the others must."""
    out = []
    for link in ("parameters", "raw", "clean", "tokenizer", "shards", "model", "export"):
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


def _run(command: list[str], cwd: Path, what: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        told = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise DataError(f"could not {what}:\n{told}")
