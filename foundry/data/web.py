"""Files over https: resumed, retried, and whole or not there.

A transfer goes to a `.part` file; a broken one goes on from there with Range + If-Range, so that a file that changed
meanwhile, or a server that ignores ranges, restarts it from nothing. Bytes are stored as published (no content coding
is asked for, none is undone). A file of known sha256 that lies in the store costs no request; one of unknown hash costs
a conditional request.

Does not follow redirects to plain http, does not retry what waiting cannot mend (404, a bad certificate, a full disk).
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import json
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from foundry import __version__
from foundry.config import DataError
from foundry.data.sources import check_web, is_loopback
from foundry.utils.files import sha256_file, told_space, write_json

if TYPE_CHECKING:
    import requests

TRIES = 6  # in a row without one new byte
FIRST_WAIT = 1.0  # seconds; doubles with each try
LONGEST_WAIT = 60.0
TIMEOUT = (15.0, 60.0)  # connect, silence between two reads
CHUNK = 1 << 20
RETRIED = (408, 425, 429, 500, 502, 503, 504)
REDIRECTS = 10


class _Transient(Exception):
    """Waiting may mend it."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def fetch_url(url: str, name: str, sha256: str | None, store: Path, advance: Callable[[int], None]) -> Path:
    """Brings a file into the store, or finds it there.

    Args:
        name: the file's name in the store.
        sha256: what the bytes must hash to; None if unknown.
        store: folder of finished files, each under its hash.
        advance: told the number of bytes as they come.

    Returns:
        `store/<sha256>/<name>`.

    Raises:
        DataError: if the file cannot be had, or is not what its hash says.
    """
    if sha256 and (hit := stored(store, sha256, name)):
        return hit
    key = hashlib.sha256(url.encode()).hexdigest()[:16]
    part, facts = store / f"{key}.part", store / f"{key}.json"
    known = _read_facts(facts)
    hit = stored(store, known["sha256"], name) if known.get("sha256") and not sha256 else None
    whole, resumed = _transfer(url, part, known if hit else {}, advance)
    if not whole:
        return hit  # not modified
    digest = sha256_file(part)
    if sha256 and digest != sha256 and resumed:  # pieces of two versions, perhaps: once more in one piece
        part.unlink()
        _transfer(url, part, {}, advance)
        digest = sha256_file(part)
    if sha256 and digest != sha256:
        size = part.stat().st_size
        part.unlink()
        _validators(part).unlink(missing_ok=True)
        raise DataError(
            f"{url} is not the file that params.yaml names: sha256 expected {sha256}, got {digest} ({size:,} bytes). "
            "If the publisher replaced it on purpose, check the new file and set its sha256"
        )
    path = store / digest / name
    path.parent.mkdir(parents=True, exist_ok=True)
    validators = _read_facts(_validators(part))
    os.replace(part, path)
    _validators(part).unlink(missing_ok=True)
    write_json(facts, {"url": url, "sha256": digest, **validators})
    return path


def stored(store: Path, sha256: str, name: str) -> Path | None:
    """The finished file of that hash, checked; a damaged one is removed."""
    path = store / sha256 / name
    if not path.is_file():
        return None
    if sha256_file(path) == sha256:
        return path
    path.unlink()
    return None


def _validators(part: Path) -> Path:
    return part.with_suffix(".part.json")


