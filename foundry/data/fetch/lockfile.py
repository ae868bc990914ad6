"""`data.lock.json`: what came first under an address is what comes ever after.

For each published file without a sha256 in the parameters, the first download records hash and size; later ones refuse
other bytes. The file belongs under version control beside `params.yaml`. `foundry relock` forgets the entries of a
source, so that the next download records anew. Files of this machine are not in it: they are below corpus/, whose bytes DVC tracks.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.config import Config, ConfigError, DataError, Source
from foundry.data.fetch.sources import Address, Hub, Remote, parse_source
from foundry.utils.files import project_dir, write_json

VERSION = 1
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Pin:
    """The hash that a file must have, who says so, and how a user accepts another one."""

    sha256: str
    origin: str
    accept: str

    def check(self, address: str, sha256: str, size: int) -> None:
        """
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


def read_lock(path: Path) -> dict[str, dict[str, Any]]:
    """address → {sha256, bytes}; empty if there is no file.

    Raises:
        DataError: if the file is damaged.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as e:
        raise DataError(f"{path} is damaged ({e}); {_MEND}") from None
    version = data.get("version") if isinstance(data, dict) else None
    if version != VERSION:
        raise DataError(f"{path} has version {version!r}, this release reads {VERSION}; {_MEND}")
    files = data.get("files")
    if not isinstance(files, dict) or not (data.keys() == {"version", "files"}):
        raise DataError(f"{path} is damaged (it must hold version and files); {_MEND}")
    for address, entry in files.items():
        if not (
            isinstance(entry, dict)
            and entry.keys() == {"sha256", "bytes"}
            and isinstance(entry["sha256"], str)
            and _HASH.fullmatch(entry["sha256"])
            and type(entry["bytes"]) is int
            and entry["bytes"] >= 0
        ):
            raise DataError(f"{path} is damaged (the entry of {address!r} is {entry!r}); {_MEND}")
    return files


_MEND = "restore it from version control, or delete it to record all files anew"


def write_lock(path: Path, files: dict[str, dict[str, Any]]) -> None:
    write_json(path, {"version": VERSION, "files": dict(sorted(files.items()))})


def pin_of(source: Source, address: str, locked: dict[str, dict[str, Any]]) -> Pin | None:
    """What is known of a file before it comes: the parameter's word, else the lock's."""
    if source.sha256:
        return Pin(source.sha256, "params.yaml", "set its sha256")
    if address in locked:
        accept = f"run: foundry relock {source.name}"
        return Pin(locked[address]["sha256"], "data.lock.json", accept)
    return None


def entries_of(source: Source, address: Address, locked: dict[str, dict[str, Any]]) -> list[str]:
    """The recorded addresses of a source's files."""
    if isinstance(address, Hub | Remote):
        return sorted(a for a in locked if address.covers(a))
    return [source.url] if source.url in locked else []


def check_listing(source: Source, address: Address, listed: list[str], locked: dict[str, dict[str, Any]]) -> None:
    """A pattern of which files were recorded must match these files again: no more, no fewer.

    Raises:
        DataError: naming what is new and what is gone.
    """
    known = entries_of(source, address, locked)
    if not known or source.sha256 or set(known) == set(listed):
        return
    new, gone = sorted(set(listed) - set(known)), sorted(set(known) - set(listed))
    told = [
        f"{len(s)} {word} ({', '.join(s[:3])}{', …' * (len(s) > 3)})" for s, word in ((new, "new"), (gone, "gone")) if s
    ]
    raise DataError(
        f"{source.url} matches other files than those in data.lock.json: {'; '.join(told)}. "
        f"To accept them, run: foundry relock {source.name}"
    )


def relock(config: Config, names: list[str], path: Path) -> list[str]:
    """Forgets what was recorded of the named sources; returns the forgotten addresses.

    Raises:
        ConfigError: for a name that is no source.
    """
    sources = {s.name: s for s in config.download.sources}
    if unknown := [n for n in names if n not in sources]:
        raise ConfigError(f"no such source: {', '.join(unknown)}; download.sources has {', '.join(sources)}")
    locked = read_lock(path)
    forgotten = sorted({a for n in names for a in entries_of(sources[n], parse_source(sources[n])[0], locked)})
    if forgotten:
        write_lock(path, {a: e for a, e in locked.items() if a not in forgotten})
    return forgotten
