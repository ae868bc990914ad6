"""Which errors of a network are transient, so that a retry may succeed, whichever library raised them."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
import sys
from collections.abc import Iterator

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 527})  # HTTP; 52x: Cloudflare's
_LOST = (ConnectionError, TimeoutError, EOFError, socket.gaierror, http.client.HTTPException)
_NO_ROUTE = (errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH)
# Libraries whose connection errors are not all Python's own. They are looked up, not imported: a library that is not
# loaded cannot have raised an error.
_LOST_ELSEWHERE = {
    "aiohttp": ("ClientConnectionError", "ClientPayloadError"),
    "botocore.exceptions": ("HTTPClientError",),
    "ftplib": ("error_temp",),
    "httpx": ("NetworkError", "TimeoutException", "RemoteProtocolError", "ProxyError"),
    "httpx2": ("NetworkError", "TimeoutException", "RemoteProtocolError", "ProxyError"),
    "requests": ("ConnectionError", "Timeout"),
}


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, what caused that, and so on."""
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        yield now
        now = now.__cause__ or (None if now.__suppress_context__ else now.__context__)


def is_transient(error: BaseException) -> bool:
    """Whether a retry may succeed.

    It may if a connection could not be made, broke or was silent, a name did not resolve, or the status of the answer
    is one of `RETRIED`; not if a certificate was refused.
    """
    found = list(causes(error))
    if any(isinstance(e, ssl.SSLCertVerificationError) for e in found):
        return False
    lost = (*_LOST, *_lost_elsewhere())
    return any(
        isinstance(e, lost) or (isinstance(e, OSError) and e.errno in _NO_ROUTE) or _status(e) in RETRIED for e in found
    )


def _lost_elsewhere() -> Iterator[type[BaseException]]:
    for module, names in _LOST_ELSEWHERE.items():
        if loaded := sys.modules.get(module):
            yield from (getattr(loaded, name) for name in names)


def _status(error: BaseException) -> int | None:
    """The HTTP status of an error, from where requests, httpx, aiohttp, gcsfs and botocore keep it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = next(
            (
                value
                for at, name in ((response, "status_code"), (error, "status"), (error, "code"))
                if (value := getattr(at, name, None)) is not None
            ),
            None,
        )
    return int(found) if str(found).isdecimal() else None
