"""The chain of custody, from an export down to the raw bytes. Behind `foundry trace`.

`verify` compares every file with it, and `reproduce` builds it again.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foundry.config import Config, ConfigError, DataError, ExportError, parse_config, parse_yaml, read_yaml
from foundry.config.pipelines import EXPORTS, LOCKS
from foundry.export.lineage import ChatLink, Lineage, read_lineage
from foundry.export.manifest import NAME as PROOF
from foundry.export.manifest import verify_export
from foundry.tracking.names import COMMIT, CONTENT, DIRTY
from foundry.tracking.params import flatten
from foundry.utils.dvc_record import md5_folder, recorded_outs
from foundry.utils.files import sha256_json, sha256_tree
from foundry.utils.flow_runs import read_note

EXPORT = EXPORTS[0]
SHOWN_TAGS = ("foundry.", "git.", "dvc.", "prefect.", "mlflow.source.git")  # prefixes of the tags that a trace has


@dataclass(frozen=True)
class ExportedFiles:
    """The files of an export.

    Attributes:
        sha256: hash over `files`.
        files: {path in the export: sha256}.
    """

    name: str
    sha256: str
    files: dict[str, str]


@dataclass(frozen=True)
class Chain:
    """An export and its lineage."""

    export: ExportedFiles
    lineage: Lineage

    @property
    def parameters(self) -> dict[str, Any]:
        """The identity parameters of every training of the chain."""
        return {**self.lineage.parameters, **(self.lineage.chat.parameters if self.lineage.chat else {})}

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: the links by name."""
        return {"export": asdict(self.export), **self.lineage.model_dump(exclude_unset=True)}


@dataclass(frozen=True)
class Override:
    """A parameter that the export was made with and the commit does not have; empty where one of them lacks it."""

    committed: str
    exported: str


@dataclass(frozen=True)
class TracedVersion:
    """What the registry has of a version.

    Attributes:
        name: of the model and the version.
        dirty: whether its code was not committed.
        params: the `params.yaml` of its run; None if MLflow has none.
    """

    name: str
    dirty: bool
    tags: dict[str, str]
    params: dict[str, Any] | None

    @property
    def runtime(self) -> dict[str, Any] | None:
        """How its run was executed."""
        return (self.params or {}).get("runtime")

    def to_dict(self) -> dict[str, Any]:
        found = {"dirty": self.dirty, "version": self.name, "tags": self.tags}
        return found if self.params is None else {**found, "runtime": self.runtime}


@dataclass(frozen=True)
class Trace:
    """Where an export comes from.

    Attributes:
        commit: the commit that it was built from; None if it is not known here.
        version: None for an export that was given as a folder.
        overrides: parameters that differ from those of the commit; empty if the commit is not in this repository.
    """

    chain: Chain
    commit: str | None
    version: TracedVersion | None
    overrides: dict[str, Override]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            **self.chain.to_dict(),
            "commit": self.commit,
            **(self.version.to_dict() if self.version else {}),
            "overrides": {k: [o.committed, o.exported] for k, o in self.overrides.items()},
        }

    def lines(self) -> Iterator[str]:
        """For a person: from the model down to the raw bytes, the commit and the parameters."""
        export, lineage = self.chain.export, self.chain.lineage
        model = lineage.model
        version = f" ({self.version.name})" if self.version else ""
        yield f"export      {export.name}: {len(export.files)} files, {export.sha256}{version}"
        if lineage.chat:
            yield from _chat_lines(lineage.chat)
        yield f"  ← {'base model ' if lineage.chat else 'model      '} weights {model.weights_sha256}"
        yield f"  ← checkpoint  run {model.fingerprint}, step {model.steps:,}, {model.tokens:,} tokens"
        yield f"  ← shards      index {lineage.shards.index_sha256}, {len(lineage.shards.files)} files"
        yield f"  ← tokenizer   {lineage.tokenizer.sha256}"
        yield f"  ← clean text  {lineage.clean.sha256}, {len(lineage.clean.files)} files"
        for source in lineage.raw:
            yield f"  ← raw         {source.name}: {source.url} ({source.license})"
            for f in source.files:
                yield f"                  {f.sha256}  {f.bytes:,} bytes  {f.path}"
        commit = self.commit or "not known here: no dvc.lock of this repository records this export"
        dirty = " and code that was not committed" if self.version and self.version.dirty else ""
        yield f"  ← commit      {commit}{dirty}"
        yield f"  ← parameters  {sha256_json(self.chain.parameters)}"
        for key, o in self.overrides.items():
            yield f"                  {key}: {o.exported or 'none'} (the commit has {o.committed or 'none'})"


