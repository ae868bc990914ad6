"""Units: together they give the file, for every size of a unit; each can be read in any order and process."""

import dataclasses
import gzip
import io
import json
import pickle
import zipfile

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_files import raw_source
from reading import put, read, said

from foundry.config import DataError
from foundry.data.read.records import Bad, Document
from foundry.data.read.units import Limits, Unit, plan_units, read_unit

LIMITS = Limits(1 << 20, 1000, 1 << 30)
ONE = 1 << 40  # bytes: a file is one unit


def items(raw, sources, unit_bytes, limits=LIMITS):
    """The items of all units, with the records numbered through each file; and the units."""
    out, base, last = [], 0, None
    units = plan_units(raw, sources, unit_bytes, limits)
    for unit in units:
        base = base if last == (unit.source, unit.file) else 0
        last = (unit.source, unit.file)
        got = list(read_unit(raw, sources, unit, limits))
        assert [i.record for i in got] == list(range(len(got)))
        out += [dataclasses.replace(i, record=i.record + base) for i in got]
        base += len(got)
    return out, units


LINE = st.one_of(
    st.text(max_size=12).map(lambda t: json.dumps({"text": t}, ensure_ascii=False).encode("utf-8", "replace")),
    st.sampled_from([b"", b"  ", b"\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa9", b'{"text": "\xff"}', b"{", b"\r"]),
    st.integers(20, 60).map(lambda n: json.dumps({"text": "中" * n}, ensure_ascii=False).encode()),
)


