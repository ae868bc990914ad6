"""`data/raw/manifest.json`: the schema that its writer, the download stage, shares with cleaning and export."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field

from foundry.config import DataError
from foundry.utils.files import sha256_file, write_json
from foundry.utils.records import Record

NAME = "manifest.json"


class RawFile(Record):
    """A downloaded file: its path below the folder of the manifest, its hash, its size."""

    path: str
    sha256: str
    bytes: int


class RawSource(Record):
    """A source of the parameters (`foundry.config.Source` documents the keys) with the files that it gave, by name."""

    name: str
    url: str
    license: str
    attribution: str
    lang: str
    format: str
    encoding: str | None
    text: str
    fields: Annotated[tuple[str, ...], Field(strict=False)] = ()
    cut: str
    html: Literal["auto", "strip", "keep"]
    member: str | None
    files: Annotated[tuple[RawFile, ...], Field(strict=False)]  # JSON has no tuples

    @property
    def bytes(self) -> int:
        """The size of all files together."""
        return sum(f.bytes for f in self.files)


class Manifest(Record):
    """The sources, in the order of the parameters."""

    sources: Annotated[tuple[RawSource, ...], Field(strict=False)]


def write_manifest(raw: Path, manifest: Manifest) -> None:
    write_json(raw / NAME, manifest.model_dump())


def read_manifest(raw: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        DataError: if the manifest is missing, does not follow its schema, or names a file outside its folder.
    """
    path = raw / NAME
    manifest = Manifest.read(path, "run the download stage again (python -m stages.download)", DataError)
    for file in (f for s in manifest.sources for f in s.files):
        if PurePosixPath(file.path).is_absolute() or ".." in PurePosixPath(file.path).parts:
            raise DataError(f"{path} names {file.path!r}, which is outside {raw}; run the download stage again")
    return manifest


def verified(raw: Path, file: RawFile) -> Path:
    """The path of a file whose bytes are what the manifest says.

    Raises:
        DataError: if it is missing or was changed.
    """
    path = raw / file.path
    if not path.is_file():
        raise DataError(f"{path} is missing, though the manifest names it; run the download stage again")
    if (seen := sha256_file(path)) != file.sha256:
        raise DataError(
            f"{path} was changed after its download: sha256 {seen}, the manifest says {file.sha256}; "
            "run the download stage again"
        )
    return path
