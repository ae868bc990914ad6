"""Where a redirect may lead.

A published address must not make this machine read its own services or those of its network, nor fall back to plain
http. Refused: other schemes than https (http on the loopback), hosts that are or resolve to loopback, private,
link-local or otherwise not public addresses, circles. Allowed: whatever stays on the host and port that the user named.

A host is resolved here and again by the connection: a name server that answers differently the second time is not
detected. A host that does not resolve is allowed, since a proxy may know it; without one the connection fails.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urljoin, urlsplit

from foundry.config import DataError
from foundry.data.fetch.sources import check_web

MOST = 10


class Redirects:
    """The rule for the redirects of one address."""

    def __init__(self, start: str, allow_private: bool) -> None:
        self.start, self.allow_private = start, allow_private

    def next(self, visited: list[str], location: str) -> str:
        """The address to request next, after those visited.

        Raises:
            ConfigError: for another scheme than https.
            DataError: for a private address, a circle, or too many redirects.
        """
        try:
            url = urljoin(visited[-1], location)
        except ValueError as e:
            raise DataError(f"{self.start} was redirected to {location!r}, which is not an address: {e}") from None
        if len(visited) > MOST:
            where = (
                f"in a circle: {' → '.join(visited[visited.index(url) :][:4])} → …" if url in visited else "and no end"
            )
            raise DataError(f"{self.start} was redirected {MOST} times, {where}; check the address in a browser")
        check_web(url, f"the redirect of {self.start}")
        if not self.allow_private and _origin(url) != _origin(self.start) and (ip := _private(url)):
            raise DataError(
                f"{self.start} was redirected to {url}, whose host is {ip}, not a public address. If this is a mirror "
                "inside your network, set download.allow_private: true"
            )
        return url


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _private(url: str) -> str | None:
    """The first address of the host that is not public."""
    try:
        found = socket.getaddrinfo(urlsplit(url).hostname, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    for *_, place in found:
        ip = ipaddress.ip_address(str(place[0]).split("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        if not ip.is_global or ip.is_multicast:
            return str(ip)
    return None
