"""The one table of file formats, compressions and archives: names, suffixes, first bytes.

It is part of the configuration because `format:` of a source accepts the names of `FORMATS`. A format is one row here
and one reader below `foundry/data/read/` (`readers.reads`), which also says how the format is cut into units of work.
From the row follow: what the parameter accepts, which files of a folder or of an archive are read, what a download is
checked against, and which files without a known suffix are recognised.
"""

from __future__ import annotations

from dataclasses import dataclass

_TEXT = rb"(\xef\xbb\xbf)?\s*"  # what may come before the first character that counts


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: in `format:` and in messages.
        suffixes: in lower case.
        magic: regular expression for the first bytes of every such file; empty for text.
        ambiguous: whether a text could begin with `magic`, too; then a NUL byte in the first bytes decides.
        looks: regular expression for the first bytes by which a text file without a known suffix is recognised.
    """

    name: str
    suffixes: tuple[str, ...] = ()
    magic: bytes = b""
    ambiguous: bool = False
    looks: bytes = b""


FORMATS = (  # the first row whose `looks` fits decides, so JSON lines come before JSON
    Kind("txt", (".txt", ".text")),
    Kind("md", (".md", ".markdown")),
    Kind("jsonl", (".jsonl", ".ndjson"), looks=_TEXT + rb"\{.*\}\n"),
    Kind("json", (".json",), looks=_TEXT + rb"[{\[]"),
    Kind("csv", (".csv", ".tsv")),
    Kind("parquet", (".parquet",), rb"PAR1", ambiguous=True),
    Kind("arrow", (".arrow", ".feather", ".ipc"), rb"ARROW1\0\0|\xff{4}"),  # file format, stream format
    Kind("html", (".html", ".htm"), looks=_TEXT + rb"(?i:<!doctype html|<html)"),
)
COMPRESSIONS = (
    Kind("gzip", (".gz",), rb"\x1f\x8b\x08"),
    Kind("zstd", (".zst",), rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),  # RFC 8878, 3.1
    Kind("bzip2", (".bz2",), rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
    Kind("xz", (".xz",), rb"\xfd7zXZ\0"),
)
ARCHIVES = (
    Kind("tar", (".tar",)),
    Kind("zip", (".zip", ".whl"), rb"PK(\x03\x04|\x05\x06)"),
)
COMPRESSED_TAR = {".tgz": "gzip", ".tzst": "zstd", ".tbz": "bzip2", ".tbz2": "bzip2", ".txz": "xz"}
UNREADABLE = (  # kinds that servers and users take for data, recognised for the sake of the message
    Kind("7z", magic=rb"7z\xbc\xaf"),
    Kind("rar", magic=rb"Rar!\x1a"),
    Kind("PDF", magic=rb"%PDF-"),
    Kind("program (ELF)", magic=rb"\x7fELF"),
    Kind("image (PNG)", magic=rb"\x89PNG"),
    Kind("image (JPEG)", magic=rb"\xff\xd8\xff"),
    Kind("image (GIF)", magic=rb"GIF8", ambiguous=True),
    Kind("database (SQLite)", magic=rb"SQLite format 3\0"),
)
FORMAT_NAMES = tuple(kind.name for kind in FORMATS)
