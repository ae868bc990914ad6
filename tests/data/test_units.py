"""Units: however a file is cut, its records are the same; archives are read member by member or refused."""

import bz2
import dataclasses
import gzip
import io
import json
import lzma
import stat
import subprocess
import sys
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import put, read, said, zst

from foundry.config import DataError
from foundry.data.formats import Bad
from foundry.data.streams import Limits

PACKINGS = [(bytes, ""), (gzip.compress, ".gz"), (zst, ".zst"), (bz2.compress, ".bz2"), (lzma.compress, ".xz")]
LINE = st.one_of(
    st.text(max_size=30).map(lambda t: json.dumps({"text": t}, ensure_ascii=False)),
    st.sampled_from(
        ["", "  ", "{broken", '{"text": 7}', '{"text": "a", "text": "b"}', '"plain"', "[1]", "\ufeff{}", '{"x": 1}']
    ),
    st.integers(50, 300).map(lambda n: json.dumps({"text": "長" * n}, ensure_ascii=False)),
)


@settings(max_examples=150, deadline=None)
@given(
    lines=st.lists(LINE, max_size=25), end=st.sampled_from(["\n", "\r\n"]), last=st.booleans(), size=st.integers(1, 400)
)
def test_lines_do_not_depend_on_the_units(tmp_path_factory, lines, end, last, size):
    path = put(tmp_path_factory.mktemp("u"), "a.jsonl", (end.join(lines) + end * last).encode("utf-8", "surrogatepass"))
    limits = Limits(record=600)
    assert read(path, unit_bytes=size, limits=limits) == read(path, limits=limits)
    assert len(read(path, limits=limits)) == sum(bool(x.strip()) for x in lines)


def table(n):
    return pa.table(
        {"text": [f"row {i} " + "x" * (i % 50) for i in range(n)], "url": [f"https://h/{i}" for i in range(n)]}
    )


def write_parquet(path, n=500):
    pq.write_table(table(n), path, row_group_size=37)


def write_arrow(path, n=500):
    with pa.ipc.new_file(path, table(1).schema) as f:
        f.write_table(table(n), max_chunksize=29)


def write_arrow_stream(path, n=500):
    with pa.ipc.new_stream(path, table(1).schema) as f:
        f.write_table(table(n), max_chunksize=29)


@pytest.mark.parametrize("write", [write_parquet, write_arrow, write_arrow_stream])
@pytest.mark.parametrize("size", [100, 2000, 10**9])
def test_tables_do_not_depend_on_the_units(tmp_path, write, size):
    path = tmp_path / ("a.parquet" if write is write_parquet else "a.arrow")
    write(path)
    items = read(path, unit_bytes=size)
    assert said(items) == table(500)["text"].to_pylist()
    assert [i.record for i in items] == list(range(500))
    assert [i.url for i in items] == table(500)["url"].to_pylist()


CONTENT = {
    "jsonl": b'{"text": "one"}\n{"text": "two"}\n',
    "json": b'[{"text": "one"}, {"text": "two"}]',
    "csv": b'id,text\n1,one\n2,"two"\n',
    "tsv": b"id\ttext\n1\tone\n2\ttwo\n",
    "txt": b"one\n<|endoftext|>\ntwo",
    "md": b"one\n<|endoftext|>\ntwo\n",
    "html": b"<html><body><article><p>one</p></article></body></html>",
}


def bytes_of(write, n=2):
    def made():
        sink = io.BytesIO()
        write(sink, n)
        return sink.getvalue()

    return made()


CONTENT["parquet"] = bytes_of(lambda f, n: pq.write_table(pa.table({"text": ["one", "two"]}), f))
CONTENT["arrow"] = bytes_of(lambda f, n: pa.ipc.new_file(f, pa.schema([("text", pa.string())])).close())


