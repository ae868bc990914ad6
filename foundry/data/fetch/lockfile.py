"""`data.lock.json`: the hashes that published files had at their first download.

For each published file without a sha256 in the parameters, the first download records hash and size; later ones refuse
other bytes. The file belongs under version control beside `params.yaml`. `foundry relock` removes the entries of a
source, so that the next download records them again. Files of this machine are not in it: they are below corpus/, whose
bytes DVC tracks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from foundry.config import Config, ConfigError, DataError, Source
from foundry.config.section import Sha256
from foundry.data.fetch.sources import Address, Hub, Remote, parse_source
from foundry.utils.files import project_dir, write_json
from foundry.utils.records import Record

_REPAIR = "restore it from version control, or delete it to record all files again"


class LockEntry(Record):
    """What a published file is known to be."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


Locked = dict[str, LockEntry]  # by address


class _LockFile(Record):
    version: Literal[1]
    files: Locked


@dataclass(frozen=True)
class Pin:
    """The hash that a file must have, the file that names it, and how a user accepts another one."""

    sha256: str
    origin: str
    accept: str

    def check(self, address: str, sha256: str, size: int) -> None:
        """Refuses a file of another hash.

        Raises:
            DataError: with both hashes, if they differ.
        """
        if sha256 != self.sha256:
            raise DataError(
                f"{address} is not the file that {self.origin} names: sha256 expected {self.sha256}, got {sha256} "
                f"({size:,} bytes). If the publisher replaced it on purpose, check the new file and {self.accept}"
            )


def lock_path() -> Path:
    return project_dir() / "data.lock.json"


def read_lock(path: Path) -> Locked:
    """The entries; empty if there is no file.

    Raises:
        DataError: if the file is damaged.
    """
    return _LockFile.read(path, _REPAIR, DataError).files if path.exists() else {}


def write_lock(path: Path, files: Locked) -> None:
    write_json(path, _LockFile(version=1, files=dict(sorted(files.items()))).model_dump())


def pin_of(source: Source, address: str, locked: Locked) -> Pin | None:
    """The hash that a file must have: that of the parameters, else that of the lock file; None if neither has one."""
    if source.sha256:
        return Pin(source.sha256, "params.yaml", "set its sha256")
    if address in locked:
        accept = f"run: foundry relock {source.name}"
        return Pin(locked[address].sha256, "data.lock.json", accept)
    return None


def entries_of(source: Source, address: Address, locked: Locked) -> list[str]:
    """The recorded addresses of a source's files."""
    if isinstance(address, Hub | Remote):
        return sorted(a for a in locked if address.covers(a))
    return [source.url] if source.url in locked else []


def check_listing(source: Source, address: Address, listed: list[str], locked: Locked) -> None:
    """A pattern whose files were recorded must match exactly these files again.

    Raises:
        DataError: naming what is new and what is gone.
    """
    known = entries_of(source, address, locked)
    if not known or source.sha256 or set(known) == set(listed):
        return
    new, gone = sorted(set(listed) - set(known)), sorted(set(known) - set(listed))
    changes = [
        f"{len(s)} {word} ({', '.join(s[:3])}{', …' * (len(s) > 3)})" for s, word in ((new, "new"), (gone, "gone")) if s
    ]
    raise DataError(
        f"{source.url} matches other files than those in data.lock.json: {'; '.join(changes)}. "
        f"To accept them, run: foundry relock {source.name}"
    )


def relock(config: Config, names: list[str], path: Path) -> list[str]:
    """Removes the entries of the named sources; returns their addresses.

    Raises:
        ConfigError: for a name that is not a source.
    """
    sources = {s.name: s for s in config.download.sources}
    if unknown := [n for n in names if n not in sources]:
        raise ConfigError(f"no such source: {', '.join(unknown)}; download.sources has {', '.join(sources)}")
    locked = read_lock(path)
    forgotten = sorted({a for n in names for a in entries_of(sources[n], parse_source(sources[n])[0], locked)})
    if forgotten:
        write_lock(path, {a: e for a, e in locked.items() if a not in forgotten})
    return forgotten
