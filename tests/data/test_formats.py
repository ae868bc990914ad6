"""Readers: every record once, as a document or as a bad record with its reason; damage is never silent."""

import gzip
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import put, read, zst
from reading import said as texts

from foundry.config import ConfigError, DataError
from foundry.data import streams
from foundry.data.formats import Bad
from foundry.data.streams import Limits
from foundry.data.template import Template

LINES = b"".join(json.dumps({"text": f"line {i} " + "x" * (i % 97)}).encode() + b"\n" for i in range(5000))


@pytest.mark.parametrize("pack, suffix", [(bytes, ""), (gzip.compress, ".gz"), (zst, ".zst")])
def test_lines_are_the_same_in_each_packing(tmp_path, pack, suffix):
    items = read(put(tmp_path, "a.jsonl" + suffix, pack(LINES)))
    assert [i.record for i in items] == list(range(5000))
    assert items[4999].text.startswith("line 4999 ")


@pytest.mark.parametrize("pack", [gzip.compress, zst])
def test_two_packed_streams_in_a_row_are_both_read(tmp_path, pack):
    path = put(tmp_path, "a.jsonl" + (".gz" if pack is gzip.compress else ".zst"), pack(LINES) + pack(LINES))
    assert len(read(path)) == 10000


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.gz", "a.txt.zst"])
def test_damaged_packing_is_an_error_never_a_shorter_text(tmp_path, name):
    good = gzip.compress(LINES) if name.endswith("gz") else zst(LINES)
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    damaged = [good[: len(good) // 2], good[:-1], good + b"garbage", b"", b"not packed at all"]
    if name.endswith("gz"):  # of a zstd frame without a checksum only the manifest's sha256 tells a flipped bit
        damaged += [bytes(flipped), good[:-8] + b"\0\0\0\0" + good[-4:]]
    for data in damaged:
        with pytest.raises(DataError, match=name):
            read(put(tmp_path, name, data))


def test_lines_end_at_line_feeds_alone(tmp_path):
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh"  # each of them an end of line to str.splitlines
    path = put(tmp_path, "a.jsonl", json.dumps({"text": text}, ensure_ascii=False) + "\n\n  \n" + '{"text": "z"}')
    assert texts(read(path)) == [text, "z"]
    raw = '{"text": "a\u2028b\x85c"}\r\n{"text": "d"}\r\n'
    assert texts(read(put(tmp_path, "b.jsonl", raw))) == ["a\u2028b\x85c", "d"]


def test_bad_lines_are_counted_with_place_and_reason(tmp_path):
    lines = [
        b'{"text": "good 0"}',
        b'{"text": "broken',
        b'{"text": "good 2"}',
        b"[1, 2]",
        b'{"body": "x"}',
        b'{"text": null}',
        b'{"text": {"a": 1}}',
        b'{"text": "one", "text": "two"}',
        b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"text": 1' + b"0" * 5000 + b"}",
        b'{"text": true}',
        b'{"text": "good", "score": NaN}',
        b'"a plain string"',
        b'{"text": 7}',
    ]
    items = read(put(tmp_path, "a.jsonl", b"\n".join(lines)))
    assert texts(items) == [
        "good 0",
        "broken_json",
        "good 2",
        "not_an_object",
        "missing_field text",
        "missing_field text",
        "not_text text",
        "duplicate_key",
        "too_deep",
        "broken_json",
        "not_text text",
        "good",
        "a plain string",
        "7",
    ]
    broken = items[1]
    assert (broken.file, broken.record, broken.offset) == ("a.jsonl", 1, len(lines[0]) + 1)
    assert "broken" in broken.excerpt
    assert all(len(i.excerpt) <= 160 for i in items if isinstance(i, Bad))


def test_byte_order_marks_and_surrogates_and_foreign_bytes_are_repaired_one_by_one(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"text": "with mark"}',
        b'{"text": "pair \\ud83d\\ude00"}',
        b'{"text": "lone \\ud83d end"}',
        '{"text": "caf\u00e9"}'.encode(),
        b'{"text": "caf\xe9 au lait \x93x\x94"}',
        b'{"text": "\xe4\xb8\xad cut \xe4\xb8"}',
    ]
    items = read(put(tmp_path, "a.jsonl", b"\n".join(lines)))
    assert texts(items) == [
        "with mark",
        "pair \U0001f600",
        "lone \ufffd end",
        "café",
        "café au lait \u201cx\u201d",
        "中 cut \ufffd",
    ]
    assert [i.repaired for i in items] == [False, False, True, False, True, True]
    for i in items:
        i.text.encode()  # can be written


def test_text_of_no_western_encoding_is_not_turned_into_letters(tmp_path):
    for text, encoding in (("这是一个用旧编码写的文件" * 20, "gb18030"), ("Привет мир. " * 20, "cp1251")):
        (item,) = read(put(tmp_path, "a.txt", text.encode(encoding)))
        assert item.repaired and item.text.count("\ufffd") > len(text) / 2


def test_over_long_records_are_counted_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", 64)
    limits = Limits(record=1000)
    data = b'{"text": "a"}\n{"text": "' + b"x" * 5000 + b'"}\n{"text": "b"}\n'
    items = read(put(tmp_path, "a.jsonl", data), limits=limits)
    assert texts(items) == ["a", "record_too_long", "b"]
    assert [i.record for i in items] == [0, 1, 2] and items[1].offset == 14
    text = b"short\n<|endoftext|>\n" + b"x\n" * 3000 + b"<|endoftext|>\nlast"
    assert texts(read(put(tmp_path, "a.txt", text), limits=limits)) == ["short", "record_too_long", "last"]


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_lines_do_not_depend_on_the_size_of_reads(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(streams, "CHUNK", chunk)
    data = b"one\n\n\ntwo\r\nthree"
    with open(put(tmp_path, "a", data), "rb") as f:
        lines = list(streams.read_lines(f, 1 << 20))
    assert [line for _, line, _ in lines] == data.split(b"\n")
    assert all(data[o : o + len(line)] == line for o, line, _ in lines)


def test_a_text_file_is_a_document_or_several_between_separators(tmp_path):
    assert texts(read(put(tmp_path, "a.txt", "one\n\ntwo\n"))) == ["one\n\ntwo"]
    items = read(
        put(
            tmp_path,
            "b.txt",
            "one\nmore\n<|endoftext|>\ntwo <|endoftext|> inside\n <|endoftext|> \r\nthree\n<|endoftext|>\n",
        )
    )
    assert texts(items) == ["one\nmore", "two <|endoftext|> inside", "three"]
    assert texts(read(put(tmp_path, "c.md", "# Title\n"))) == ["# Title"]
    assert texts(read(put(tmp_path, "d.txt", ""))) == [""]
    assert texts(read(put(tmp_path, "e.txt", "Füße".encode("utf-16")))) == ["Füße"]
    assert texts(read(put(tmp_path, "f.txt", b"%PDF-1.7\0\0\0"))) == ["binary"]


def test_json_maps_and_lists_give_their_records(tmp_path):
    data = {"x": {"title": "T", "n": 1}, "y": {"title": "U"}, "z": "plain", "w": [1]}
    assert texts(read(put(tmp_path, "a.json", json.dumps(data)), "{id} {title}")) == [
        "x T",
        "y U",
        "missing_field title",
        "not_an_object",
    ]
    assert texts(read(put(tmp_path, "b.json", json.dumps(["p", {"text": "q"}])))) == ["p", "q"]
    twice = b'{"a": {"text": "1"}, "a": {"text": "2"}}'
    assert texts(read(put(tmp_path, "c.json", twice))) == ["1", "duplicate_key"]
    for broken in (b'{"a": ', b'{"text": 1}\n{"text": 2}\n', b"7"):
        with pytest.raises(DataError, match=r"d\.json"):
            read(put(tmp_path, "d.json", broken))


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("pkg/data/texts_en.json", json.dumps({"1": {"text": "inside " * 500}}))
        z.writestr("pkg/data/lines.jsonl.gz", gzip.compress(LINES))
        z.writestr("pkg/code.py", "x = 1")
    return path


def test_members_of_archives_are_read_and_missing_ones_named(archive, tmp_path):
    assert texts(read(archive, member="pkg/data/texts_en.json")) == ["inside " * 500]
    assert len(read(archive, member="pkg/data/lines.jsonl.gz")) == 5000
    with pytest.raises(DataError, match="texts_en"):
        read(archive, member="pkg/data/text_en.json")
    assert len(read(archive)) == 5001
    data = bytearray(archive.read_bytes())
    data[60] ^= 0xFF
    with pytest.raises(DataError):
        read(put(tmp_path, "b.whl", bytes(data)), member="pkg/data/texts_en.json")
    with pytest.raises(DataError):
        read(put(tmp_path, "c.whl", bytes(data[:200])), member="pkg/data/texts_en.json")


def test_unknown_suffix_names_the_formats(tmp_path):
    with pytest.raises(DataError, match=r"\.doc.*jsonl"):
        read(put(tmp_path, "a.doc", b"x"))


def test_parquet_rows_are_read_and_missing_columns_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table(
            {
                "title": ["a", "b", None],
                "tags": [["x", "y"], [], ["z"]],
                "meta": [{"year": 1}, {"year": 2}, {"year": 3}],
            }
        ),
        path,
    )
    assert texts(read(path, "{title}: {tags} {meta.year}")) == ["a: x\ny 1", "b:  2", "missing_field title"]
    with pytest.raises(DataError, match=r"'text'.*title, tags, meta"):
        read(path)
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], b"PAR1", b""):
        with pytest.raises(DataError, match=r"b\.parquet"):
            read(put(tmp_path, "b.parquet", damaged), "{title}")


