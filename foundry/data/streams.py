"""Bytes of a published file: decompressed, recoded to UTF-8, cut into lines; damage is an error, never a shorter text.

Why not the obvious readers: `zstandard.stream_reader` ends without an error in a truncated file, `gzip` reads 0 bytes
as an empty file, `bz2` and `lzma` pass over garbage after the end, `str.splitlines` cuts at U+2028 and U+0085, which may
stand inside a JSON string. Everything streams: memory holds a chunk and a record, never a file.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from foundry.config import DataError

CHUNK = 1 << 20
BOMB_BYTES = 64 << 20  # below this a high ratio is no harm
PACKED = (".gz", ".zst", ".bz2", ".xz")
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, OSError)


@dataclass(frozen=True)
class Limits:
    """`clean.max_record_bytes`, `clean.max_unpack_ratio`, `clean.max_unpacked_bytes`."""

    record: int = 64 << 20
    ratio: float = 1000.0
    unpacked: int = 1 << 40


@contextmanager
def told_damage(shown: str) -> Iterator[None]:
    """Turns what the decompressors raise into an error that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{shown} does not exist; run the download stage again") from None
    except DAMAGE as e:
        raise DataError(
            f"{shown} is damaged or not what its name says ({type(e).__name__}: {e}); fetch or make it again"
        ) from None


def decompress(f: BinaryIO, name: str, packed: int, shown: str, limits: Limits) -> tuple[Any, str]:
    """(stream, name without the compression's suffix); `packed` is the compressed size in bytes.

    Raises:
        DataError: if there are no bytes at all, which is no compressed file; while reading, for a bomb.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in PACKED:
        return f, name
    if not packed:
        raise DataError(f"{shown} has 0 bytes, which is no {suffix} file; fetch or make it again")
    if suffix == ".gz":
        stream: Any = gzip.GzipFile(fileobj=f)
    elif suffix == ".zst":
        import pyarrow as pa

        stream = pa.CompressedInputStream(pa.PythonFile(_Borrowed(f), "r"), "zstd")
    else:
        stream = _Chain(f, bz2.BZ2Decompressor if suffix == ".bz2" else lzma.LZMADecompressor)
    return Guard(stream, packed, shown, limits), name[: -len(suffix)]


class _Borrowed:
    """A stream that Arrow may read but not close."""

    closed = False

    def __init__(self, f: BinaryIO) -> None:
        self.read = f.read

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        pass


class _Chain:
    """Compressed streams one after the other; whatever follows the last one must be one more."""

    def __init__(self, f: BinaryIO, make: Callable[[], Any]) -> None:
        self._f, self._make = f, make
        self._decoder = make()
        self._ended = False

    def read(self, n: int) -> bytes:
        while not self._ended:
            data = b""
            if self._decoder.eof:
                data = self._decoder.unused_data or self._f.read(CHUNK)
                if not data:
                    self._ended = True
                    return b""
                self._decoder = self._make()
            elif self._decoder.needs_input:
                data = self._f.read(CHUNK)
                if not data:
                    raise EOFError("compressed file ended before the end-of-stream marker was reached")
            if out := self._decoder.decompress(data, n):
                return out
        return b""


class Guard:
    """A stream that may not grow without end."""

    def __init__(self, stream: Any, packed: int, shown: str, limits: Limits) -> None:
        self._stream, self._packed, self._shown, self._limits = stream, packed, shown, limits
        self._read = 0

    def read(self, n: int) -> bytes:
        data = self._stream.read(n)
        self._read += len(data)
        if self._read > BOMB_BYTES and self._read > self._limits.ratio * self._packed:
            raise DataError(
                f"{self._shown} grows to more than {self._limits.ratio:g} times its {self._packed:,} bytes, as bombs do; "
                "if it is meant to, raise clean.max_unpack_ratio"
            )
        if self._read > self._limits.unpacked:
            raise DataError(
                f"{self._shown} holds more than {self._limits.unpacked:,} bytes; if it is meant to, raise "
                "clean.max_unpacked_bytes"
            )
        return bytes(data)


class Joined:
    """Bytes already read, then the rest of a stream."""

    def __init__(self, head: bytes, rest: Any) -> None:
        self._head, self._rest = head, rest

    def read(self, n: int) -> bytes:
        if self._head:
            out, self._head = self._head[:n], self._head[n:]
            return out
        return self._rest.read(n)


class Recoded:
    """A stream of another encoding as UTF-8; what is not of that encoding becomes U+FFFD."""

    def __init__(self, stream: Any, encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        self._ended = False

    def read(self, n: int) -> bytes:
        while not self._ended:
            data = self._stream.read(max(1, n // 4))
            self._ended = not data
            if text := self._decoder.decode(data, final=self._ended):
                return text.encode("utf-8", "replace")
        return b""


def as_utf8(stream: Any) -> Any:
    """The stream without its byte order mark, recoded if that says UTF-16 or UTF-32."""
    head = b""
    while len(head) < 4 and (more := stream.read(4 - len(head))):
        head += more
    if head[:4] in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        return Recoded(Joined(head, stream), "utf-32")
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return Recoded(Joined(head, stream), "utf-16")
    return Joined(head, stream)


def read_lines(stream: Any, limit: int, offset: int = 0) -> Iterator[tuple[int, bytes, bool]]:
    """(byte offset, line without its end, whether it is whole), cut at line feeds alone.

    Of a line longer than `limit` bytes only the beginning comes, marked as not whole.
    """
    held: list[bytes] = []
    size = 0
    while chunk := stream.read(CHUNK):
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            if size <= limit:
                held.append(chunk[start:end])
            size += end - start
            yield offset, b"".join(held) if len(held) != 1 else held[0], size <= limit
            offset += size + 1
            held, size, start = [], 0, end + 1
        if size <= limit:
            held.append(chunk[start:] if start else chunk)
        size += len(chunk) - start
    if size:
        yield offset, b"".join(held), size <= limit


def read_up_to(stream: Any, limit: int) -> bytes | None:
    """All bytes of a stream, or None if there are more than `limit`."""
    parts, size = [], 0
    while chunk := stream.read(CHUNK):
        parts.append(chunk)
        size += len(chunk)
        if size > limit:
            return None
    return b"".join(parts)
