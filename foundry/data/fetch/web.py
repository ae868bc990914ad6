"""Files over https: resumed, retried, and stored only when they are complete.

A transfer goes to a `.part` file; a broken one resumes there with Range + If-Range. It restarts from scratch where the
server ignores ranges, or where the answer is about another version of the file: another ETag, Last-Modified, length or
content coding, since not every server honours If-Range. Bytes are stored as published: no content coding is requested,
and gzip that a server applies anyway is undone, unless the hash or the name says that it is part of the file. A file of
known sha256 that is in the store costs no request; one of unknown hash costs a conditional request. Redirects are
followed by hand (`redirects.py`).

Does not retry what waiting cannot fix (404, a bad certificate, a full disk). A server that announces fewer bytes than
the file has cannot be distinguished from one that serves a shorter file, unless the hash is known.
"""

from __future__ import annotations

import contextlib
import email.utils
import gzip
import hashlib
import os
import random
import re
import shutil
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from foundry.config import DataError, UnreachableError
from foundry.config.version import VERSION
from foundry.data.fetch.lockfile import Pin
from foundry.data.fetch.redirects import Redirects
from foundry.data.fetch.sources import is_loopback
from foundry.data.fetch.store import Transfers, check_room, lock_of, read_note, stored
from foundry.data.read.kinds import outer_kind
from foundry.utils.files import disk_errors, make_folder, open_to_write, sha256_file, write_json
from foundry.utils.network import RETRIED

if TYPE_CHECKING:
    import requests

TRIES = 6  # in a row without one new byte
FIRST_WAIT = 1.0  # seconds; doubles with each try
LONGEST_WAIT = 60.0
TIMEOUT = (15.0, 60.0)  # connect, silence between two reads
CHUNK = 1 << 16  # bytes that a reset of the connection can lose


class _Transient(Exception):
    """A failure that a retry may not meet again.

    Attributes:
        wait: seconds that the server asks to wait.
    """

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Version(BaseModel):
    """What distinguishes one version of a file from another, by the headers of its response.

    Attributes:
        if_range: the validator that is strong enough to resume with.
    """

    model_config = ConfigDict(frozen=True)

    etag: str | None = None
    last_modified: str | None = None
    length: int | None = None
    coding: str | None = None
    if_range: str | None = None


class _Finished(_Version):
    """The note of a file in the store."""

    url: str
    sha256: str


def fetch_url(url: str, name: str, pin: Pin | None, store: Path, transfers: Transfers, allow_private: bool) -> Path:
    """Brings a file into the store, or finds it there.

    Args:
        name: the file's name in the store.
        pin: what the bytes must hash to; None if unknown.
        store: folder of finished files, each under its hash.
        transfers: counts the bytes as they come.
        allow_private: follow redirects to loopback and private addresses.

    Returns:
        `store/<sha256>/<name>`.

    Raises:
        UnreachableError: if the server does not answer, or the connection breaks, `TRIES` times in a row.
        DataError: if the file cannot be fetched, or does not have its hash.
    """
    with lock_of(url):
        if pin and (hit := stored(store, pin.sha256, name)):
            return hit
        make_folder(store)
        key = hashlib.sha256(url.encode()).hexdigest()[:16]
        part, note = store / f"{key}.part", store / f"{key}.json"
        known = None if pin else read_note(note, _Finished)
        hit = stored(store, known.sha256, name) if known else None
        transfer = _Transfer(url, part, known if hit else None, transfers, allow_private)
        if not transfer.run():
            return hit  # not modified
        came, digest = transfer.finished(pin, name)
        if pin and digest != pin.sha256 and transfer.joined:  # perhaps pieces of two versions: again in one piece
            part.unlink()
            transfer = _Transfer(url, part, None, transfers, allow_private)
            transfer.run()
            came, digest = transfer.finished(pin, name)
        if pin and digest != pin.sha256:
            size = came.stat().st_size
            for path in (came, part, _version_path(part)):
                path.unlink(missing_ok=True)
            pin.check(url, digest, size)
        path = store / digest / name
        version = _version_of(part)
        make_folder(path.parent)
        with disk_errors(store):
            os.replace(came, path)
        part.unlink(missing_ok=True)
        _version_path(part).unlink(missing_ok=True)
        write_json(note, {"url": url, "sha256": digest, **version.model_dump()})
        return path


