"""Bad input: damaged files raise an error with their name, one bad record is one `Bad`, memory stays small."""

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import zipfile

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import raw_files
from raw_files import raw_source
from reading import put, said, zst

from foundry.config import DataError
from foundry.data.read import streams
from foundry.data.read.records import Bad, Document
from foundry.data.read.units import Limits, plan_units, read_unit


def read(path, text="{text}", format="auto", limits=None, cut=""):
    limits = limits or Limits(1 << 20, 1000, 1 << 30)
    sources = [raw_source(path.name, format=format, text=text, cut=cut)]
    units = plan_units(path.parent, sources, 1 << 40, limits)
    return [i for u in units for i in read_unit(path.parent, sources, u, limits)]


def zipped(name, data):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr(name, data)
    return out.getvalue()


PACK = {".gz": gzip.compress, ".zst": zst, ".bz2": bz2.compress, ".xz": lzma.compress}
LINES = b"".join(json.dumps({"text": f"line {i} " + "x" * (i % 97)}).encode() + b"\n" for i in range(5000))


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("stem", ["a.jsonl", "a.txt", "a.csv"])
def test_damaged_compression_is_an_error_never_a_shorter_text(tmp_path, suffix, stem):
    data = b"text\n" + b"some words in a row\n" * 5000 if stem == "a.csv" else LINES
    good = PACK[suffix](data)
    assert read(put(tmp_path, stem + suffix, good))
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    damaged = [good[: len(good) // 2], good[:-1], good + b"garbage", good + good[:-2], b"", b"not packed at all"]
    if suffix != ".zst":  # in a zstd frame without a checksum only the sha256 of the manifest shows a flipped bit
        damaged += [bytes(flipped), good[:-8] + b"\0\0\0\0" + good[-4:]]
    if suffix != ".xz":  # zeros may follow it
        damaged.append(good + b"\0\0\0\1")
    name = stem + suffix
    for data in damaged:
        with pytest.raises(DataError, match=name):
            read(put(tmp_path, name, data))


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.jsonl", "a.json", "a.csv", "a.html"])
def test_an_empty_file_has_no_documents(tmp_path, name):
    for data in (b"", b"\n", b" \r\n\n "):
        if name != "a.csv" or not data.strip(b"\r\n"):
            assert read(put(tmp_path, name, data)) == []


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.zip", "a.tar"])
def test_an_empty_file_that_cannot_be_empty_is_damaged(tmp_path, name):
    with pytest.raises(DataError, match=name):
        read(put(tmp_path, name, b""))


def test_missing_files_and_missing_permission_are_reported(tmp_path):
    path = put(tmp_path, "a.jsonl", b"{}")
    sources = [raw_source("a.jsonl")]
    (unit,) = plan_units(tmp_path, sources, 1 << 40, limits := Limits(1 << 20, 1000, 1 << 30))
    path.unlink()
    with pytest.raises(DataError, match="does not exist"):
        list(read_unit(tmp_path, sources, unit, limits))
    with pytest.raises(DataError, match="does not exist"):
        plan_units(tmp_path, sources, 1 << 40, limits)
    path.write_bytes(b"{}")
    path.chmod(0)
    if not os.access(path, os.R_OK):
        with pytest.raises(DataError, match="no permission"):
            list(read_unit(tmp_path, sources, unit, limits))


SINK = io.BytesIO()
pq.write_table(pa.table({"text": ["x"]}), SINK)
FEATHER = io.BytesIO()
pyarrow.feather.write_feather(pa.table({"text": ["x"]}), FEATHER)


@pytest.mark.parametrize(
    "content, kind",
    [
        (gzip.compress(b"x" * 99, mtime=0), "gzip"),
        (zst(b"x" * 99), "zstd"),
        (bz2.compress(b"x"), "bzip2"),
        (lzma.compress(b"x"), "xz"),
        (zipped("a", "x"), "zip"),
        (SINK.getvalue(), "parquet"),
        (FEATHER.getvalue(), "arrow"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
        (b"\xef\xbb\xbf <!DOCTYPE html><html>", "HTML"),
        (b"<html>404", "HTML"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.md.gz"])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, content, kind, name):
    data = gzip.compress(content) if name.endswith("gz") else content
    with pytest.raises(DataError, match=rf"{name} contains .*{kind}"):
        read(put(tmp_path, name, data))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.zip", "a.tar", "a.jsonl.gz", "a.json", "a.txt.xz"])
def test_text_under_the_name_of_another_format_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=name):
        read(put(tmp_path, name, b"just some words, nothing else. " * 40))


def test_a_format_the_user_names_is_trusted(tmp_path):
    page = put(tmp_path, "a.txt", b"<html><main><p>words of a page</p></main></html>")
    assert said(read(page, format="txt"))[0].startswith("<html>")
    assert said(read(page, format="html")) == ["words of a page"]
    assert said(read(put(tmp_path, "b.txt", "PAR1 is where cars park"))) == ["PAR1 is where cars park"]


HARD = "Füße 中文 👩‍👩‍👧‍👦 🇩🇪 שלום \u202bעולם\u202c e\u0301 \ufeff."


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-be"])
@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_wide_encodings_with_a_byte_order_mark_are_read_by_every_text_format(tmp_path, monkeypatch, encoding, chunk):
    monkeypatch.setattr(streams, "CHUNK", chunk)
    for reader in ("plain_text", "json_records"):
        monkeypatch.setattr(f"foundry.data.read.{reader}.CHUNK", chunk)

    def wide(text):
        return (b"\xfe\xff" if encoding.endswith("be") else b"") + text.encode(encoding)

    line = json.dumps({"text": HARD}, ensure_ascii=False)
    for name, text in {
        "a.txt": HARD,
        "a.jsonl": f"{line}\n\n{line}\nbroken\n",
        "a.json": f"[{line}, {line}]",
        "a.csv": f'text,n\r\n"{HARD}",1\r\n',
        "a.html": f"<html><main><p>{HARD}</p></main></html>",
    }.items():
        for packed in (False, True):
            data = gzip.compress(wide(text)) if packed else wide(text)
            items = read(put(tmp_path, name + ".gz" * packed, data))
            documents = [i for i in items if isinstance(i, Document)]
            assert [d.text for d in documents] == [HARD] * text.count("e\u0301")
            assert not any(d.repaired for d in documents)
            assert all(i.offset is None for i in items if isinstance(i, Bad))
    sources = [raw_source("a.jsonl")]
    assert len(plan_units(tmp_path, sources, 10, Limits(1 << 20, 1000, 1 << 30))) == 1  # lines end in two bytes


def test_a_wide_encoding_that_is_cut_inside_a_character_counts_as_repaired(tmp_path):
    (item,) = read(put(tmp_path, "a.txt", "some words".encode("utf-16")[:-1]))
    assert item.text == "some word\ufffd" and item.repaired


def test_nul_bytes_make_a_record_binary_and_no_other(tmp_path):
    assert said(read(put(tmp_path, "a.txt", b"one\n<|endoftext|>\nt\0wo\n<|endoftext|>\nthree"))) == [
        "one",
        "binary",
        "three",
    ]
    assert said(read(put(tmp_path, "a.jsonl", b'"one"\n"t\0wo"\n"three"'))) == ["one", "binary", "three"]
    assert said(read(put(tmp_path, "a.csv", b"text,n\none,1\nt\0wo,2\nthree,3"))) == ["one", "binary", "three"]
    assert said(read(put(tmp_path, "a.html", b"<p>\0</p>"))) == ["binary"]


def test_hard_texts_come_out_as_they_are(tmp_path):
    for name, data in {
        "a.txt": HARD,
        "a.jsonl": json.dumps({"text": HARD}, ensure_ascii=False),
        "b.jsonl": json.dumps({"text": HARD}),
        "a.json": json.dumps({"k": {"text": HARD}}),
        "a.csv": f"text\n{HARD}\n",
    }.items():
        assert said(read(put(tmp_path, name, data))) == [HARD], name


def test_a_truncated_file_of_lines_loses_only_its_last_line(tmp_path):
    items = read(put(tmp_path, "a.jsonl", LINES[:-20]))
    assert len(items) == 5000 and all(isinstance(i, Document) for i in items[:-1])
    last = items[-1]
    assert (last.file, last.record, last.reason) == ("a.jsonl", 4999, "broken_json")
    assert LINES[last.offset :].startswith(b'{"text": "line 4999') and last.excerpt.startswith('{"text": "line 4999')


def test_over_long_records_are_counted_and_the_next_is_read(tmp_path):
    limits = Limits(1000, 1000, 1 << 30)
    long = "x" * 2000

    def reasons(name, data, **options):
        return said(read(put(tmp_path, name, data), limits=limits, **options))

    assert reasons("a.jsonl", f'"a"\n"{long}"\n"b"\n') == ["a", "record_too_long", "b"]
    assert reasons("b.jsonl", f'"a"\n"{long}') == ["a", "record_too_long"]
    assert reasons("a.json", json.dumps(["a", long, {"text": ["y"] * 500}, "b"])) == [
        "a",
        "record_too_long",
        "record_too_long",
        "b",
    ]
    assert reasons("a.txt", "a\n<|endoftext|>\n" + "x\n" * 600 + "<|endoftext|>\nb") == ["a", "record_too_long", "b"]
    assert reasons("b.txt", f"# a\n{long}\n# b", cut="^#") == ["record_too_long", "# b"]
    assert reasons("c.txt", "x" * 1000 + "\n<|endoftext|>\n" + "x" * 1001) == ["x" * 1000, "record_too_long"]
    assert reasons("a.csv", f"text,n\na,1\n{long},2\nb,3\n") == ["a", "record_too_long", "b"]
    assert reasons("a.html", f"<main><p>{long}</p></main>") == ["record_too_long"]
    pq.write_table(pa.table({"text": ["a", long, "b"]}), tmp_path / "a.parquet")
    assert said(read(tmp_path / "a.parquet", limits=limits)) == ["a", "record_too_long", "b"]
    assert reasons("d.jsonl", json.dumps({"text": "y" * 600}), text="{text}{text}") == ["record_too_long"]


MEASURE = r"""
import re, sys
from pathlib import Path
from foundry.data.read.units import Limits, plan_units, read_unit
from raw_files import raw_source

def read(name, limits):
    sources = [raw_source(name)]
    found = []
    for unit in plan_units(Path(sys.argv[1]), sources, 10 << 20, limits):
        for item in read_unit(Path(sys.argv[1]), sources, unit, limits):
            found.append(getattr(item, "reason", "document"))
    return found

def peak():  # in kB, of this program only: ru_maxrss begins with that of the parent
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])

limits = Limits(int(sys.argv[3]), 1e9, 1 << 40)
read("small" + sys.argv[2], limits)
before = peak()
found = read("large" + sys.argv[2], limits)
print(peak() - before, sorted(set(found)), len(found))
"""
LONG = {  # what comes before, inside and after 100 MB
    ".jsonl": (b'"a"\n"', b'"\n"b"\n', 3),
    ".json": (b'["a", "', b'", "b"]', 3),
    ".txt": (b"a\n<|endoftext|>\n", b"\n<|endoftext|>\nb", 3),
    ".csv": (b"text\na\n", b"\nb\n", 3),
    ".html": (b"<p>", b"</p>", 1),
}


@pytest.mark.parametrize("suffix", [*LONG, ".jsonl.gz", ".txt.zst", ".jsonl.xz"])
def test_a_line_of_100_mb_is_counted_and_not_kept_in_memory(tmp_path, suffix):
    kind = next(k for k in sorted(LONG, key=len, reverse=True) if suffix.startswith(k))
    before, after, records = LONG[kind]
    packing = {"gz": "gzip", "st": "zstd", "xz": "xz"}.get(suffix[-2:])
    for name, millions in (("small", 3), ("large", 100)):
        path = tmp_path / (name + suffix)
        with lzma.open(path, "wb", preset=0) if packing == "xz" else pa.output_stream(path, compression=packing) as f:
            f.write(before)
            for _ in range(millions):
                f.write(b"some words " * 90909)
            f.write(after)

    def measure(limit):
        command = [sys.executable, "-c", MEASURE, str(tmp_path), suffix, str(limit)]
        helpers = {**os.environ, "PYTHONPATH": os.path.dirname(raw_files.__file__)}
        run = subprocess.run(command, capture_output=True, text=True, check=True, env=helpers)
        return run.stdout.strip().split(" ", 1)

    kilobytes, found = measure(1 << 20)
    assert int(kilobytes) < 24 * 1024
    seen = ["document", "record_too_long"] if records > 1 else ["record_too_long"]
    assert found == f"{seen} {records}"
    if suffix == ".jsonl":  # the measurement notices what is kept
        kilobytes, found = measure(200 << 20)
        assert int(kilobytes) > 90 * 1024 and found == "['document'] 3"


def test_a_document_of_100_mb_is_read_where_the_limit_allows_it(tmp_path):
    path = put(tmp_path, "a.txt", b"some words\n" * 9_100_000)
    assert said(read(path)) == ["record_too_long"]
    (item,) = read(path, limits=Limits(101 << 20, 1000, 1 << 30))
    assert len(item.text) == 11 * 9_100_000 - 1


def test_bombs_stop_at_the_limits(tmp_path):
    bombs = {s: PACK[s](b"words and words\n" * 5_000_000) for s in (".gz", ".zst", ".xz")}
    for suffix, data in bombs.items():
        assert len(data) < 2_000_000
        path = put(tmp_path, "a.txt" + suffix, data)
        with pytest.raises(DataError, match=r"max_unpack_ratio \(10\)"):
            read(path, limits=Limits(1 << 20, 10, 1 << 40))
        with pytest.raises(DataError, match=r"max_unpacked_bytes \(1,000,000\)"):
            read(path, limits=Limits(1 << 20, 1e9, 1_000_000))
    pq.write_table(pa.table({"text": pa.repeat("x" * 1000, 100_000)}), tmp_path / "a.parquet", use_dictionary=False)
    packed = put(tmp_path, "a.parquet.gz", gzip.compress((tmp_path / "a.parquet").read_bytes()))
    for path in (tmp_path / "a.parquet", packed):
        with pytest.raises(DataError, match="max_unpack_ratio"):
            read(path, limits=Limits(1 << 20, 2, 1 << 40))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "b.arrow"])
def test_damaged_tables_are_errors(tmp_path, name):
    table = pa.table({"text": [f"row {i}" for i in range(1000)]})
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    elif name == "a.arrow":
        pyarrow.feather.write_feather(table, tmp_path / name, compression="uncompressed")
    else:
        with pa.ipc.new_stream(tmp_path / name, table.schema) as out:
            for batch in table.to_batches(100):
                out.write_batch(batch)
    good = (tmp_path / name).read_bytes()
    assert len(read(tmp_path / name)) == 1000
    # The last one is a stream without its end mark, which pyarrow reads as complete.
    for damaged in (good[: len(good) // 2], good[:6], good[:-1], good[:-8]):
        with pytest.raises(DataError, match=name):
            read(put(tmp_path, name, damaged))
        with pytest.raises(DataError, match=name):
            read(put(tmp_path, name + ".gz", gzip.compress(damaged)))


def test_a_flipped_bit_in_a_parquet_page_with_a_checksum_is_detected(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"row {i}" for i in range(100)]})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[data.index(b"row 50")] ^= 1
    with pytest.raises(DataError, match=r"b\.parquet"):
        read(put(tmp_path, "b.parquet", bytes(data)))


def test_offsets_that_point_out_of_an_arrow_file_are_reported_not_followed(tmp_path):
    path = tmp_path / "a.arrow"
    pyarrow.feather.write_feather(pa.table({"text": ["abc", "def", "ghi"]}), path, compression="uncompressed")
    data = bytearray(path.read_bytes())
    at = data.index(b"\0\0\0\0\3\0\0\0\6\0\0\0\x09\0\0\0")
    data[at + 4 : at + 8] = b"\xff\xff\xff\x0f"
    with pytest.raises(DataError, match=r"b\.arrow"):
        read(put(tmp_path, "b.arrow", bytes(data)))


def test_each_row_without_text_is_reported(tmp_path):
    pq.write_table(pa.table({"text": ["a", None, "b", None]}), tmp_path / "a.parquet")
    items = read(tmp_path / "a.parquet")
    assert said(items) == ["a", "missing_field text", "b", "missing_field text"]
    assert [i.record for i in items] == [0, 1, 2, 3]
