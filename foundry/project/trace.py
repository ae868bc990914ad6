"""The chain of custody, from an export down to the raw bytes. Behind `foundry trace`; `verifying` checks it and `reproducing` builds it again."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.config import Config, ConfigError, DataError, ExportError, parse_config, parse_yaml, read_yaml
from foundry.export.lineage import read_lineage
from foundry.export.manifest import NAME as PROOF
from foundry.export.manifest import verify_export
from foundry.tracking.params import flatten
from foundry.utils.dvc_record import LOCK, md5_folder, recorded_outs
from foundry.utils.files import read_json, sha256_json, sha256_tree

EXPORT = "artifacts/export"


@dataclass(frozen=True)
class Registered:
    """A version of the registry, copied into a folder.

    Attributes:
        export: its export, which is what was registered.
        params: the `params.yaml` of its run; None if MLflow has none.
    """

    export: Path
    name: str
    tags: dict[str, str]
    params: Path | None


def trace(where: str, cfg: Config, root: str | Path = ".") -> dict[str, Any]:
    """The chain of an export: its `lineage.json`, the commit, and the parameters that differ from the commit's, as far as they are known.

    Args:
        where: an exported folder, or `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        ExportError: if the folder is no export, or was changed.
        ConfigError: if there is no such version.
        TrackingError: if MLflow cannot be reached.
    """
    root = Path(root)
    if not where.startswith("models:/"):
        chain = {**chain_of(Path(where)), "commit": commit_of(Path(where), root)}
        return {**chain, "overrides": overrides(chain, root)}
    with tempfile.TemporaryDirectory(prefix="foundry-trace-") as tmp:
        found = registered(where, cfg, Path(tmp))
        known = {"commit": found.tags.get("mlflow.source.git.commit"), "dirty": found.tags.get("git.dirty") == "true"}
        shown = ("foundry.", "git.", "dvc.", "prefect.", "mlflow.source.git")
        kept = {k: v for k, v in found.tags.items() if k.startswith(shown)}
        chain = {**chain_of(found.export), **known, "version": found.name, "tags": kept}
        if found.params:
            chain["runtime"] = (read_yaml(found.params) or {}).get("runtime")
        return {**chain, "overrides": overrides(chain, root)}


def registered(where: str, cfg: Config, into: Path) -> Registered:
    """Copies a registered version into a folder.

    Raises:
        ExportError: if it is not what was registered: the registry has the hash of its files.
        ConfigError: if there is no such version.
        TrackingError: if MLflow cannot be reached.
    """
    from foundry.tracking import tracking_uri
    from foundry.tracking.names import CONTENT
    from foundry.tracking.registry import fetch, find, reached

    uri = tracking_uri(cfg.runtime)
    with reached(uri, f"fetch {where}") as client:
        version = find(client, where)
        folder = next((p.parent for p in fetch(client, version, uri, into / "version").rglob(PROOF)), None)
        params = None
        if any(f.path == "params.yaml" for f in client.list_artifacts(version.run_id)):
            params = Path(client.download_artifacts(version.run_id, "params.yaml", str(into)))
    name, tags = f"{version.name} version {version.version}", dict(version.tags)
    if folder is None:
        raise ExportError(f"{name} in MLflow has no export of Foundry: it has no {PROOF}")
    verify_export(folder)
    if tags.get(CONTENT) != sha256_tree(folder):
        raise ExportError(
            f"{name}: its files in MLflow's store agree with each other, but they are not those that were registered "
            f"(tag {CONTENT}): somebody replaced them. Restore the store from a backup"
        )
    return Registered(folder, name, tags, params)


def overrides(chain: dict[str, Any], root: Path) -> dict[str, list[str]]:
    """{parameter: [in the commit's params.yaml, in the export]} of those that differ; empty if the commit is not in this repository."""
    shown = _git(root, "show", f"{chain['commit']}:./params.yaml") if chain.get("commit") else None
    if shown is None:
        return {}
    try:
        committed = parse_config(parse_yaml(shown, "params.yaml"), "params.yaml")
    except ConfigError:  # of another version of Foundry
        return {}
    old, new = flatten(committed.model_dump(mode="json", exclude={"runtime"})), flatten(chain["parameters"])
    return {k: [old.get(k, ""), new.get(k, "")] for k in {**old, **new} if old.get(k) != new.get(k)}


def chain_of(folder: Path) -> dict[str, Any]:
    """The chain of an exported folder whose files are what its proof says.

    Raises:
        ExportError: if the folder is no export, or was changed.
    """
    record = verify_export(folder)
    export = {"name": record.model_name, "sha256": sha256_json(record.files), "files": record.files}
    return {"export": export, **read_lineage(folder).model_dump()}


def commit_of(folder: Path, root: Path) -> str | None:
    """The commit that an export was built from: the first one whose `dvc.lock` records it, or that of a flow's run that built it; None if unknown."""
    if not folder.is_dir():
        return None
    digest = md5_folder(folder)
    found = _git(root, "log", "--format=%H", "--reverse", "-S", digest, "--", LOCK)
    if found:
        return found.split()[0]
    run = kept_run(root, digest)
    return run and read_json(run / "run.json", "what a flow's run was", DataError).get("commit")


def kept_run(root: Path, digest: str) -> Path | None:
    """`.foundry/runs/ID/` of a flow's run whose `dvc.lock` records an export of this MD5; None if there is none."""
    for run in sorted((root / ".foundry" / "runs").glob("*/run.json")):
        try:
            known = recorded_outs(run.parent).get(EXPORT)
        except DataError:  # of a run that was cut off
            continue
        if known and known.md5 == digest:
            return run.parent
    return None


def _git(root: Path, *args: str) -> str | None:
    """What git says; None if it refuses or is not installed."""
    try:
        done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


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
        " and code that was not committed" if chain.get("dirty") else ""
    )
    yield f"  ← parameters  {sha256_json(chain['parameters'])}"
    for key, (old, new) in chain.get("overrides", {}).items():
        yield f"                  {key}: {new or 'none'} (the commit has {old or 'none'})"
