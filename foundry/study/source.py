"""The pinned source of a study: which code its citations quote, and how a file of that code is read.

A pin is either a commit of a Git repository, with the hash of its tree, or a source archive from a package index, with
the SHA-256 of the archive and of the unpacked folder. Nothing is downloaded: the reader says where the clone or the
unpacked archive is.
"""

from __future__ import annotations

import json
import subprocess
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from foundry.config import ConfigError, DataError
from foundry.config.section import Name, Section, Sha256
from foundry.utils.files import sha256_file, sha256_tree

NAME = "source.toml"
GitHash = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class Source(Section):
    """What `source.toml` says: the project and the pin.

    Attributes:
        repository: owner and name on the code host.
        licence: SPDX identifier of the code's licence.
        commit: commit of the repository that the citations quote.
        sdist: file name of the archive that they quote instead.
        sha256: of that archive.
        folder: folder of the unpacked archive that the cited paths start from; the archive's own folder by default.
        tree: hash of the commit's tree, or of the unpacked archive (`foundry.utils.files.sha256_tree`).
    """

    name: Name
    repository: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    licence: Annotated[str, Field(min_length=1, max_length=60)]
    commit: GitHash | None = None
    sdist: Annotated[str, Field(pattern=r"^[\w.+-]+$")] | None = None
    sha256: Sha256 | None = None
    folder: str = "."
    tree: Annotated[str, Field(pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$")]

    @model_validator(mode="after")
    def _one_pin(self) -> Self:
        if (self.commit is None) == (self.sdist is None):
            raise ValueError("needs either `commit` or `sdist`")
        if (self.sdist is None) != (self.sha256 is None):
            raise ValueError("`sdist` and `sha256` belong together")
        if self.commit and self.folder != ".":
            raise ValueError("`folder` is for an sdist; the paths of a commit start at its top")
        return self

    @property
    def pin(self) -> str:
        """The commit, or the SHA-256 of the archive."""
        return self.commit or str(self.sha256)

    def toml(self) -> str:
        """The text of `source.toml`."""
        values = self.model_dump(exclude_none=True, exclude_defaults=True)
        return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())


def read_source(folder: Path) -> Source:
    """Reads `source.toml` of a study.

    Raises:
        DataError: if it is missing, no TOML, or does not name one pin.
    """
    path = folder / NAME
    try:
        return Source.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist: `foundry study add {folder.name} --help` explains how to pin"
        ) from None
    except ValidationError as e:
        problems = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'file'}: {p['msg']}" for p in e.errors())
        raise DataError(f"{path} is not valid: {problems}") from None
    except ValueError as e:
        raise DataError(f"{path} is not readable TOML: {e}") from None


class Code(ABC):
    """The files of one version of a project."""

    @abstractmethod
    def tree(self) -> str:
        """The hash of all files, as `Source.tree` records it."""

    @abstractmethod
    def read(self, path: str) -> bytes | None:
        """The content of a file; None if this version does not have it."""


@dataclass(frozen=True)
class Commit(Code):
    """A commit in a clone, which needs no work tree."""

    clone: Path
    commit: str

    @classmethod
    def find(cls, clone: Path, revision: str) -> Commit:
        """The commit that a revision names.

        Raises:
            ConfigError: if the folder is no clone or does not have the revision.
        """
        found = _git(clone, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
        if found is None:
            raise ConfigError(f"{clone} is no clone with the commit {revision}: `git clone` or `git fetch` it first")
        return cls(clone, found.decode().strip())

    def tree(self) -> str:
        return (_git(self.clone, "rev-parse", f"{self.commit}^{{tree}}") or b"").decode().strip()

    def read(self, path: str) -> bytes | None:
        return _git(self.clone, "cat-file", "blob", f"{self.commit}:{path}")


@dataclass(frozen=True)
class Unpacked(Code):
    """The folder of an unpacked source archive.

    Attributes:
        root: the archive's own folder.
        folder: where the cited paths start, below `root`.
    """

    root: Path
    folder: str = "."

    def tree(self) -> str:
        return sha256_tree(self.root)

    def read(self, path: str) -> bytes | None:
        file = self.root / self.folder / path
        return file.read_bytes() if file.is_file() else None


def open_code(source: Source, where: Path) -> Code:
    """The pinned code, in a clone or an unpacked archive whose tree is the recorded one.

    Raises:
        ConfigError: if the folder does not have it.
        DataError: if its files are not those that were recorded.
    """
    if not where.is_dir():
        raise ConfigError(f"--source {where} is no folder: give the clone of {source.repository} or the unpacked sdist")
    code = Commit.find(where, source.commit) if source.commit else Unpacked(where, source.folder)
    if (tree := code.tree()) != source.tree:
        raise DataError(
            f"{where} is not the pinned source of {source.name}: its tree is {tree}, {NAME} records {source.tree}. "
            f"Unpack {source.sdist or source.commit} into an empty folder"
        )
    return code


def pin_commit(clone: Path, revision: str) -> dict[str, str]:
    """The keys of `source.toml` that pin a commit."""
    found = Commit.find(clone, revision)
    return {"commit": found.commit, "tree": found.tree()}


def pin_sdist(archive: Path, unpacked: Path, folder: str) -> dict[str, str]:
    """The keys of `source.toml` that pin a source archive.

    Raises:
        ConfigError: if the archive or the folder does not exist.
    """
    if not archive.is_file():
        raise ConfigError(f"--archive {archive} does not exist: give the file of the source archive")
    if not (unpacked / folder).is_dir():
        raise ConfigError(
            f"{unpacked / folder} is no folder: unpack {archive.name} and give its own folder as --source"
        )
    tree = Unpacked(unpacked).tree()
    return {"sdist": archive.name, "sha256": sha256_file(archive), "folder": folder, "tree": tree}


def reader(code: Code) -> Callable[[str], list[bytes] | None]:
    """Reads a file as its lines, each file once; None for a file that does not exist."""

    @cache
    def lines(path: str) -> list[bytes] | None:
        content = code.read(path)
        return None if content is None else content.split(b"\n")

    return lines


def _git(folder: Path, *args: str) -> bytes | None:
    """The output of git; None if it reports a failure.

    Raises:
        ConfigError: if git is not installed.
    """
    try:
        done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, check=False)
    except FileNotFoundError:
        raise ConfigError("git is not installed, and the pinned source is a commit: install git") from None
    return done.stdout if done.returncode == 0 else None