def _chat_lines(chat: ChatLink) -> Iterator[str]:
    """From the exported model down to the base model: each training, then what all of them learnt from."""
    for t in reversed(chat.trainings):
        yield f"  ← {t.stage:11} weights {t.weights_sha256}"
        yield f"  ← checkpoint  run {t.fingerprint}, step {t.steps:,}, {t.tokens:,} tokens"
    answers = sum(len(files) for link, files in chat.folders.items() if link.endswith("answers"))
    yield f"  ← chat data   {chat.data_sha256}, {len(chat.folders.get('chat data', {}))} files"
    if fields := chat.folders.get("fields"):
        yield f"  ← fields      {sha256_json(fields)}, {len(fields)} files"
    yield f"  ← template    {chat.template_sha256}"
    yield f"  ← verifiers   version {chat.verifier_version}, {answers} tables of answers"


def trace(where: str, cfg: Config, root: str | Path = ".") -> Trace:
    """Traces an export: its lineage, and, as far as they are known, the commit and the parameters that differ from it.

    Args:
        where: an exported folder, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        ExportError: if the folder is not an export, or was changed.
        ConfigError: if there is no such version.
        TrackingError: if MLflow cannot be reached.
    """
    root = Path(root)
    if not where.startswith("models:/"):
        chain, commit, version = chain_of(Path(where)), commit_of(Path(where), root), None
    else:
        with tempfile.TemporaryDirectory(prefix="foundry-trace-") as tmp:
            found = fetch_registered(where, cfg, Path(tmp))
            chain, commit = chain_of(found.export), found.tags.get(COMMIT)
            tags = {k: v for k, v in found.tags.items() if k.startswith(SHOWN_TAGS)}
            params = read_yaml(found.params) or {} if found.params else None
            version = TracedVersion(found.name, found.tags.get(DIRTY) == "true", tags, params)
    return Trace(chain, commit, version, _overrides(commit, chain.parameters, root))


@dataclass(frozen=True)
class RegisteredExport:
    """A version of the registry, copied into a folder.

    Attributes:
        export: the folder of its export.
        name: of the model and the version.
        params: the `params.yaml` of its run; None if MLflow has none.
    """

    export: Path
    name: str
    tags: dict[str, str]
    params: Path | None


def fetch_registered(where: str, cfg: Config, into: Path) -> RegisteredExport:
    """Copies a registered version into a folder.

    Raises:
        ExportError: if it is not what was registered: the registry has the hash of its files.
        ConfigError: if there is no such version.
        TrackingError: if MLflow cannot be reached.
    """
    from foundry.tracking import tracking_uri
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
    return RegisteredExport(folder, name, tags, params)


def _overrides(commit: str | None, parameters: dict[str, Any], root: Path) -> dict[str, Override]:
    text = _git(root, "show", f"{commit}:./params.yaml") if commit else None
    if text is None:
        return {}
    try:
        committed = parse_config(parse_yaml(text, "params.yaml"), "params.yaml")
    except ConfigError:  # it is of another version of Foundry
        return {}
    known = {**committed.identity(), **committed.post_training()}
    old, new = flatten({k: v for k, v in known.items() if k in parameters}), flatten(parameters)
    keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    return {k: Override(old.get(k, ""), new.get(k, "")) for k in keys}


def chain_of(folder: Path) -> Chain:
    """The chain of an exported folder whose files are what its proof says.

    Raises:
        ExportError: if the folder is not an export, or was changed.
    """
    record = verify_export(folder)
    export = ExportedFiles(record.model_name, sha256_json(record.files), record.files)
    return Chain(export, read_lineage(folder))


def commit_of(folder: Path, root: Path) -> str | None:
    """The commit that an export was built from; None if it is not known.

    It is the first one in which a `dvc.lock` records the export, or that of a flow's run that built it.
    """
    if not folder.is_dir():
        return None
    digest = md5_folder(folder)
    found = _git(root, "log", "--format=%H", "--reverse", "-S", digest, "--", *LOCKS)
    if found:
        return found.split()[0]
    run = kept_run(root, digest)
    note = run and read_note(run)
    return note.commit if note else None


def kept_run(root: Path, digest: str) -> Path | None:
    """The folder in `.foundry/runs` of a flow's run whose `dvc.lock` records an export of this MD5; None if there is
    none.
    """
    for run in sorted((root / ".foundry" / "runs").glob("*/run.json")):
        try:
            outs = recorded_outs(run.parent)
        except DataError:  # a run that was killed left a damaged file
            continue
        if any(outs[path].md5 == digest for path in EXPORTS if path in outs):
            return run.parent
    return None


def _git(root: Path, *args: str) -> str | None:
    """The output of git; None if it fails or is not installed."""
    try:
        done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
