"""Readers of text, JSON, pages and CSV: every record comes once, as a document or as a bad record with its reason."""

import bz2
import csv
import gzip
import io
import json
import lzma

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_files import raw_source
from reading import put, said, zst

from foundry.config import ConfigError, DataError
from foundry.data.read import json_records, plain_text, streams
from foundry.data.read.json_records import read_json, read_jsonl
from foundry.data.read.plain_text import read_text
from foundry.data.read.records import Bad, DocumentBuilder
from foundry.data.read.template import Template
from foundry.data.read.units import Limits, plan_units, read_unit


def read(path, text="{text}", format="auto", cut="", limit=1 << 20):
    """All of one file, as a plan of one unit reads it."""
    source = raw_source(path.name, format=format, text=text, cut=cut)
    limits = Limits(limit, 1000, 1 << 30)
    (unit,) = plan_units(path.parent, [source], 1 << 40, limits)
    return list(read_unit(path.parent, [source], unit, limits))


PACK = {"": bytes, ".gz": gzip.compress, ".zst": zst, ".bz2": bz2.compress, ".xz": lzma.compress}


LIMITS = Limits(1 << 20, 1000, 1 << 30)
LINES = b"".join(json.dumps({"text": f"line {i} " + "x" * (i % 97)}).encode() + b"\n" for i in range(5000))


@pytest.mark.parametrize("suffix", PACK)
def test_lines_are_the_same_in_each_compression(tmp_path, suffix):
    items = read(put(tmp_path, "a.jsonl" + suffix, PACK[suffix](LINES)))
    assert [i.record for i in items] == list(range(5000))
    assert items[4999].text.startswith("line 4999 ")


@pytest.mark.parametrize("suffix", [s for s in PACK if s])
def test_two_compressed_streams_in_a_row_are_both_read(tmp_path, suffix):
    pack = PACK[suffix]
    assert len(read(put(tmp_path, "a.jsonl" + suffix, pack(LINES) + pack(b"") + pack(LINES)))) == 10000
    if suffix == ".xz":
        assert len(read(put(tmp_path, "b.jsonl.xz", pack(LINES) + bytes(8) + pack(LINES) + bytes(4)))) == 10000


def test_lines_end_only_at_line_feeds(tmp_path):
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh"  # each of them an end of line to str.splitlines
    path = put(tmp_path, "a.jsonl", json.dumps({"text": text}, ensure_ascii=False) + "\n\n  \n" + '{"text": "z"}')
    assert said(read(path)) == [text, "z"]
    raw = '{"text": "a\u2028b\x85c"}\r\n{"text": "d"}\n\r\n{"text": "e"}'
    assert said(read(put(tmp_path, "b.jsonl", raw))) == ["a\u2028b\x85c", "d", "e"]
    table = 'text,n\r\n"a\u2028b\x85c",1\n"d\x0be",2\n'
    assert said(read(put(tmp_path, "c.csv", table))) == ["a\u2028b\x85c", "d\x0be"]


