"""Bytes of a published file: decompressed, counted, cut into lines; damage is an error, never a shorter text.

Guarantees: a chunk and one record are in memory, never the file; what a compressed file grows to is counted while it
grows, so a decompression bomb stops at its limit; truncation, bad checksums and bytes after the end raise.

Why not the obvious readers: `zstandard.stream_reader` ends without an error in a truncated file, `gzip` reads 0 bytes
as an empty file, `bz2` and `lzma` leave out what follows the first stream unless it is one of theirs, `str.splitlines`
cuts at U+2028 and U+0085, which may occur inside a JSON string.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.config import DataError
from foundry.utils.files import open_to_write

CHUNK = 1 << 20
SMALL = 64 << 20  # what a file may grow to whatever its ratio
XZ_MEMORY = 256 << 20  # a dictionary of xz -9 needs 65 MB


@dataclass(frozen=True)
class Limits:
    """`max_record_bytes`, `max_unpack_ratio` (0: no limit) and `max_unpacked_bytes` of the section `clean`."""

    record: int = 64 << 20
    ratio: float = 1000.0
    unpacked: int = 1 << 40


class GrowthLimit:
    """Counts what one compressed file or archive of `size` bytes grows to, all its members together.

    Raises:
        DataError: from `add`, once that is more than the limits allow.
    """

    def __init__(self, shown: str, size: int, limits: Limits) -> None:
        self.shown, self.size, self.limits, self.grown = shown, size, limits, 0
        by_ratio = max(SMALL, limits.ratio * size) if limits.ratio else limits.unpacked
        self.most = int(min(limits.unpacked, by_ratio))  # the ratio may be infinite

    def add(self, n: int) -> None:
        self.grown += n
        if self.grown > self.most:
            by_size = self.most == self.limits.unpacked
            key, value = ("max_unpacked_bytes", self.most) if by_size else ("max_unpack_ratio", self.limits.ratio)
            raise DataError(
                f"{self.shown} has {self.size:,} bytes and grows to more than {self.most:,}: a decompression bomb, "
                f"or clean.{key} ({value:,}) is too low for it"
            )


class Stream:
    """Reads forward; the beginning may be looked at first, and `growth` counts what was read."""

    def __init__(self, raw: Any, growth: GrowthLimit | None = None) -> None:
        self._raw, self._growth, self._head = raw, growth, b""

    def read(self, n: int) -> bytes:
        """`n` bytes if the stream below gives so many at once, else fewer; empty only at the end."""
        head = b""
        if self._head:
            head, self._head = self._head[:n], self._head[n:]
            if len(head) == n:
                return head
        data = self._raw.read(n - len(head))
        if self._growth:
            self._growth.add(len(data))
        return head + data if head else data

    def peek(self, n: int) -> bytes:
        """The next `n` bytes, fewer only at the end; `read` gives them again."""
        parts = [self._head]
        size = len(self._head)
        while size < n and (data := self._raw.read(n - size)):
            if self._growth:
                self._growth.add(len(data))
            parts.append(data)
            size += len(data)
        self._head = b"".join(parts)
        return self._head[:n]


_DAMAGE = (
    *(EOFError, OSError, NotImplementedError),
    *(zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError),
)


@contextmanager
def damage(shown: str) -> Iterator[None]:
    """Translates the errors of the libraries that decompress.

    Raises:
        DataError: if what is read inside is missing, may not be read, is truncated or damaged.
    """
    try:
        yield
    except FileNotFoundError as e:
        raise DataError(f"{shown} does not exist ({e.filename}); run the download stage again") from None
    except PermissionError as e:
        raise DataError(f"{shown}: no permission to read {e.filename}") from None
    except _DAMAGE as e:
        if isinstance(e, OSError) and e.errno == errno.ENOSPC:
            raise DataError(f"{shown}: no disk space to unpack it in {tempfile.gettempdir()}; set TMPDIR") from None
        raise DataError(
            f"{shown} is damaged or not what its name says ({type(e).__name__}: {e}); fetch or make it again"
        ) from None


def unpack(raw: Any, compression: str | None, shown: str, growth: GrowthLimit) -> Stream:
    """The decompressed bytes; those of `raw` itself, not counted, without a compression.

    Args:
        raw: at the beginning of its bytes.
        compression: a name in `foundry.config.formats.COMPRESSIONS`.

    Raises:
        DataError: if there are no bytes at all; reading raises within `damage` for what is damaged.
    """
    packed = Stream(raw)
    if compression is None:
        return packed
    if not packed.peek(1):
        raise DataError(f"{shown} has 0 bytes, which is not a {compression} file; fetch or make it again")
    if compression == "gzip":
        return Stream(gzip.GzipFile(fileobj=packed), growth)
    if compression == "zstd":
        import pyarrow as pa

        return Stream(pa.CompressedInputStream(pa.PythonFile(_Closable(packed), "r"), "zstd"), growth)
    return Stream(_Strict(packed, compression), growth)


class _Closable:
    """What pyarrow asks of a Python file beyond `read`."""

    closed = False

    def __init__(self, stream: Stream) -> None:
        self.read = stream.read

    def close(self) -> None:
        self.closed = True


class _Strict:
    """bzip2 and xz: streams in a row, and nothing but them."""

    def __init__(self, packed: Stream, compression: str) -> None:
        self._packed, self._new = packed, bz2.BZ2Decompressor if compression == "bzip2" else _xz
        self._padded = compression == "xz"
        self._now: Any = self._new()

    def read(self, n: int) -> bytes:
        while True:
            if self._now.eof:
                rest = self._now.unused_data
                while self._padded and not rest.strip(b"\0"):  # xz allows zeros between streams
                    if not (rest := self._packed.read(CHUNK)):
                        return b""
                rest = rest.lstrip(b"\0") if self._padded else rest or self._packed.read(CHUNK)
                if not rest:
                    return b""
                self._now = self._new()
            else:
                rest = self._packed.read(CHUNK) if self._now.needs_input else b""
                if not rest and self._now.needs_input:
                    raise EOFError("it ends before the end of its stream")
            if data := self._now.decompress(rest, n):
                return data


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)


def read_lines(stream: Any, limit: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes, bool]]:
    """(byte offset, line without its end, whether it is complete), cut only at line feeds.

    A line longer than `limit` is cut there and marked as not complete.

    Args:
        start, stop: only lines that begin in [start, stop). Offsets are those of the file; with a `start` other than 0
            the stream begins with the byte before it.
    """
    offset = start
    chunk = stream.read(CHUNK)
    at = 0
    if start:
        offset -= 1
        while chunk and (at := chunk.find(b"\n") + 1) == 0:
            offset += len(chunk)
            if stop is not None and offset >= stop:
                return
            chunk = stream.read(CHUNK)
        offset += at
    parts: list[bytes] = []
    size = 0
    while chunk:
        while (end := chunk.find(b"\n", at)) >= 0:
            if stop is not None and offset >= stop:
                return
            if parts:
                if size <= limit:
                    parts.append(chunk[at:end])
                size += end - at
                yield offset, b"".join(parts)[:limit], size <= limit
                parts = []
            else:
                size = end - at
                yield offset, chunk[at : min(end, at + limit)], size <= limit
            offset += size + 1
            size, at = 0, end + 1
        if stop is not None and offset >= stop:
            return
        if size <= limit and at < len(chunk):
            parts.append(chunk[at:])
        size += len(chunk) - at
        at = 0
        chunk = stream.read(CHUNK)
    if size:
        yield offset, b"".join(parts)[:limit], size <= limit


def read_all(stream: Any, limit: int) -> tuple[bytes, bool]:
    """(all bytes, True), or the first `limit` and False where there are more."""
    data = bytearray()
    while chunk := stream.read(CHUNK):
        data += chunk[: limit + 1 - len(data)]
        if len(data) > limit:
            return bytes(data[:limit]), False
    return bytes(data), True


@contextmanager
def on_disk(stream: Any) -> Iterator[Path]:
    """The bytes of a stream as a temporary file, for formats that are read from their end."""
    with tempfile.TemporaryDirectory(prefix="foundry-") as folder:
        path = Path(folder) / "spooled"
        with open_to_write(path) as f:
            while chunk := stream.read(CHUNK):
                f.write(chunk)
        yield path