def test_flipped_bit_in_a_parquet_page_with_a_checksum_is_told(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"row {i}" for i in range(100)]})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[data.index(b"row 50")] ^= 1
    with pytest.raises(DataError, match=r"b\.parquet"):
        read(put(tmp_path, "b.parquet", bytes(data)))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_parquet_row_that_is_not_utf8_does_not_fail_its_column(tmp_path, kind):
    values = pa.array(
        [b"good", b"caf\xe9 and more", "中文".encode()], pa.binary() if kind == pa.string() else pa.large_binary()
    )
    column = pa.Array.from_buffers(kind, 3, values.buffers())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": column}), path)
    items = read(path)
    assert texts(items) == ["good", "café and more", "中文"]
    assert [i.repaired for i in items] == [False, True, False]


def test_parquet_dictionary_and_binary_columns_are_text_too(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": pa.array(["u", "v", "u"]).dictionary_encode(), "raw": pa.array([b"x", b"y", b"z"])}), path
    )
    assert texts(read(path, "{text}{raw}")) == ["ux", "vy", "uz"]


def test_templates_write_lists_as_lines_bullets_and_numbers():
    record = {"title": "T", "list": ["a", "b\nc"], "deep": {"er": {"x": 5}}, "a.b": "dotted", "empty": []}

    def render(template):
        return Template(template).render(record)

    assert render("{title}\n\n{list}") == "T\n\na\nb\nc"
    assert render("{list:bullets}") == "- a\n- b c"
    assert render("{list:numbers}") == "1. a\n2. b c"
    assert render("{{{deep.er.x}}} {a.b}{empty}") == "{5} dotted"


@pytest.mark.parametrize("text", ["no field", "{}", "{0!r}", "{x:>10}", "{x", "}", "{title!s}", "{x:numbers}}"])
def test_templates_that_are_not_understood_are_refused(text):
    with pytest.raises(ConfigError, match="template"):
        Template(text)
