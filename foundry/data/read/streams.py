"""Bytes of a published file: decompressed, counted, cut into lines; damage is an error, never a shorter text.

Guarantees: memory holds a chunk and one record, never the file; what a compressed file grows to is counted while it
grows, so a bomb stops at its limit; truncation, bad checksums and bytes after the end raise.

Why not the obvious readers: `zstandard.stream_reader` ends without an error in a truncated file, `gzip` reads 0 bytes
as an empty file, `bz2` and `lzma` leave out what follows the first stream unless it is one of theirs, `str.splitlines`
cuts at U+2028 and U+0085, which may stand inside a JSON string.
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
    """Of `Clean`: `max_record_bytes`, `max_unpack_ratio` (0: no limit), `max_unpacked_bytes`."""

    record: int = 64 << 20
    ratio: float = 1000.0
    unpacked: int = 1 << 40


class Meter:
    """Counts what one compressed file or archive grows to, all its layers' members together.

    Raises:
        DataError: from `add`, once that is more than the limits allow.
    """

    def __init__(self, shown: str, packed: int, limits: Limits) -> None:
        self.shown, self.packed, self.limits, self.grown = shown, packed, limits, 0
        by_ratio = max(SMALL, limits.ratio * packed) if limits.ratio else limits.unpacked
        self.most = int(min(limits.unpacked, by_ratio))  # the ratio may be infinite

    def add(self, n: int) -> None:
        self.grown += n
        if self.grown > self.most:
            by_size = self.most == self.limits.unpacked
            key, value = ("max_unpacked_bytes", self.most) if by_size else ("max_unpack_ratio", self.limits.ratio)
            raise DataError(
                f"{self.shown} has {self.packed:,} bytes and grows to more than {self.most:,}: a decompression bomb, "
                f"or clean.{key} ({value:,}) is too low for it"
            )


class Stream:
    """Reads forward; the beginning may be looked at first, and a meter counts what was read."""

    def __init__(self, raw: Any, meter: Meter | None = None) -> None:
        self._raw, self._meter, self._head = raw, meter, b""

    def read(self, n: int) -> bytes:
        """`n` bytes if the stream below gives so many at once, else fewer; none at the end alone."""
        head = b""
        if self._head:
            head, self._head = self._head[:n], self._head[n:]
            if len(head) == n:
                return head
        data = self._raw.read(n - len(head))
        if self._meter:
            self._meter.add(len(data))
        return head + data if head else data

    def peek(self, n: int) -> bytes:
        """The next `n` bytes, fewer only at the end; they stay to be read."""
        parts = [self._head]
        size = len(self._head)
        while size < n and (data := self._raw.read(n - size)):
            if self._meter:
                self._meter.add(len(data))
            parts.append(data)
            size += len(data)
        self._head = b"".join(parts)
        return self._head[:n]


@contextmanager
def damage(shown: str) -> Iterator[None]:
    """Tells the errors of the unpacking libraries as what they mean.

    Raises:
        DataError: if what is read inside is missing, may not be read, is truncated or damaged.
    """
    try:
        yield
    except FileNotFoundError as e:
        raise DataError(f"{shown} does not exist ({e.filename}); run the download stage again") from None
    except PermissionError as e:
        raise DataError(f"{shown}: no permission to read {e.filename}") from None
    except (
        EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError, NotImplementedError
    ) as e:  # fmt: skip
        if isinstance(e, OSError) and e.errno == errno.ENOSPC:
            raise DataError(f"{shown}: no disk space to unpack it in {tempfile.gettempdir()}; set TMPDIR") from None
        raise DataError(
            f"{shown} is damaged or not what its name says ({type(e).__name__}: {e}); fetch or make it again"
        ) from None


def unpack(raw: Any, packing: str, shown: str, meter: Meter) -> Stream:
    """The stream below `packing`, one of `suffixes.PACKINGS`; `raw` stands at the beginning of its bytes.

    Raises:
        DataError: if there are no bytes at all; reading raises within `damage` for what is damaged.
    """
    packed = Stream(raw)
    if not packed.peek(1):
        raise DataError(f"{shown} has 0 bytes, which is no {packing} file; fetch or make it again")
    if packing == ".gz":
        return Stream(gzip.GzipFile(fileobj=packed), meter)
    if packing == ".zst":
        import pyarrow as pa

        return Stream(pa.CompressedInputStream(pa.PythonFile(_Closable(packed), "r"), "zstd"), meter)
    return Stream(_Strict(packed, packing), meter)


class _Closable:
    """What pyarrow asks of a Python file beyond `read`."""

    closed = False

    def __init__(self, stream: Stream) -> None:
        self.read = stream.read

    def close(self) -> None:
        self.closed = True


class _Strict:
    """bz2 and xz: streams in a row, and nothing but them."""

    def __init__(self, packed: Stream, packing: str) -> None:
        self._packed, self._new = packed, bz2.BZ2Decompressor if packing == ".bz2" else _xz
        self._padded = packing == ".xz"
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
    """(byte offset, line without its end, whether it is whole), cut at line feeds alone.

    Of a line longer than `limit` only the beginning comes, marked as not whole.

    Args:
        start, stop: only lines that begin in [start, stop). Offsets are the file's; with a `start` other than 0 the
            stream stands at the byte before it.
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
    held: list[bytes] = []
    size = 0
    while chunk:
        while (end := chunk.find(b"\n", at)) >= 0:
            if stop is not None and offset >= stop:
                return
            if held:
                if size <= limit:
                    held.append(chunk[at:end])
                size += end - at
                yield offset, b"".join(held)[:limit], size <= limit
                held = []
            else:
                size = end - at
                yield offset, chunk[at : min(end, at + limit)], size <= limit
            offset += size + 1
            size, at = 0, end + 1
        if stop is not None and offset >= stop:
            return
        if size <= limit and at < len(chunk):
            held.append(chunk[at:])
        size += len(chunk) - at
        at = 0
        chunk = stream.read(CHUNK)
    if size:
        yield offset, b"".join(held)[:limit], size <= limit


def read_whole(stream: Any, limit: int) -> tuple[bytes, bool]:
    """(all bytes, True), or the first `limit` and False where there are more."""
    data = bytearray()
    while chunk := stream.read(CHUNK):
        data += chunk[: limit + 1 - len(data)]
        if len(data) > limit:
            return bytes(data[:limit]), False
    return bytes(data), True


@contextmanager
def on_disk(stream: Any) -> Iterator[Path]:
    """The stream's bytes as a file of its own, for formats that are read from their end."""
    with tempfile.TemporaryDirectory(prefix="foundry-") as folder:
        path = Path(folder) / "spooled"
        with open_to_write(path) as f:
            while chunk := stream.read(CHUNK):
                f.write(chunk)
        yield path