BAD_LINES = [
    (b'{"text": "good 0"}', "good 0"),
    (b'{"text": "broken', "broken_json"),
    (b'{"text": "good 2"}', "good 2"),
    (b"[1, 2]", "not_an_object"),
    (b'{"body": "x"}', "missing_field text"),
    (b'{"text": null}', "missing_field text"),
    (b'{"text": {"a": 1}}', "not_text text"),
    (b'{"text": "one", "text": "two"}', "duplicate_key"),
    (b'{"text" :"one", "n": {"text"\t: "two", "text": 3}}', "duplicate_key"),
    (b'{"text": "one", "n": {"text": "two"}}', "one"),
    (b'{"text": "says \\"text\\": twice", "kind": "text"}', 'says "text": twice'),
    (b'{"text": "one", "n": 1, "n": 2}', "one"),
    (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too_deep"),
    (b'{"text": 1' + b"0" * 5000 + b"}", "1" + "0" * 5000),
    (b'{"text": 12345678901234567890123}', "12345678901234567890123"),
    (b'{"text": true}', "not_text text"),
    (b'{"text": "good", "score": NaN}', "good"),
    (b'{"text": "raw \0 byte"}', "binary"),
    (b'"a plain string"', "a plain string"),
    (b'{"text": 7}', "7"),
]


def test_bad_lines_are_counted_with_place_and_reason(tmp_path):
    data = b"\n".join(line for line, _ in BAD_LINES)
    items = read(put(tmp_path, "a.jsonl", data))
    assert said(items) == [expected for _, expected in BAD_LINES]
    assert [i.record for i in items] == list(range(len(items)))
    for item, (line, _) in zip(items, BAD_LINES, strict=True):
        if isinstance(item, Bad):
            assert item.file == "a.jsonl" and data[item.offset : item.offset + len(line)] == line
            assert item.excerpt and len(item.excerpt) <= 160


def test_json_lists_report_the_same_faults_as_lines(tmp_path):
    inside = [(line, expected) for line, expected in BAD_LINES if line != b'{"text": "broken']
    data = b"[" + b",\n ".join(line for line, _ in inside) + b"]"
    items = read(put(tmp_path, "a.json", data))
    assert said(items) == [expected for _, expected in inside]
    bad = [(i, line) for i, (line, _) in zip(items, inside, strict=True) if isinstance(i, Bad)]
    assert len(bad) > 5 and all(data[i.offset : i.offset + len(line)] == line for i, line in bad)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(["text", "a", "b.c"]), below),
    max_leaves=6,
)


@pytest.mark.parametrize("template", ["{text}", "{text} {a}", "<{a.text}>", "{text:bullets}"])
@given(value=VALUES, escape=st.booleans(), spaces=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_fast_parser_of_json_gives_what_the_slow_one_gives(template, value, escape, spaces):
    line = json.dumps(value, ensure_ascii=escape, separators=(", ", " : ") if spaces else (",", ":"))
    line = line.encode("utf-8", "surrogatepass")
    builder = DocumentBuilder(template, "", LIMITS)
    with pytest.MonkeyPatch.context() as patch:
        fast = list(read_jsonl(io.BytesIO(line), "a", builder))
        patch.setattr(orjson, "loads", lambda raw: None)
        assert list(read_jsonl(io.BytesIO(line), "a", builder)) == fast
    assert len(fast) == 1


@given(records=st.lists(VALUES, max_size=5), chunk=st.integers(1, 40), named=st.booleans(), indent=st.booleans())
@settings(max_examples=150, deadline=None)
def test_json_gives_every_record_wherever_reads_cut_it(records, chunk, named, indent):
    value = {f'k"\\{i}': r for i, r in enumerate(records)} if named else records
    data = json.dumps(value, indent=1 if indent else None).encode()
    builder = DocumentBuilder("{id} {text}" if named else "{text}", "", LIMITS)
    lines = [({"id": k, **r} if isinstance(r, dict) else r) for k, r in value.items()] if named else records
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_records, "CHUNK", chunk)
        got = list(read_json(io.BytesIO(data), "a", builder))
    if named:  # only the dictionary knows the id of a string
        got = [g for g, r in zip(got, records, strict=True) if not isinstance(r, str)]
        lines = [r for r in lines if not isinstance(r, str)]
    expected = [next(read_jsonl(io.BytesIO(json.dumps(r).encode()), "a", builder)) for r in lines]
    assert said(got) == said(expected)
    for item, r in zip(got, lines, strict=True):
        if isinstance(item, Bad) and not named:
            assert repr(json.JSONDecoder().raw_decode(data.decode(), item.offset)[0]) == repr(r)


def test_json_maps_and_lists_give_their_records(tmp_path):
    data = {"x": {"title": "T", "n": 1}, "y": {"title": "U"}, "z": "plain", "w": [1]}
    assert said(read(put(tmp_path, "a.json", json.dumps(data)), "{id} {title}")) == [
        "x T",
        "y U",
        "missing_field title",
        "not_an_object",
    ]
    assert said(read(put(tmp_path, "b.json", json.dumps(["p", {"text": "q"}])))) == ["p", "q"]
    twice = b'{"a": {"text": "1"}, "a": {"text": "2"}}'  # JSON readers keep only the last of them, without an error
    assert said(read(put(tmp_path, "c.json", twice))) == ["1", "2"]
    assert read(put(tmp_path, "e.json", b"\xef\xbb\xbf [ ] ")) == read(put(tmp_path, "f.json", b"{}")) == []


