"""What a file's name says about its bytes: the one table of formats, archives and compressions.

A suffix that is added here is read by every kind of source, inside archives, and checked by its first bytes.
"""

from __future__ import annotations

from pathlib import Path

FORMATS = {
    ".txt": "txt", ".text": "txt", ".md": "md", ".markdown": "md", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow",
    ".ipc": "arrow", ".html": "html", ".htm": "html",
}  # fmt: skip
PACKINGS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}
# suffix -> (tar or zip, the suffix of the compression around it)
ARCHIVES = {
    ".tar": ("tar", ""), ".tgz": ("tar", ".gz"), ".tbz": ("tar", ".bz2"), ".tbz2": ("tar", ".bz2"),
    ".txz": ("tar", ".xz"), ".tzst": ("tar", ".zst"), ".zip": ("zip", ""), ".whl": ("zip", ""),
}  # fmt: skip


def suffix_of(name: str) -> str:
    return Path(name).suffix.lower()


def packing_of(name: str) -> tuple[str, str]:
    """(name without the compression's suffix, that suffix or "")."""
    suffix = suffix_of(name)
    return (name[: -len(suffix)], suffix) if suffix in PACKINGS else (name, "")


def archive_of(name: str) -> tuple[str, str] | None:
    """(`tar` or `zip`, compression's suffix or ""), or None for what is no archive by its name."""
    if found := ARCHIVES.get(suffix_of(name)):
        return found
    below, packing = packing_of(name)
    return ("tar", packing) if packing and suffix_of(below) == ".tar" else None


def format_of(name: str) -> str | None:
    """The format of a file, compressed or not; None if its suffix says none."""
    return FORMATS.get(suffix_of(packing_of(name)[0]))


def outer_kind(name: str) -> str | None:
    """What the first bytes of the file are to be: a compression, `zip`, `tar`, or a format; None if its suffix says
    nothing."""
    suffix = suffix_of(name)
    if archive := ARCHIVES.get(suffix):
        kind, packing = archive
        return PACKINGS[packing] if packing else kind
    return PACKINGS.get(suffix) or FORMATS.get(suffix)
