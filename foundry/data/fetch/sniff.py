"""Is a file what its name says? The first bytes tell, before it enters `data/raw`.

Guards against what servers send in place of data: an error page, a log-in page, an archive that the transfer unpacked
or wrapped. Judges the outermost layer alone; damage further inside is the reader's to find.
"""

from __future__ import annotations

from pathlib import Path

from foundry.config import DataError
from foundry.data.read.suffixes import outer_kind, suffix_of

HEAD = 1024
# kind -> how its files begin; a kind here can be told from text
MAGIC = {
    "gzip": (b"\x1f\x8b\x08",),
    "zstd": (b"\x28\xb5\x2f\xfd", *(bytes((0x50 + i,)) + b"\x2a\x4d\x18" for i in range(16))),  # RFC 8878, 3.1
    "bzip2": tuple(b"BZh%d1AY&SY" % level for level in range(1, 10))
    + tuple(b"BZh%d\x17rE8P\x90" % n for n in range(1, 10)),
    "xz": (b"\xfd7zXZ\x00",),
    "zip": (b"PK\x03\x04", b"PK\x05\x06"),
    "parquet": (b"PAR1",),
    "arrow": (b"ARROW1\x00\x00", b"\xff\xff\xff\xff"),  # file and stream format
    "PDF": (b"%PDF-",),
}
_PACKED = ("gzip", "zstd", "bzip2", "xz", "zip")


def check_kind(path: Path, name: str, format: str) -> None:
    """Compares a file's first bytes with what its name and the source's format promise.

    Args:
        name: the published name; `path` may be called otherwise.
        format: `Source.format`; it decides for files that are neither compressed nor an archive.

    Raises:
        DataError: naming what was promised and what came.
    """
    promised = outer_kind(name)
    if format != "auto" and promised not in (*_PACKED, "tar"):
        promised, why = format, f"format: {format}"
    else:
        why = f"its name ends in {suffix_of(name)}"
    if promised is None:
        return
    with open(path, "rb") as f:
        head = f.read(HEAD)
    seen = _kind(head)
    if promised in MAGIC:
        wrong = seen != promised
    elif promised == "html":
        wrong = seen in MAGIC
    else:
        wrong = seen in MAGIC or seen == "HTML"
    if wrong:
        what = {"": "nothing", "text": "something else", "HTML": "an HTML page"}.get(seen, f"{seen} data")
        raise DataError(
            f"{name} is not what it should be: {promised} is expected ({why}), but it holds {what}: "
            f"it begins with {head[:24]!r}. Check the address in a browser, or set `format:`"
        )


def _kind(head: bytes) -> str:
    if not head:
        return ""
    for kind, starts in MAGIC.items():
        if head.startswith(starts):
            return kind
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return "HTML" if begin.startswith((b"<!doctype html", b"<html")) else "text"
