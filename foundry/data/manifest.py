"""`data/raw/manifest.json`: what the download stage leaves for the next one."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from foundry.config import DataError
from foundry.utils.files import read_json, sha256_file

_KEYS = {
    "name",
    "url",
    "license",
    "attribution",
    "lang",
    "format",
    "text",
    "encoding",
    "cut",
    "html",
    "member",
    "files",
}


def read_manifest(raw: Path) -> list[dict[str, Any]]:
    """The sources, in the order of the mix.

    Raises:
        DataError: if the manifest is missing, not ours, or names a file outside its folder.
    """
    path = raw / "manifest.json"
    data = read_json(path, "run the download stage first (python -m stages.download)", DataError)
    sources = data.get("sources") if isinstance(data, dict) else None
    if not isinstance(sources, list) or not all(isinstance(s, dict) and s.keys() >= _KEYS for s in sources):
        raise DataError(f"{path} is not a manifest of the download stage; run it again")
    for f in (f for s in sources for f in s["files"]):
        if PurePosixPath(f["path"]).is_absolute() or ".." in PurePosixPath(f["path"]).parts:
            raise DataError(f"{path} names {f['path']!r}, which lies outside {raw}; run the download stage again")
    return sources


def verified(raw: Path, file: dict[str, Any]) -> Path:
    """The path of a file whose bytes are what the manifest says.

    Raises:
        DataError: if it is missing or was changed.
    """
    path = raw / file["path"]
    if not path.is_file():
        raise DataError(f"{path} is missing, though the manifest names it; run the download stage again")
    if (seen := sha256_file(path)) != file["sha256"]:
        raise DataError(
            f"{path} was changed after its download: sha256 {seen}, the manifest says {file['sha256']}; "
            "run the download stage again"
        )
    return path