def _version_path(part: Path) -> Path:
    return part.with_suffix(".part.json")


def _version_of(part: Path) -> _Version:
    """The version that the bytes in a part file belong to."""
    return read_note(_version_path(part), _Version) or _Version()


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


class _Transfer:
    """One file that is transferred into `part`.

    Attributes:
        known: the version in the store, if there is one.
        joined: whether pieces of several responses were put together.
    """

    def __init__(self, url: str, part: Path, known: _Version | None, transfers: Transfers, allow_private: bool) -> None:
        import requests

        self.url, self.part, self.known, self.transfers, self.joined = url, part, known, transfers, False
        self.session = requests.Session()
        if is_loopback(urlsplit(url).hostname or ""):
            self.session.trust_env = False  # no proxy can reach this machine's own loopback
        self.redirects = Redirects(url, allow_private)

    def run(self) -> bool:
        """Transfers the file; False if the server says that the known version is still the newest."""
        best, failures = _size(self.part), 0
        with contextlib.closing(self.session):
            while True:
                try:
                    return self._attempt() != 304
                except _Transient as e:
                    failures = 0 if _size(self.part) > best else failures + 1
                    best = max(best, _size(self.part))
                    if failures >= TRIES:
                        raise UnreachableError(
                            f"{self.url} cannot be fetched: {e} ({TRIES} tries in a row). Check the address and the "
                            "network; the same command resumes where it stopped"
                        ) from None
                    wait = FIRST_WAIT * 2**failures * random.uniform(0.5, 1.0) if e.wait is None else e.wait
                    time.sleep(min(wait, LONGEST_WAIT))

    def _attempt(self) -> int:
        headers = {"Accept-Encoding": "identity", "User-Agent": f"foundry/{VERSION}"}
        offset = _size(self.part)
        before = _version_of(self.part)
        if offset and offset == before.length:  # complete, but not renamed yet: an empty range would be refused
            offset -= 1
            os.truncate(self.part, offset)
        if offset and before.if_range:
            headers |= {"Range": f"bytes={offset}-", "If-Range": before.if_range}
        elif self.known and self.known.etag:
            headers["If-None-Match"] = self.known.etag
        elif self.known and self.known.last_modified:
            headers["If-Modified-Since"] = self.known.last_modified
        with contextlib.closing(self._get(headers)) as response:
            status = response.status_code
            if status == 304 and self.known:
                return status
            if status == 416:
                self._restart("the server refused to resume in the middle of the file")
            if status in RETRIED:
                raise _Transient(f"the server answered {status} {response.reason}", _retry_after(response))
            if status not in (200, 206):
                raise DataError(
                    f"{self.url} cannot be fetched: the server answered {status} {response.reason}. Check the address"
                )
            if status == 206:
                m = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""), re.ASCII)
                if not offset or not m or int(m[1]) != offset:
                    self._restart("the server sent another range than the one requested")
                version = _version(response, None if m[2] == "*" else int(m[2]))
                pairs = [(getattr(version, k), getattr(before, k)) for k in ("etag", "last_modified", "length")]
                if any(a and b and a != b for a, b in pairs) or version.coding != before.coding:
                    self._restart("the file changed while it was transferred")
                self.joined = True
                version = before.model_copy(update={"length": before.length or version.length})
            else:
                offset, self.joined = 0, False
                version = _version(response, _length(response))
                self.part.unlink(missing_ok=True)  # before the version is noted: its bytes are of another one
                write_json(_version_path(self.part), version.model_dump())
            self._receive(response, offset)
            total, came = version.length, _size(self.part)
            if total is not None and came < total:  # the server sent only a part of the range
                raise _Transient(f"{came:,} of {total:,} bytes came")
            if total is not None and came > total:
                self._restart(f"more bytes came ({came:,}) than the file has ({total:,})")
        return status

    def _restart(self, reason: str) -> NoReturn:
        self.part.unlink(missing_ok=True)
        raise _Transient(reason)

    def finished(self, pin: Pin | None, name: str) -> tuple[Path, str]:
        """Where the transferred file is, and its hash, after a content coding that was not requested is undone.

        A coding is part of the file where the bytes hash to `pin` as they are, or where the name says so: servers label
        `a.txt.gz` with `Content-Encoding: gzip` and mean the file itself.

        Raises:
            UnreachableError: if the coded bytes are cut or damaged.
            DataError: for another coding than gzip.
        """
        digest = sha256_file(self.part)
        coding = (_version_of(self.part).coding or "identity").strip().lower().removeprefix("x-")
        if coding == "identity" or (pin and digest == pin.sha256) or outer_kind(name) == coding:
            return self.part, digest
        if coding != "gzip":
            self.part.unlink()
            raise DataError(
                f"{self.url}: the server compressed the file with Content-Encoding {coding!r}, which was not requested "
                "and is not supported; fetch it by other means and name it as file:corpus/…, or use a mirror"
            )
        plain = self.part.with_suffix(".plain")
        try:
            with gzip.open(self.part) as compressed, open_to_write(plain) as out:
                shutil.copyfileobj(compressed, out, 1 << 20)
            return plain, sha256_file(plain)  # the compressed file stays: a killed transfer resumes with it
        except (gzip.BadGzipFile, EOFError, zlib.error) as e:
            plain.unlink()
            self.part.unlink()
            if isinstance(e, gzip.BadGzipFile):
                raise DataError(
                    f"{self.url}: the server announces Content-Encoding gzip, but sends something else ({e}); use "
                    "another address"
                ) from None
            raise UnreachableError(
                f"{self.url}: the server compressed the file with Content-Encoding gzip, and what it sent is damaged "
                f"({e}); run the same command again"
            ) from None

    def _receive(self, response: requests.Response, offset: int) -> None:
        import urllib3

        expected = _length(response)
        if expected is not None:
            check_room(self.part.parent, expected, self.url)
            self.transfers.expect(expected)
        received = 0
        try:
            with open_to_write(self.part, "ab" if offset else "wb") as f:
                for chunk in response.raw.stream(CHUNK, decode_content=False):
                    f.write(chunk)
                    received += len(chunk)
                    self.transfers.advance(len(chunk))
        except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as e:
            raise _Transient(f"the connection broke after {offset + received:,} bytes ({type(e).__name__})") from None
        finally:
            self.transfers.expect(received - expected if expected is not None else received)
        if expected is not None and received != expected:  # urllib3 2 raises by itself, urllib3 1 does not
            raise _Transient(f"{received:,} bytes came, {expected:,} were announced")

    def _get(self, headers: dict[str, str]) -> requests.Response:
        import requests
        import urllib3

        url, visited = self.url, [self.url]
        while True:
            try:
                response = self.session.get(url, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=False)
            except requests.exceptions.SSLError as e:
                raise DataError(
                    f"{url}: the server's certificate was not accepted ({e}); check REQUESTS_CA_BUNDLE"
                ) from None
            except (requests.ConnectionError, requests.Timeout) as e:
                raise _Transient(f"no connection ({e})") from None
            except (requests.RequestException, urllib3.exceptions.HTTPError) as e:
                raise DataError(f"{url} cannot be fetched: {e}") from None
            if not response.is_redirect:
                return response
            response.close()
            url = self.redirects.next(visited, response.headers["Location"])
            visited.append(url)


def _length(response: requests.Response) -> int | None:
    value = response.headers.get("Content-Length", "")
    return int(value) if re.fullmatch(r"\d{1,30}", value, re.ASCII) else None


def _version(response: requests.Response, length: int | None) -> _Version:
    """The version of a file that a response is about.

    A date is strong enough to resume with if it was a second old when the server answered (RFC 9110, 8.8.2.2).
    """
    etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
    since = [_date(response.headers.get(k, "")) for k in ("Last-Modified", "Date")]
    dated = None not in since and since[1] - since[0] >= 1
    return _Version(
        etag=etag,
        last_modified=modified,
        length=length,
        coding=response.headers.get("Content-Encoding"),
        if_range=etag if etag and not etag.startswith("W/") else modified if dated else None,
    )


def _date(value: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(value).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def _retry_after(response: requests.Response) -> float | None:
    """Seconds that the server asks to wait, from a number or a date."""
    value = response.headers.get("Retry-After", "")
    if re.fullmatch(r"\d+", value, re.ASCII):
        return float(value)
    date = _date(value)
    return None if date is None else max(0.0, date - time.time())