def _read_facts(path: Path) -> dict[str, Any]:
    """A small file of ours; what a crash left of it counts as nothing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _transfer(url: str, part: Path, known: dict[str, Any], advance: Callable[[int], None]) -> tuple[bool, bool]:
    """Fills `part`. (False if the server says that the known file is still the newest, whether pieces were joined)."""
    import requests

    session = requests.Session()
    if is_loopback(urlsplit(url).hostname or ""):
        session.trust_env = False  # no proxy can reach this machine's own loopback
    best, failures, resumed = _size(part), 0, False
    with contextlib.closing(session), told_space(part.parent):
        while True:
            try:
                status, joined = _attempt(session, url, part, known, advance)
                return status != 304, resumed or joined
            except _Transient as e:
                resumed = resumed or _size(part) > 0
                failures = 0 if _size(part) > best else failures + 1
                best = max(best, _size(part))
                if failures >= TRIES:
                    raise DataError(
                        f"{url} cannot be fetched: {e} ({TRIES} tries in a row). Check the address and the network; "
                        "the same command goes on where it stopped"
                    ) from None
                wait = FIRST_WAIT * 2**failures * random.uniform(0.5, 1.0) if e.wait is None else e.wait
                time.sleep(min(wait, LONGEST_WAIT))


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _attempt(
    session: requests.Session, url: str, part: Path, known: dict[str, Any], advance: Callable[[int], None]
) -> tuple[int, bool]:
    headers = {"Accept-Encoding": "identity", "User-Agent": f"foundry/{__version__}"}
    offset = _size(part)
    before = _read_facts(_validators(part))
    etag = before.get("etag") or ""
    condition = etag if etag and not etag.startswith("W/") else before.get("last_modified")
    if offset and condition:
        headers |= {"Range": f"bytes={offset}-", "If-Range": condition}
    elif known.get("etag"):
        headers["If-None-Match"] = known["etag"]
    elif known.get("last_modified"):
        headers["If-Modified-Since"] = known["last_modified"]
    response = _get(session, url, headers)
    with contextlib.closing(response):
        status = response.status_code
        if status == 304 and known:
            return status, False
        if status == 416:
            part.unlink(missing_ok=True)
            raise _Transient("the server refused to go on in the middle of the file")
        if status in RETRIED:
            raise _Transient(f"the server answered {status} {response.reason}", _retry_after(response))
        if status not in (200, 206):
            raise DataError(
                f"{url} cannot be fetched: the server answered {status} {response.reason}. Check the address"
            )
        if status == 206:
            m = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            if not offset or not m or int(m[1]) != offset:
                part.unlink(missing_ok=True)
                raise _Transient("the server sent another range than the one asked for")
        else:
            offset = 0
            write_json(
                _validators(part),
                {"etag": response.headers.get("ETag"), "last_modified": response.headers.get("Last-Modified")},
            )
        _receive(response, part, offset, advance)
    return status, offset > 0


def _receive(response: requests.Response, part: Path, offset: int, advance: Callable[[int], None]) -> None:
    import urllib3

    length = response.headers.get("Content-Length")
    expected = int(length) if length is not None and length.isdigit() else None
    received = 0
    try:
        with open(part, "ab" if offset else "wb") as f:
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                f.write(chunk)
                received += len(chunk)
                advance(len(chunk))
    except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as e:
        raise _Transient(f"the connection broke after {offset + received:,} bytes ({type(e).__name__})") from None
    if expected is not None and received != expected:  # urllib3 2 tells it itself, urllib3 1 does not
        raise _Transient(f"{received:,} bytes came, {expected:,} were announced")


def _get(session: requests.Session, url: str, headers: dict[str, str]) -> requests.Response:
    import requests

    start = url
    for _ in range(REDIRECTS):
        try:
            response = session.get(url, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=False)
        except requests.exceptions.SSLError as e:
            raise DataError(
                f"{url}: the server's certificate was not accepted ({e}); check REQUESTS_CA_BUNDLE"
            ) from None
        except (requests.ConnectionError, requests.Timeout) as e:
            raise _Transient(f"no connection ({e})") from None
        except requests.RequestException as e:
            raise DataError(f"{url} cannot be fetched: {e}") from None
        if not response.is_redirect:
            return response
        response.close()
        url = urljoin(url, response.headers["Location"])
        check_web(url, f"the redirect of {start}")
    raise DataError(f"{start} was redirected {REDIRECTS} times; check the address")


def _retry_after(response: requests.Response) -> float | None:
    """Seconds that the server asks to wait, from a number or a date."""
    value = response.headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