@given(
    st.lists(LINE, max_size=8),
    st.lists(st.sampled_from([b"\n", b"\r\n"]), min_size=8, max_size=8),
    st.booleans(),
    st.integers(1, 70),
    st.sampled_from([40, 1 << 20]),
)
@settings(max_examples=300, deadline=None)
def test_units_of_json_lines_give_the_file_for_every_size(tmp_path_factory, lines, ends, final, unit_bytes, limit):
    data = b"".join(line + end for line, end in zip(lines, ends, strict=False))
    data = data if final else data.removesuffix(b"\n").removesuffix(b"\r")
    folder = tmp_path_factory.mktemp("units")
    (folder / "a.jsonl").write_bytes(data)
    limits = Limits(limit, 1000, 1 << 30)
    got, units = items(folder, [raw_source("a.jsonl")], unit_bytes, limits)
    assert len(units) == max(1, -(-len(data) // unit_bytes))
    assert got == items(folder, [raw_source("a.jsonl")], ONE, limits)[0]

    offset, expected = 0, []  # computed in another way
    for line in data.split(b"\n"):
        if line.strip():
            expected.append((offset, line))
        offset += len(line) + 1
    assert len(got) == len(expected)
    for item, (offset, line) in zip(got, expected, strict=True):
        if isinstance(item, Bad):
            assert item.offset == offset
            assert (item.reason == "record_too_long") == (len(line) > limit)
        elif b"\xff" not in line:
            assert item.text == json.loads(line)["text"]


def test_every_size_of_a_unit_gives_the_same_for_one_hard_file(tmp_path):
    hard = ["שלום \u202bעולם\u202c", "👩‍👩‍👧‍👦 and 🇩🇪", "e\u0301 \u200b \ufeff", "a\u2028b\x85c\r", "", "中文" * 30]
    data = b"\r\n".join(json.dumps({"text": t}, ensure_ascii=False).encode() for t in hard) + b"\n\n\nnot json\n"
    (tmp_path / "a.jsonl").write_bytes(data)
    whole, _ = items(tmp_path, [raw_source("a.jsonl")], ONE)
    assert [i.text for i in whole[:-1]] == hard and whole[-1].reason == "broken_json"
    for unit_bytes in range(1, len(data) + 2):
        assert items(tmp_path, [raw_source("a.jsonl")], unit_bytes)[0] == whole


def test_units_can_be_sent_and_read_in_any_order(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(50)))
    sources = [raw_source("b.jsonl"), raw_source("a.jsonl", "b.jsonl")]
    whole, units = items(tmp_path, sources, 100)
    assert [(u.source, u.file) for u in units] == sorted((u.source, u.file) for u in units) and len(units) > 20
    assert all(Unit(**json.loads(json.dumps(dataclasses.asdict(u)))) == u for u in units)
    back = {}
    for unit in reversed(pickle.loads(pickle.dumps(units))):
        back[unit] = [i.text for i in read_unit(tmp_path, sources, unit, LIMITS)]
    assert [t for u in units for t in back[u]] == [i.text for i in whole]


@pytest.fixture
def table():
    return pa.table(
        {
            "text": [f"row {i}" if i % 7 else None for i in range(100)],
            "n": range(100),
            "tags": [[str(i)] * (i % 3) for i in range(100)],
            "meta": [{"year": i} for i in range(100)],
        }
    )


def write_stream(table, path):
    with pa.ipc.new_stream(path, table.schema) as out:
        for batch in table.to_batches(9):
            out.write_batch(batch)


WRITERS = {
    "a.parquet": lambda t, p: pq.write_table(t, p, row_group_size=9),
    "a.arrow": lambda t, p: write_stream(t, p),
    "b.arrow": lambda t, p: pa.feather.write_feather(t, p, chunksize=9, compression="uncompressed"),
    "a.feather": lambda t, p: pa.feather.write_feather(t, p, chunksize=9, compression="zstd"),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("unit_bytes", [1, 700, 2000, ONE])
def test_tables_are_divided_at_row_groups_and_batches(tmp_path, table, name, unit_bytes):
    WRITERS[name](table, tmp_path / name)
    sources = [raw_source(name, text="{text}: {tags} {meta.year}")]
    got, units = items(tmp_path, sources, unit_bytes)
    expected = [
        f"row {i}: {chr(10).join([str(i)] * (i % 3))} {i}" if i % 7 else "missing_field text" for i in range(100)
    ]
    assert [i.text if isinstance(i, Document) else i.reason for i in got] == expected
    if name != "a.arrow":  # a stream has no index
        assert (len(units) == 1) == (unit_bytes == ONE) and (unit_bytes > 1 or len(units) == 12)
    with gzip.open(tmp_path / f"{name}.gz", "wb") as f:
        f.write((tmp_path / name).read_bytes())
    packed, units = items(tmp_path, [raw_source(f"{name}.gz", text=sources[0].text)], unit_bytes)
    assert len(units) == 1 and [dataclasses.replace(i, file=name) for i in packed] == got


@given(st.lists(st.integers(0, 200), min_size=1, max_size=8), st.integers(1, 500))
@settings(max_examples=60, deadline=None)
def test_units_of_a_zip_archive_give_the_archive_for_every_size(tmp_path_factory, sizes, unit_bytes):
    folder = tmp_path_factory.mktemp("zip")
    with zipfile.ZipFile(folder / "a.zip", "w") as z:
        for i, n in reversed(list(enumerate(sizes))):
            z.writestr(f"d/{i}.jsonl", (json.dumps({"text": str(i)}) + "\n") * n)
    got, _ = items(folder, [raw_source("a.zip")], unit_bytes)
    assert got == items(folder, [raw_source("a.zip")], ONE)[0]
    assert [(i.file, i.text) for i in got] == [
        (f"a.zip!d/{i}.jsonl", str(i)) for i, n in enumerate(sizes) for _ in range(n)
    ]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("name", ["a.parquet", "b.arrow"])
def test_a_row_that_is_not_utf8_does_not_fail_its_column(tmp_path, kind, name):
    values = pa.array(
        [b"good", b"caf\xe9 and more", "中文".encode()], pa.binary() if kind == pa.string() else pa.large_binary()
    )
    WRITERS[name](pa.table({"text": pa.Array.from_buffers(kind, 3, values.buffers())}), tmp_path / name)
    got, _ = items(tmp_path, [raw_source(name)], ONE)
    assert [i.text for i in got] == ["good", "café and more", "中文"]
    assert [i.repaired for i in got] == [False, True, False]


@pytest.mark.parametrize("name", ["a.parquet", "b.arrow"])
def test_dictionary_binary_and_view_columns_are_text_too(tmp_path, name):
    columns = {
        "text": pa.array(["u", "v", "u"]).dictionary_encode(),
        "raw": pa.array([b"x", b"y", b"z"]),
        "view": pa.array(["1", "2", "3"], pa.string_view()),
    }
    WRITERS[name](pa.table(columns), tmp_path / name)
    got, _ = items(tmp_path, [raw_source(name, text="{text}{raw}{view}")], ONE)
    assert [i.text for i in got] == ["ux1", "vy2", "uz3"]


@pytest.mark.parametrize("name", WRITERS)
def test_columns_that_are_missing_or_not_text_are_named_with_the_others(tmp_path, table, name):
    WRITERS[name](table, tmp_path / name)
    for text, message in {
        "{body}": r"no column 'body'.*text \(string\), n \(int64\)",
        "{n}": r"'n' is int64; its columns are text \(string\), n",
        "{text} {meta}": r"'meta' is struct",
        "{meta.day} {text}": r"'meta.day' is struct<year: int64>",
    }.items():
        with pytest.raises(DataError, match=message):
            items(tmp_path, [raw_source(name, text=text)], ONE)
    assert len(items(tmp_path, [raw_source(name, text="{text} {n}")], ONE)[0]) == 100  # numbers beside text


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl", "a.json"])
def test_the_address_of_a_record_comes_with_it(tmp_path, name):
    rows = [{"text": f"row {i}", "url": f"https://h.example/{i}"} for i in range(5)]
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name == "a.arrow":
        with pa.ipc.new_file(path, pa.schema([("text", pa.string()), ("url", pa.string())])) as f:
            f.write_table(pa.Table.from_pylist(rows))
    else:
        path.write_text(json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows)))
    assert [i.url for i in read(path)] == [r["url"] for r in rows]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("format", ["jsonl", "json", "html", "parquet", "arrow"])
def test_the_content_shows_the_format_where_no_suffix_does(tmp_path, format, suffix):
    sink = io.BytesIO()
    rows = pa.table({"text": ["one", "two"]})
    if format == "parquet":
        pq.write_table(rows, sink)
    elif format == "arrow":
        with pa.ipc.new_file(sink, rows.schema) as f:
            f.write_table(rows)
    data = {
        "jsonl": b'{"text": "one"}\n{"text": "two"}\n',
        "json": b'[{"text": "one"}, {"text": "two"}]',
        "html": b"<!DOCTYPE html><html><body><article><p>one</p></article></body></html>",
    }.get(format, sink.getvalue())
    path = put(tmp_path, f"data{suffix}", gzip.compress(data) if suffix else data)
    assert said(read(path)) == (["one"] if format == "html" else ["one", "two"])
    with pytest.raises(DataError, match="nor the content shows a format"):
        read(put(tmp_path, f"unknown{suffix}", gzip.compress(b"who knows") if suffix else b"who knows"))
