"""What the tests of the readers share: files, and the items of a file, in one unit or several."""

import pyarrow as pa
from raw_files import raw_source

from foundry.data.read.records import Document
from foundry.data.read.streams import Limits
from foundry.data.read.units import plan_units, read_unit


def read(path, text="{text}", format="auto", member=None, cut="", limits=None, unit_bytes=1 << 30, encoding=None):
    """All items of a file, read in units of that size; records numbered through the file."""
    sources = [raw_source(path.name, format=format, text=text, member=member, cut=cut, encoding=encoding)]
    out = []
    limits = limits or Limits()
    for unit in plan_units(path.parent, sources, unit_bytes, limits):
        base = len(out)
        for item in read_unit(path.parent, sources, unit, limits):
            out.append((item, base + item.record) if base else (item, item.record))
    return [item if item.record == n else _renumbered(item, n) for item, n in out]


def _renumbered(item, number):
    values = {k: getattr(item, k) for k in item.__slots__} | {"record": number}
    return type(item)(**values)


def said(items):
    """The text of each document, the reason of each unreadable record."""
    return [i.text if isinstance(i, Document) else i.reason for i in items]


def zst(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as f:
        f.write(data)
    return sink.getvalue().to_pybytes()


def put(folder, name, data):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path
