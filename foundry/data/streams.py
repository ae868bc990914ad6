"""Bytes of a published file: decompressed, out of an archive, cut into lines; damage is an error, never a shorter text.

Why not the obvious readers: `zstandard.stream_reader` ends without an error in a truncated file, `gzip` reads 0 bytes
as an empty file, `str.splitlines` cuts at U+2028 and U+0085, which may stand inside a JSON string.
"""

from __future__ import annotations

import difflib
import gzip
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foundry.config import DataError

CHUNK = 1 << 20
MAX_RECORD = 64 << 20  # bytes; a longer line or document is not held in memory but counted as bad


@contextmanager
def open_file(path: Path, member: str | None, shown: str) -> Iterator[tuple[Any, str]]:
    """Opens a file or an archive's member and undoes .gz or .zst.

    Yields:
        (binary stream with `read(n)`, name without the compression's suffix)

    Raises:
        DataError: if the file is missing, damaged, empty though compressed, or has no such member.
    """
    try:
        with open(path, "rb") as f:
            if member is None:
                yield _decompress(f, path.name, shown)
                return
            with zipfile.ZipFile(f) as archive:
                names = [i.filename for i in archive.infolist() if not i.is_dir()]
                if member not in names:
                    near = difflib.get_close_matches(member, names, n=3, cutoff=0.3) or names[:3]
                    raise DataError(f"{shown} has no member {member!r}; nearest: {', '.join(near) or 'it is empty'}")
                with archive.open(member) as inner:
                    yield _decompress(inner, member, shown)
    except FileNotFoundError:
        raise DataError(f"{shown} does not exist under {path.parent}; run the download stage again") from None
    except (EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as e:
        if isinstance(e, RuntimeError) and not isinstance(e, NotImplementedError) and "password" not in str(e):
            raise
        raise DataError(
            f"{shown} is damaged or not what its name says ({type(e).__name__}: {e}); fetch or make it again"
        ) from None


def _decompress(f: Any, name: str, shown: str) -> tuple[Any, str]:
    suffix = Path(name).suffix.lower()
    if suffix not in (".gz", ".zst"):
        return f, name
    f.seek(0, 2)
    if f.tell() == 0:
        raise DataError(f"{shown} has 0 bytes, which is no {suffix} file; fetch or make it again")
    f.seek(0)
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=f), name[:-3]
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(f, "r"), "zstd"), name[:-4]


def read_lines(stream: Any, head: bytes = b"") -> Iterator[tuple[int, bytes, bool]]:
    """(byte offset, line without its end, whether it is whole), cut at line feeds alone.

    Of a line longer than `MAX_RECORD` only the beginning comes, marked as not whole.
    """
    held: list[bytes] = []
    size, offset = 0, 0
    chunk = head or stream.read(CHUNK)
    while chunk:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            if size <= MAX_RECORD:
                held.append(chunk[start:end])
            size += end - start
            yield offset, b"".join(held), size <= MAX_RECORD
            offset += size + 1
            held, size, start = [], 0, end + 1
        if size <= MAX_RECORD:
            held.append(chunk[start:])
        size += len(chunk) - start
        chunk = stream.read(CHUNK)
    if size:
        yield offset, b"".join(held), size <= MAX_RECORD


def read_all(stream: Any, head: bytes = b"") -> bytes:
    parts = [head]
    while chunk := stream.read(CHUNK):
        parts.append(chunk)
    return b"".join(parts)
