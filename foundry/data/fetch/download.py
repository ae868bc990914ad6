"""The download stage's work: every source's bytes as published, under `data/raw/`, with a manifest.

Guarantees: `data/raw/` appears complete or not at all; the manifest, written last, names sha256, size, address and
licence of each file in the order of the parameters and is the same bytes for the same inputs, whichever mirror served;
the problems of all sources are reported together. A file without a sha256 in the parameters is recorded in
`data.lock.json` at its first download, and must stay the same. DVC deletes `data/raw/` before each run, so what came
over the network is kept under `.foundry/downloads/` and copied (never linked: DVC changes the modes of its outs), and
is not transferred a second time.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from foundry.config import Config, ConfigError, DataError, FoundryError, Source, UnreachableError
from foundry.data.fetch.hub import fetch_hub
from foundry.data.fetch.local import find_files
from foundry.data.fetch.lockfile import Locked, LockEntry, check_listing, lock_path, pin_of, read_lock, write_lock
from foundry.data.fetch.packages import fetch_tarball, fetch_wheel
from foundry.data.fetch.remote import fetch_remote
from foundry.data.fetch.sniff import check_kind
from foundry.data.fetch.sources import Address, Hub, Local, Remote, Tarball, Web, Wheel, parse_source
from foundry.data.fetch.store import MOST_THREADS, Fetched, Transfers, stored
from foundry.data.fetch.web import fetch_url
from foundry.data.read.template import Template
from foundry.utils.files import atomic_dir, make_folder, open_to_write, sha256_file, state_dir
from foundry.utils.locks import exclusive
from foundry.utils.log import progress
from foundry.utils.raw_manifest import Manifest, RawFile, RawSource, write_manifest

FICLONE = 0x40049409  # linux/fs.h: share the blocks of a file until one side is written


def download(config: Config, raw: Path, log: logging.Logger) -> Manifest:
    """Fetches all sources into `raw` and returns the manifest.

    Raises:
        ConfigError: with every address or template that cannot be understood, before any work.
        UnreachableError: with every source that could not be fetched, if a later retry may fetch all of them.
        DataError: with every source that could not be fetched, or a damaged lock file; nothing is written then.
    """
    sources = config.download.sources
    addresses = _check(sources)
    locked = read_lock(lock_path())
    for s in sources:
        log.info("%s: %s (licence: %s)", s.name, s.url, s.license)
    store = state_dir() / "downloads"
    with exclusive(store / "lock", "a download"):
        found = _fetch_all(config, addresses, _Fetcher(store, locked, config.download.allow_private, log))
        with atomic_dir(raw) as folder:
            manifest = Manifest(sources=tuple(_place(s, found[_key(s)], folder, locked) for s in sources))
            write_manifest(folder, manifest)
        _record(sources, [found[_key(s)] for s in sources], manifest, locked, log)
    for s in manifest.sources:
        count = len(s.files)
        log.info("%s: %d file%s, %.2f MB in %s", s.name, count, "s"[: count > 1], s.bytes / 1e6, raw / s.name)
    return manifest


def _check(sources: list[Source]) -> list[list[Address]]:
    addresses, problems = [], []
    for s in sources:
        try:
            addresses.append(parse_source(s))
            Template(s.text)
        except ConfigError as e:
            problems.append(str(e))
    if problems:
        raise ConfigError("\n  - ".join(["the sources cannot be fetched:", *problems]))
    return addresses


def _key(source: Source) -> tuple:
    """Two sources may be members of one published file: it is fetched once."""
    return source.url, source.sha256, tuple(source.mirrors), source.format


def _fetch_all(config: Config, addresses: list[list[Address]], fetcher: _Fetcher) -> dict[tuple, list[Fetched]]:
    wanted: dict[tuple, tuple[Source, list[Address]]] = {}
    for s, a in zip(config.download.sources, addresses, strict=True):
        wanted.setdefault(_key(s), (s, a))
    with (
        progress(desc="download", unit="B", unit_scale=True) as bar,
        ThreadPoolExecutor(MOST_THREADS) as pool,  # they wait for the slots of `transfers`
    ):
        transfers = Transfers(bar, config.runtime.downloads)
        tasks = {key: pool.submit(fetcher.fetch, s, a, transfers) for key, (s, a) in wanted.items()}
        found, problems = {}, {}
        try:
            for key, task in tasks.items():
                try:
                    found[key] = task.result()
                except FoundryError as e:
                    problems[wanted[key][0].name] = e
        except BaseException:  # Ctrl-C: the pool would wait until all files are complete
            transfers.stop()
            raise
    if problems:
        lines = [f"{name}: {e}" for name, e in problems.items()]
        message = "\n  - ".join([f"{len(problems)} of {len(wanted)} sources could not be fetched:", *lines])
        retry = all(isinstance(e, UnreachableError) for e in problems.values())  # one mistake fails every retry
        raise UnreachableError(message) if retry else DataError(message)
    return found


@dataclass(frozen=True)
class _Fetcher:
    store: Path
    locked: Locked
    allow_private: bool
    log: logging.Logger

    def fetch(self, source: Source, addresses: list[Address], transfers: Transfers) -> list[Fetched]:
        """The files of a source, from the first of its addresses that serves them.

        They have the names that its `url` gives, so that the result does not depend on the mirror that served.

        Raises:
            UnreachableError: if one of its addresses did not answer, so that a later retry may succeed.
            FoundryError: that of its only address; DataError if it has mirrors and all of them failed.
        """
        if source.sha256 and (hit := stored(self.store, source.sha256, addresses[0].filename or "")):
            check_kind(hit, hit.name, source.format)
            return [Fetched(hit, addresses[0].filename)]
        problems: list[FoundryError] = []
        for url, address in zip((source.url, *source.mirrors), addresses, strict=True):
            try:
                files = self._from(source, address, addresses[0].filename, transfers)
                if source.mirrors:
                    files = [replace(f, name=addresses[0].filename) for f in files]
                for f in files:
                    check_kind(f.path, f.name, source.format)
                if source.sha256 and isinstance(address, Local):
                    pin_of(source, url, {}).check(url, sha256_file(files[0].path), files[0].path.stat().st_size)
            except FoundryError as e:
                problems.append(e)
                continue
            if problems:
                self.log.info("%s: %s failed; served by the mirror %s", source.name, source.url, url)
            return files
        if len(problems) == 1:
            raise problems[0]
        message = f"{problems[0]}; then its mirrors: {' | '.join(map(str, problems[1:]))}"
        raise (
            UnreachableError(message) if any(isinstance(e, UnreachableError) for e in problems) else DataError(message)
        )

    def _from(self, source: Source, address: Address, name: str | None, transfers: Transfers) -> list[Fetched]:
        store, pin = self.store, partial(pin_of, source, locked=self.locked)
        listing = partial(check_listing, source, address, locked=self.locked)
        match address:
            case Wheel():
                with transfers.slot:
                    return [Fetched(fetch_wheel(address, name, pin(source.url), store, transfers), name)]
            case Tarball():
                with transfers.slot:
                    path = fetch_tarball(address, name, pin(source.url), store, transfers, self.allow_private)
                return [Fetched(path, name)]
            case Web():
                with transfers.slot:
                    path = fetch_url(address.url, name, pin(address.url), store, transfers, self.allow_private)
                return [Fetched(path, name, address.url)]
            case Hub():
                return fetch_hub(address, store, pin, listing, transfers)
            case Remote():
                return fetch_remote(address, name, store, pin, listing, transfers)
            case Local():
                return find_files(address.pattern)


def _place(source: Source, files: list[Fetched], folder: Path, locked: Locked) -> RawSource:
    """Copies the files of a source below the new folder and describes them; the hashes are those of the copies."""
    listed = []
    for f in sorted(files, key=lambda f: f.name):
        target = folder / source.name / f.name
        make_folder(target.parent)
        _copy(f.path, target)
        sha256, size = sha256_file(target), target.stat().st_size
        if f.address and (pin := pin_of(source, f.address, locked)):
            pin.check(f.address, sha256, size)
        listed.append(RawFile(path=f"{source.name}/{f.name}", sha256=sha256, bytes=size))
    if source.sha256 and [f.sha256 for f in listed] != [source.sha256]:
        seen = ", ".join(f.sha256 for f in listed[:3])
        raise DataError(
            f"{source.name}: {source.url} is not the one file that sha256 {source.sha256} names; "
            f"{len(listed)} found: {seen}"
        )
    described = {k: getattr(source, k) for k in RawSource.model_fields if k != "files"}
    return RawSource(**described, files=tuple(listed))


def _record(
    sources: list[Source], found: list[list[Fetched]], manifest: Manifest, locked: Locked, log: logging.Logger
) -> None:
    """Adds the files that were downloaded for the first time to the lock file."""
    new = {}
    for s, files, placed in zip(sources, found, manifest.sources, strict=True):
        for f, raw in zip(sorted(files, key=lambda f: f.name), placed.files, strict=True):
            if f.address and not s.sha256 and f.address not in locked:
                new[f.address] = LockEntry(sha256=raw.sha256, bytes=raw.bytes)
    if new:
        write_lock(lock_path(), {**locked, **new})
        log.info("recorded %d file%s in %s; commit it", len(new), "s"[: len(new) > 1], lock_path())


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as src, open_to_write(target) as dst:
        try:
            fcntl.ioctl(dst.fileno(), FICLONE, src.fileno())
            return
        except OSError:  # the file system cannot share blocks: copy the bytes
            shutil.copyfileobj(src, dst, 1 << 20)
