"""Addresses of MLflow: checked, absolute where they are used, relative to the project where they are written to a file.

A relative SQLite address is relative to the project, wherever a process was started. Files in `.foundry/` name a store
inside the project by its relative address: a moved project finds its own store, and a copied project never uses that of
the original.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from importlib.metadata import entry_points
from pathlib import Path

from foundry.config import ConfigError
from foundry.config.section import short_repr
from foundry.utils.files import project_dir, state_dir, write_json
from foundry.utils.records import Record

STATE = ".foundry"
DATABASES = ("postgresql", "mysql", "mssql")
RIGHT = "write sqlite:///mlflow.db (relative to the project), sqlite:////absolute/path/mlflow.db or http://HOST:PORT"


def project_home() -> Path:
    """The project's folder.

    A flow's worktree (`.foundry/runs/NAME/tree`) belongs to the project whose `.foundry` it links to.
    """
    here = project_dir()
    link = here / STATE
    if link.is_symlink() and here.is_relative_to(link.resolve()):
        return Path(os.readlink(link)).parent.resolve()
    return here


def own_store(home: Path | None = None) -> Path:
    """The SQLite file of a project that configures no other address."""
    return ((home / STATE).resolve() if home else state_dir()) / "mlflow.db"


def sqlite_uri(path: Path) -> str:
    """SQLAlchemy's address of a SQLite file, also of one with a question mark in its path."""
    text = f"./{path}" if str(path).startswith("file:") else str(path)  # a relative one that looks like a URI
    if "?" not in text:
        return f"sqlite:///{text}"
    # With `sqlite:///file:` MLflow creates a folder named `file:`, because it takes the rest for a path.
    return f"sqlite+pysqlite:///file:{urllib.parse.quote(text)}?uri=true"


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite address; None for every other address."""
    found = re.fullmatch(r"sqlite(?:\+pysqlite)?:///([^?]*)(?:\?.*)?", uri, re.DOTALL)
    if not found:
        return None
    text = found[1]
    return Path(urllib.parse.unquote(text.removeprefix("file:")) if text.startswith("file:") else text)


def resolve(uri: str, home: Path | None = None) -> str:
    """Checks an address and makes it absolute, as MLflow needs it.

    Args:
        home: the folder that a relative path is relative to; by default the project of this process.

    Raises:
        ConfigError: for an address that can never work; the message has the right form.
    """
    scheme = uri.partition(":")[0].partition("+")[0]
    if uri.startswith("sqlite"):
        return _resolve_sqlite(uri, home)
    if scheme in ("http", "https"):
        try:
            host = urllib.parse.urlsplit(uri).hostname
        except ValueError as e:
            raise ConfigError(f"{uri!r} is not an address of MLflow ({e}): {RIGHT}") from None
        if not host or not uri.isprintable() or " " in uri:
            raise ConfigError(f"{uri!r} is not an address of MLflow: it names no host; {RIGHT}")
        return uri
    if scheme in DATABASES and "://" in uri:
        return uri
    if scheme == "databricks" or scheme in {e.name for e in entry_points(group="mlflow.tracking_store")}:
        return uri
    if scheme == "file" or ":" not in uri:
        raise ConfigError(f"{uri!r} is a folder, to which MLflow does not write any more: {RIGHT}")
    raise ConfigError(f"{uri!r} is not an address of MLflow: {RIGHT}")


def _resolve_sqlite(uri: str, home: Path | None) -> str:
    path, query = sqlite_path(uri), uri.partition("?")[2]
    if path is None or "\0" in uri:
        raise ConfigError(f"{uri!r} is not an address of a SQLite file: {RIGHT}")
    if str(path) in (".", ":memory:"):
        raise ConfigError(f"{uri!r} names no file, and a store in memory is lost when the process ends: {RIGHT}")
    if query and not re.fullmatch(r"\w+=[^/&]*(&\w+=[^/&]*)*", query):
        name = uri.partition(":///")[2]
        raise ConfigError(
            f"{uri!r} has a question mark in its path, which starts the options: write {sqlite_uri(Path(name))}"
        )
    try:
        absolute = _absolute(path, home)
        folder = absolute.is_dir()
    except (OSError, RuntimeError) as e:  # a name longer than the system allows; a link to itself
        raise ConfigError(f"{short_repr(uri)} cannot be a file: {getattr(e, 'strerror', None) or e}") from None
    if folder:
        raise ConfigError(
            f"{uri!r}: {absolute} is a folder; name a file in it, such as {sqlite_uri(path / 'mlflow.db')}"
        )
    plain = sqlite_uri(absolute)
    if not query or query == "uri=true":
        return plain
    return f"{plain}{'&' if '?' in plain else '?'}{query.removeprefix('uri=true&')}"


def _absolute(path: Path, home: Path | None) -> Path:
    if path.is_absolute():
        return path.resolve()
    if path.parts[0] == STATE:
        return (own_store(home).parent / Path(*path.parts[1:])).resolve()
    return ((home or project_home()) / path).resolve()


def portable(uri: str, home: Path | None = None) -> str:
    """The address as it is written to a file: relative to the project if the store is inside it.

    `resolve` reverses it.
    """
    path = sqlite_path(uri)
    if path is None or not path.is_absolute() or uri != sqlite_uri(path):
        return uri
    for folder, prefix in ((own_store(home).parent, Path(STATE)), (home or project_home(), Path())):
        if path.is_relative_to(folder):
            return sqlite_uri(prefix / path.relative_to(folder))
    return uri


class RunRef(Record):
    """A run in a store of MLflow, as a file names it.

    Attributes:
        uri: absolute; in the file it is relative to the project if the store is inside the project.
    """

    uri: str
    run_id: str

    @classmethod
    def load(cls, path: Path, home: Path | None = None) -> RunRef:
        """Reads it from a file.

        Args:
            home: the project's folder; by default that of this process.

        Raises:
            FoundryError: if the file is missing or damaged.
        """
        ref = cls.read(path, "the address and id of a run in MLflow")
        return ref.model_copy(update={"uri": resolve(ref.uri, home)})

    def save(self, path: Path, home: Path | None = None) -> None:
        """Writes it to a file."""
        write_json(path, {"uri": portable(self.uri, home), "run_id": self.run_id})