@pytest.mark.parametrize(
    "broken",
    [
        b'{"a": ',
        b'{"text": 1}\n{"text": 2}\n',
        b"7",
        b'[{"a":1}',
        b'[{"a":1} {"b":2}]',
        b"[1,]",
        b'{"a" 1}',
        b'["a',
        b'["a\\',
    ],
)
def test_json_that_is_not_one_value_of_records_is_an_error_with_its_place(tmp_path, broken):
    with pytest.raises(DataError, match=r"d\.json is not one JSON value of records: byte \d+"):
        read(put(tmp_path, "d.json", broken))


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
    assert said(items) == [
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


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_lines_do_not_depend_on_the_size_of_reads(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(streams, "CHUNK", chunk)
    data = b"one\n\n\ntwo\r\nthree"
    with open(put(tmp_path, "a", data), "rb") as f:
        lines = list(streams.read_lines(f, 100))
    assert [line for _, line, _ in lines] == data.split(b"\n")
    assert all(data[o : o + len(line)] == line for o, line, _ in lines)


def test_a_text_file_is_a_document_or_several_between_separators(tmp_path):
    assert said(read(put(tmp_path, "a.txt", "one\n\ntwo\n"))) == ["one\n\ntwo"]
    items = read(
        put(
            tmp_path,
            "b.txt",
            "one\nmore\n<|endoftext|>\ntwo <|endoftext|> inside\n <|endoftext|> \r\nthree\n<|endoftext|>\n",
        )
    )
    assert said(items) == ["one\nmore", "two <|endoftext|> inside", "three"]
    assert [i.record for i in items] == [0, 1, 2]
    assert said(read(put(tmp_path, "c.md", "\ufeff# Title\n"))) == ["# Title"]


def test_a_text_file_is_cut_at_the_lines_that_match(tmp_path):
    book = "Preface\n第一回 a\nx\n第 y\r\n第二回 b\r\nz\n<|endoftext|>\n第三回\n"
    items = read(put(tmp_path, "a.txt", book), cut="^第.回")
    assert said(items) == ["Preface", "第一回 a\nx\n第 y\r", "第二回 b\r\nz", "第三回"]
    assert said(read(put(tmp_path, "b.txt.gz", gzip.compress(book.encode())), cut="^第.回")) == said(items)
    assert said(read(put(tmp_path, "c.txt", "\n\n第一回\n"), cut="^第.回")) == ["第一回"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_every_kind_of_line_end_separate_and_cut(tmp_path, end):
    book = end.join(["Preface", "第一回 a", "x", "<|endoftext|>", "y", " <|endoftext|> ", "第二回 b", "z", ""])
    whole = said(read(put(tmp_path, "a.txt", book)))
    assert [t.split() for t in whole] == [["Preface", "第一回", "a", "x"], ["y"], ["第二回", "b", "z"]]
    cut = said(read(put(tmp_path, "b.txt", book), cut="^第.回"))
    assert [t.split() for t in cut] == [["Preface"], ["第一回", "a", "x"], ["y"], ["第二回", "b", "z"]]
    long = put(
        tmp_path, "c.txt", end.join(["word " * 40_000, "<|endoftext|>", "word " * 300_000, "<|endoftext|>", "end"])
    )
    assert [len(t.split()) for t in said(read(long, limit=1 << 22))] == [40_000, 300_000, 1]


def test_a_number_of_more_digits_than_python_converts_harms_no_record(tmp_path):
    digits = "7" * 5000
    rows = f'{{"id": {digits}, "text": "one"}}\n{{"id": -{digits}, "text": "two"}}\n'
    items = read(put(tmp_path, "a.jsonl", rows))
    assert said(items) == ["one", "two"]
    assert said(read(put(tmp_path, "b.json", f"[{rows.splitlines()[0]}]"))) == ["one"]
    assert said(read(put(tmp_path, "c.jsonl", rows), text="{id} {text}")) == [f"{digits} one", f"-{digits} two"]
    assert said(read(put(tmp_path, "d.jsonl", f'{{"id": {digits}, "text": "one"\n'))) == ["broken_json"]


@given(
    st.lists(st.sampled_from(["a", "", " ", "b c", "<|endoftext|>", "# x", "é"]), max_size=12),
    st.integers(1, 9),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
@settings(max_examples=200, deadline=None)
def test_text_loses_nothing_but_separators_and_blank_documents(lines, chunk, end):
    data = end.join(lines).encode()
    expected, now = [], []
    for line in [*lines, "<|endoftext|>"]:
        if line == "<|endoftext|>" or line.startswith("#"):
            expected.append(end.join(now))
            now = []
        if line != "<|endoftext|>":
            now.append(line)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_text, "CHUNK", chunk)
        got = said(read_text(io.BytesIO(data), "a", DocumentBuilder("{text}", "^#", LIMITS)))
    assert [t.rstrip("\r\n") for t in got] == [t.rstrip("\r\n") for t in expected if t.strip()]


PAGE = """<html><head><title>T</title><meta charset="{}"><script>var x = 1;</script></head><body>
<nav><a href="/">Home</a><a href="/b">Elsewhere</a></nav>
<main><h1>Über Käse</h1><p>Ein Satz über den Käse &amp; das Brot.</p><p>中文</p></main></body></html>"""


@pytest.mark.parametrize("charset", ["utf-8", "gb18030", "utf-16"])
def test_pages_give_their_main_text_in_the_encoding_they_name(tmp_path, charset):
    (item,) = read(put(tmp_path, "a.html", PAGE.format(charset).encode(charset)))
    assert item.text.split("\n\n") == ["Über Käse", "Ein Satz über den Käse & das Brot.", "中文"]
    assert not item.repaired
    (item,) = read(put(tmp_path, "b.htm", PAGE.format("utf-8").encode() + b"<p>\xff\xfe</p>"))
    assert "Ein Satz über den Käse" in item.text


@given(
    st.lists(st.tuples(st.text(), st.text()).filter(lambda r: "\0" not in r[0] + r[1]), max_size=6),
    st.sampled_from([("a.csv", ",", "\n"), ("a.csv", ",", "\r\n"), ("a.tsv", "\t", "\n")]),
)
@settings(max_examples=60, deadline=None)
def test_csv_gives_the_fields_that_were_written(tmp_path_factory, rows, kind):
    name, delimiter, end = kind
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "n"), *rows])
    path = put(tmp_path_factory.mktemp("csv"), name, "\ufeff" + out.getvalue())
    items = read(path, "{text}|{n}")
    assert said(items) == [f"{a}|{b}" for a, b in rows]
    assert [i.record for i in items] == list(range(len(rows)))