@pytest.mark.parametrize(("pack", "suffix"), PACKINGS)
@pytest.mark.parametrize("format", CONTENT)
def test_every_format_in_every_packing_and_archive(tmp_path, format, pack, suffix):
    wanted = {"html": ["one"], "arrow": []}.get(format, ["one", "two"])
    name = f"x.{format}{suffix}"
    path = put(tmp_path, name, pack(CONTENT[format]))
    assert said(read(path)) == wanted
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        z.write(path, f"data/{name}")
        z.writestr("README.md", "not text of the corpus")
    items = read(tmp_path / "a.zip")
    assert said(items) == wanted and all(i.file == f"a.zip!data/{name}" for i in items)
    kind = suffix[1:] if suffix in (".gz", ".bz2", ".xz") else ""
    tar = tmp_path / ("a.tar" + (f".{kind}" if kind else ""))
    with tarfile.open(tar, f"w:{kind}") as t:
        t.add(path, f"data/{name}")
    assert said(read(tar)) == wanted


def test_tar_zst_and_short_names(tmp_path):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as t:
        t.add(put(tmp_path, "x.txt", "one"), "x.txt")
    for name, pack in (
        ("a.tar.zst", zst),
        ("a.tgz", gzip.compress),
        ("a.txz", lzma.compress),
        ("a.tbz2", bz2.compress),
    ):
        assert said(read(put(tmp_path, name, pack(raw.getvalue())))) == ["one"]


@pytest.mark.parametrize(("pack", "suffix"), PACKINGS[1:])
def test_damaged_packing_is_an_error_never_a_shorter_text(tmp_path, pack, suffix):
    good = pack(b'{"text": "a line of text"}\n' * 5000)
    for damaged in (good[: len(good) // 2], good[:-1], good + b"garbage", b"", b"not packed at all"):
        with pytest.raises(DataError, match=r"a\.jsonl"):
            read(put(tmp_path, f"a.jsonl{suffix}", damaged))
    assert len(read(put(tmp_path, f"a.jsonl{suffix}", good + good))) == 10_000


def test_members_are_chosen_by_glob(tmp_path):
    path = tmp_path / "a.tgz"
    with tarfile.open(path, "w:gz") as t:
        for name in ("p/b.2.json", "p/a.1.json", "p/a.2.json", "p/other/c.json"):
            t.add(put(tmp_path, "m.json", json.dumps([{"text": name}])), name)
    assert said(read(path, member="p/a.*.json")) == ["p/a.1.json", "p/a.2.json"]
    assert said(read(path, member="p/other/c.json")) == ["p/other/c.json"]
    with pytest.raises(DataError, match=r"no member 'p/z\*'"):
        read(path, member="p/z*")


def evil_tar(path, name="x.txt", kind=tarfile.REGTYPE, twice=False):
    with tarfile.open(path, "w") as t:
        for _ in range(1 + twice):
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/passwd"
            info.size = 3 if kind == tarfile.REGTYPE else 0
            t.addfile(info, io.BytesIO(b"abc") if info.size else None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "../x.txt"}, "would leave the folder"),
        ({"name": "/abs/x.txt"}, "would leave the folder"),
        ({"name": "a/../../x.txt"}, "would leave the folder"),
        ({"name": "C:\\x.txt"}, "would leave the folder"),
        ({"kind": tarfile.SYMTYPE}, "is a link"),
        ({"kind": tarfile.LNKTYPE}, "is a link"),
        ({"kind": tarfile.CHRTYPE}, "is a device"),
        ({"kind": tarfile.FIFOTYPE}, "is a device"),
        ({"twice": True}, "stands in it twice"),
    ],
)
def test_unsafe_tar_is_refused(tmp_path, values, message):
    evil_tar(tmp_path / "a.tar", **values)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.tar")


def test_unsafe_zip_is_refused(tmp_path):
    for name, message in (("../x.txt", "would leave"), ("/x.txt", "would leave"), ("ok.txt", "is a link")):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
            info = zipfile.ZipInfo(name)
            if name == "ok.txt":
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            z.writestr(info, "/etc/passwd")
        with pytest.raises(DataError, match=message):
            read(tmp_path / "a.zip")
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path / "b.zip", "w") as z:
        z.writestr("x.txt", "1")
        z.writestr("x.txt", "2")
    with pytest.raises(DataError, match="twice"):
        read(tmp_path / "b.zip")


