"""Files of buckets and servers that an fsspec driver reads: s3, gs, az, abfs, ftp, sftp.

Keys, endpoints and proxies come from the driver's environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …; FSSPEC_S3_ANON
for public buckets), never from the parameters. A file is streamed to a `.part`, its size compared with the listing's,
then renamed. The driver retries; a broken transfer starts from scratch. A file whose listing entry has not changed
since its transfer is not sent again; one of known hash that is in the store costs no request. Where a bucket contains
both `a` and `a/b`, the drivers list `a` only as a folder: a pattern does not reach the object, its own address does.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from foundry.config import DataError, UnreachableError
from foundry.data.fetch.lockfile import Pin
from foundry.data.fetch.sources import Remote
from foundry.data.fetch.store import Fetched, Transfers, check_names, check_room, lock_of, read_note, stored
from foundry.utils.files import disk_errors, make_folder, open_to_write, sha256_file, sha256_json, write_json
from foundry.utils.network import is_transient

CHUNK = 1 << 20
BLOCK = 8 << 20  # bytes of one request
DRIVERS = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "sftp": "paramiko"}


class _Finished(BaseModel):
    """A transferred file; `version` is the hash of its entry in the listing."""

    url: str
    sha256: str
    version: str


def fetch_remote(
    address: Remote,
    name: str | None,
    store: Path,
    pin_of: Callable[[str], Pin | None],
    check_listing: Callable[[list[str]], None],
    transfers: Transfers,
) -> list[Fetched]:
    """The file, or the files that the pattern matches.

    Args:
        name: of the file, if the address names only one.
        pin_of: what an address is known to hash to.
        check_listing: raises if the addresses that a pattern matches are not those of the last time.

    Raises:
        UnreachableError: if the server does not answer or breaks off.
        DataError: if the driver is missing, nothing matches, or a file cannot be read or is not what it was.
    """
    where = address.address(address.path)
    if name and (pin := pin_of(where)) and (hit := stored(store, pin.sha256, name)):
        return [Fetched(hit, name, where)]
    fs, root = _open(address)
    full = f"{root}{address.path}"
    if name:
        names = {name: full}
    else:
        with _driver(where):
            listing = fs.glob(full, detail=True)
        found = sorted(p for p, info in listing.items() if info["type"] == "file")
        if not found:
            raise DataError(f"{where} matches no file; {_nearby(fs, root, address)}")
        names = {p.removeprefix(f"{root}{address.base}").removeprefix("/"): p for p in found}
        check_names(names, where)
        check_listing([address.address(p.removeprefix(root)) for p in found])
    make_folder(store)

    def one(item: tuple[str, str]) -> Fetched:
        shown, path = item
        at = address.address(path.removeprefix(root))
        with lock_of(at):
            return Fetched(_fetch_file(fs, path, at, shown, store, pin_of(at), transfers), shown, at)

    files = list(names.items())
    if fs.async_impl:
        return transfers.each(one, files)
    # ftp has one connection, which threads cannot share
    return [f for item in files for f in transfers.each(one, [item])]


@contextmanager
def _driver(where: str) -> Iterator[None]:
    """For calls of a driver only: each driver has errors of its own, many of which are not an OSError. Other errors of
    Python itself (TypeError, KeyError, …) are bugs and are not translated.

    Raises:
        UnreachableError: if a later retry may succeed.
        DataError: for everything else that the driver refuses.
    """
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{where} does not exist; check bucket and path") from None
    except Exception as e:
        if not isinstance(e, OSError | EOFError | ValueError) and type(e).__module__ == "builtins":
            raise
        first = str(e).strip().splitlines()[0] if str(e).strip() else repr(e)
        message = f"{where} cannot be fetched: {type(e).__name__}: {first}. "
        if is_transient(e):
            raise UnreachableError(f"{message}The server did not answer or broke off; check the network") from None
        raise DataError(
            f"{message}Check the address, and the keys and endpoint in the driver's environment "
            "(for s3: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …, or FSSPEC_S3_ANON=true for a public bucket)"
        ) from None


def _open(address: Remote) -> tuple[Any, str]:
    """The driver, and what comes before `address.path` in its paths.

    No earlier instance or listing is used again, since files change.
    """
    try:
        from fsspec.core import url_to_fs

        options = {"skip_instance_cache": True, "use_listings_cache": False}
        with _driver(address.address(address.path)):
            fs, path = url_to_fs(address.address(address.path), **options)
    except ImportError as e:
        driver = DRIVERS.get(address.scheme, "fsspec")
        extra = " (or foundry-lm[s3])" if address.scheme == "s3" else ""
        raise DataError(
            f"{address.scheme}: addresses need a driver that is not installed ({e}); run: pip install {driver}{extra}"
        ) from None
    return fs, path.removesuffix(address.path)


def _nearby(fs: Any, root: str, address: Remote) -> str:
    folder = address.address(address.base)
    with _driver(folder):
        if not fs.isdir(f"{root}{address.base}"):
            return f"there is no folder {folder}"
        names = [p.rsplit("/", 1)[-1] for p in fs.ls(f"{root}{address.base}", detail=False)]
    return f"{address.address(address.base)} contains {', '.join(sorted(names)[:8]) or 'nothing'}"


def _fetch_file(
    fs: Any, path: str, address: str, shown: str, store: Path, pin: Pin | None, transfers: Transfers
) -> Path:
    name = shown.rsplit("/", 1)[-1]
    if pin and (hit := stored(store, pin.sha256, name)):
        return hit
    with _driver(address):
        info = fs.info(path)
    if info["type"] != "file":
        raise DataError(f"{address} is a folder; write {address}/** for all files below it")
    version = sha256_json({k: str(v) for k, v in info.items()})
    key = hashlib.sha256(address.encode()).hexdigest()[:16]
    note, part = store / f"{key}.json", store / f"{key}.part"
    known = None if pin else read_note(note, _Finished)
    if known and known.version == version and (hit := stored(store, known.sha256, name)):
        return hit
    size = info.get("size")
    if size is not None:
        check_room(store, size, address)
        transfers.expect(size)
    received = 0
    with open_to_write(part) as dst:
        for chunk in _chunks(fs, path, address):
            dst.write(chunk)
            received += len(chunk)
            transfers.advance(len(chunk))
    if size is not None and received != size:
        part.unlink()
        raise UnreachableError(
            f"{address}: {received:,} bytes came, the listing says {size:,}; run the same command again"
        )
    digest = sha256_file(part)
    if pin and digest != pin.sha256:
        part.unlink()
        pin.check(address, digest, received)
    target = store / digest / name
    make_folder(target.parent)
    with disk_errors(store):
        os.replace(part, target)
    write_json(note, _Finished(url=address, sha256=digest, version=version).model_dump())
    return target


def _chunks(fs: Any, path: str, address: str) -> Iterator[bytes]:
    with _driver(address):
        source = fs.open(path, "rb", block_size=BLOCK)
    with closing(source):
        while True:
            with _driver(address):
                chunk = source.read(CHUNK)
            if not chunk:
                return
            yield chunk