def test_a_bad_csv_row_harms_no_other(tmp_path):
    lines = [
        "n,text",
        "1,one",
        "2",
        '3,"open',
        "4,four",
        "5,five,more",
        '6,"closed" early',
        '7,"a ""b""\nc"',
        "8,nul \0",
        "",
        '9,9" screen',
        '10,"open to the end',
        "11,eleven",
    ]
    data = "\n".join(lines).encode()
    items = read(put(tmp_path, "a.csv", data))
    assert said(items) == [
        "one",
        "ragged_row 1 of 2 fields",
        "broken_csv",
        "four",
        "ragged_row 3 of 2 fields",
        "broken_csv",
        'a "b"\nc',
        "binary",
        '9" screen',
        "broken_csv",
        "eleven",
    ]
    for item in items:
        if isinstance(item, Bad):
            assert data[item.offset :].decode().startswith(item.excerpt)
    long = read(put(tmp_path, "b.csv", "text\n" + "x" * 200_000 + "\ny\n" + "z" * 300_000 + "\nw\n"), limit=250_000)
    assert said(long) == ["x" * 200_000, "y", "record_too_long", "w"]  # the module's own limit is 131,072
    with pytest.raises(DataError, match=r"no column 'text'.*n, txt"):
        read(put(tmp_path, "c.csv", "n,txt\n1,2\n"))
    with pytest.raises(DataError, match="more than one column 'text'"):
        read(put(tmp_path, "d.csv", "text,text\n1,2\n"))


def test_unknown_suffix_names_the_formats(tmp_path):
    with pytest.raises(DataError, match=r"\.doc.*jsonl"):
        read(put(tmp_path, "a.doc", b"x"))
    assert said(read(put(tmp_path, "a.doc", b"x"), format="txt")) == ["x"]


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