def test_archive_inside_an_archive_is_passed_over_and_told(tmp_path, caplog):
    evil_tar(tmp_path / "inner.tar")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        z.write(tmp_path / "inner.tar", "inner.tar")
        z.writestr("x.txt", "text")
    assert said(read(tmp_path / "a.zip", member="*")) == ["text"]


def test_bombs_are_refused_before_they_fill_anything(tmp_path):
    bomb = b"\0" * (80 << 20)
    for name, data in (("a.txt.gz", gzip.compress(bomb)), ("a.txt.xz", lzma.compress(bomb)), ("a.txt.zst", zst(bomb))):
        path = put(tmp_path, name, data)
        with pytest.raises(DataError, match=r"as bombs do.*clean\.max_unpack_ratio"):
            read(path, limits=Limits(ratio=100))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("x.txt", bomb)
    with pytest.raises(DataError, match="as bombs do"):
        read(tmp_path / "a.zip", limits=Limits(ratio=100))
    with pytest.raises(DataError, match=r"clean\.max_unpacked_bytes"):
        read(put(tmp_path, "b.txt.gz", gzip.compress(b"x" * 5000)), limits=Limits(unpacked=4000))


def test_memory_does_not_grow_with_a_line_or_a_file(tmp_path):
    """A file of 300 MB, one line of it 200 MB: read with a limit of 1 MiB a record in little memory."""
    path = tmp_path / "a.jsonl"
    with open(path, "wb") as f:
        f.write(b'{"text": "first"}\n{"text": "')
        for _ in range(200):
            f.write(b"x" * (1 << 20))
        f.write(b'"}\n')
        for _ in range(100_000):
            f.write(b'{"text": "' + b"y" * 1000 + b'"}\n')
    code = (
        "import sys, pathlib, resource; sys.path[:0] = sys.argv[2].split('|')\n"
        "from foundry.data.units import plan_units, read_unit\nfrom foundry.data.streams import Limits\n"
        "p = pathlib.Path(sys.argv[1])\n"
        "s = [{'format': 'auto', 'text': '{text}', 'member': None, 'cut': '', 'files': [{'path': p.name}]}]\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "units = plan_units(p.parent, s, 64 << 20)\n"
        "n = [type(i).__name__ for u in units for i in read_unit(p.parent, s, u, Limits(record=1 << 20))]\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(len(units), len(n), n.count('Bad'), after - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), "|".join(sys.path)], capture_output=True, text=True, check=True
    )
    units, records, bad, grown = map(int, done.stdout.split())
    assert (records, bad) == (100_002, 1) and units > 3
    assert grown < 40_000 * (1 if sys.platform == "linux" else 1024)  # kilobytes


def test_items_have_places_that_lead_to_the_bytes(tmp_path):
    data = b'{"text": "a"}\n\n{oops\n{"text": "\xe4\xb8\xad"}\n{"body": 1}\n'
    path = put(tmp_path, "a.jsonl", data)
    bad = [i for i in read(path, unit_bytes=9) if isinstance(i, Bad)]
    assert [(data[b.offset :].split(b"\n")[0], b.record) for b in bad] == [(b"{oops", 1), (b'{"body": 1}', 3)]
    assert dataclasses.asdict(bad[0])["reason"] == "broken_json"


@pytest.mark.parametrize("format", ["jsonl", "json", "html", "parquet", "arrow"])
def test_format_is_told_by_content_where_no_suffix_tells_it(tmp_path, format):
    wanted = {"html": ["one"], "arrow": []}.get(format, ["one", "two"])
    assert said(read(put(tmp_path, "data", CONTENT[format]))) == wanted
    with pytest.raises(DataError, match="tells no format"):
        read(put(tmp_path, "unknown.bin", b"who knows"))
