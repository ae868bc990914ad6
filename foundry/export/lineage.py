"""`lineage.json` of an export: every link from the weights back to the raw bytes, by hashes, with the parameters.

It holds what is a function of the pipeline's inputs, so it is the same bytes on every build: no clock, no path of this machine, no commit. Imports
no torch and reads only the project's files, so that `foundry trace` needs nothing but the folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from foundry.config import DataError, ExportError
from foundry.utils.files import read_json, sha256_file, sha256_json

NAME = "lineage.json"
# Where the files of a link are in the project; of the reports, the chain holds those that the export reads.
FOLDERS = {
    "raw": "data/raw",
    "clean": "data/clean",
    "tokenizer": "artifacts/tokenizer",
    "shards": "data/shards",
    "model": "artifacts/model",
    "evaluation": "artifacts/evaluation",
    "reports": "reports",
}
REPORTS = ("clean.json", "evaluate.json")


def _inside(name: str) -> str:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError("a path outside its folder")
    return name


Inside = Annotated[str, AfterValidator(_inside)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Files(_Part):
    files: dict[Inside, str]


class _Model(_Files):
    weights_sha256: str
    fingerprint: str
    steps: int
    tokens: int


class _Shards(_Files):
    index_sha256: str


class _Hashed(_Files):
    sha256: str


class _RawFile(_Part):
    path: Inside
    sha256: str
    bytes: int


class _Source(_Part):
    name: str
    url: str
    license: str
    sha256: str
    files: list[_RawFile]


class _Chain(_Part):
    """What readers of `lineage.json` rely on."""

    model: _Model
    evaluation: _Files
    reports: _Files
    shards: _Shards
    tokenizer: _Hashed
    clean: _Hashed
    raw: list[_Source]
    raw_manifest_sha256: str
    raw_sha256: str
    parameters: dict[str, Any]


def lineage(root: str | Path, facts: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """The chain of the project at `root`: every file that a number of the export depends on, with its hash.

    Args:
        facts: `config.json` of the trained model.
        parameters: identity parameters: all of `params.yaml` but `runtime`.

    Returns:
        model, evaluation, reports, shards, tokenizer, clean, raw (each with the sha256 of its files), raw_sha256, parameters.

    Raises:
        DataError: if the manifest of the raw files, the index of the shards or a report is missing.
    """
    root = Path(root)
    manifest = root / FOLDERS["raw"] / "manifest.json"
    raw = read_json(manifest, "the manifest of the raw files; run `dvc repro download`", DataError)
    index = read_json(root / "data/shards/index.json", "the index of the shards; run `dvc repro shard`", DataError)
    sources = [
        {
            **{k: s[k] for k in ("name", "url", "license", "attribution", "lang", "files")},
            "sha256": sha256_json(s["files"]),
        }
        for s in raw["sources"]
    ]
    # These were compared with their files by those who read them.
    known = {f"{split}/{s['file']}": s["sha256"] for split, part in index["splits"].items() for s in part["shards"]}
    clean = _hashes(root / FOLDERS["clean"])
    reports = {name: root / FOLDERS["reports"] / name for name in REPORTS}
    if lost := [str(path) for path in reports.values() if not path.is_file()]:
        raise DataError(f"{', '.join(lost)} is missing; run `dvc repro evaluate`")
    return {
        "model": {
            **{k: facts[k] for k in ("weights_sha256", "fingerprint", "steps", "tokens")},
            "files": _hashes(root / FOLDERS["model"], {"model.safetensors": facts["weights_sha256"]}),
        },
        "evaluation": {"files": _hashes(root / FOLDERS["evaluation"])},
        "reports": {"files": {name: sha256_file(path) for name, path in reports.items()}},
        "shards": {"index_sha256": facts["index_sha256"], "files": _hashes(root / FOLDERS["shards"], known)},
        "tokenizer": {"sha256": facts["tokenizer_sha256"], "files": _hashes(root / FOLDERS["tokenizer"])},
        "clean": {"sha256": sha256_json(clean), "files": clean},
        "raw": sources,
        "raw_manifest_sha256": sha256_file(manifest),
        "raw_sha256": sha256_json([s["sha256"] for s in sources]),
        "parameters": parameters,
    }


def read_lineage(folder: str | Path) -> dict[str, Any]:
    """The chain of an export.

    Raises:
        ExportError: if the folder has none, or it is damaged; the message names the file and what is wrong in it.
    """
    path = Path(folder) / NAME
    chain = read_json(path, "the chain of an export; `foundry verify --repair` restores it", ExportError)
    try:
        _Chain.model_validate(chain)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "its content"
        raise ExportError(
            f"{path} is not the chain of an export of this version: {where}: {first['msg']}. `foundry verify --repair` "
            "restores a damaged one; `dvc repro export` writes it again"
        ) from None
    return chain


def files_of(chain: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(link, path in the project, sha256) of every file of the chain."""
    for link, folder in FOLDERS.items():
        if link == "raw":
            yield link, f"{folder}/manifest.json", chain["raw_manifest_sha256"]
            yield from ((link, f"{folder}/{f['path']}", f["sha256"]) for s in chain["raw"] for f in s["files"])
        else:
            yield from ((link, f"{folder}/{name}", digest) for name, digest in chain[link]["files"].items())


def _hashes(folder: Path, known: dict[str, str] | None = None) -> dict[str, str]:
    """{path in the folder: sha256}; that of a file in `known` is not computed again."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return {name: (known or {}).get(name) or sha256_file(folder / name) for name in names}
