"""Wrong input, each with its outcome: repaired and counted, quarantined with its place, or an error with a remedy."""

import gzip
import json
import lzma
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cleaning import MINE, OUT, quarantined, refused, run, texts
from reading import put, read, said

from foundry.config import DataError
from foundry.data.read.records import Document
from foundry.data.read.streams import Limits

OUTCOMES = {
    "invalid UTF-8": (b'{"text": "caf\xe9"}', "café"),
    "NUL in a string": (b'{"text": "a\\u0000b"}', "a\0b"),
    "raw NUL": (b'{"text": "a\0b"}', "binary"),
    "lone surrogate": (b'{"text": "a\\ud800b"}', "a\ufffdb"),
    "surrogate pair": (b'{"text": "\\ud83d\\ude00"}', "😀"),
    "truncated line": (b'{"text": "a', "broken_json"),
    "two objects": (b'{"text": "a"}{"text": "b"}', "broken_json"),
    "NaN beside": (b'{"text": "a", "score": NaN}', "a"),
    "duplicate key": (b'{"text": "a", "text": "b"}', "duplicate_key"),
    "huge number": (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "a"),
    "too deep": (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too_deep"),
    "null": (b'{"text": null}', "missing_field text"),
    "number": (b'{"text": {"a": 1}}', "not_text text"),
    "RTL, emoji, joiners": ('{"text": "שלום \u200f👩\u200d🔬 مرحبا"}'.encode(), "שלום \u200f👩\u200d🔬 مرحبا"),
    "line separators inside": ('{"text": "a\u2028b\u0085c\\u000bd"}'.encode(), "a\u2028b\u0085c\vd"),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_one_wrong_line_between_two_good_ones(tmp_path, name):
    line, outcome = OUTCOMES[name]
    path = put(tmp_path, "a.jsonl", b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    items = read(path)
    assert said(items) == ["before", outcome, "after"]
    wrong = items[1]
    assert wrong.record == 1 and (isinstance(wrong, Document) or wrong.offset == 19)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be-bom", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "txt", "json"])
def test_byte_order_marks_give_the_encoding(tmp_path, encoding, suffix):
    text = {
        "jsonl": '{"text": "Füße 中文 😀"}\n{"text": "two"}\n',
        "csv": 'text\n"Füße 中文 😀"\ntwo\n',
        "txt": "Füße 中文 😀\n<|endoftext|>\ntwo",
        "json": '["Füße 中文 😀", "two"]',
    }[suffix]
    data = ("\ufeff" + text).encode("utf-16-be") if encoding == "utf-16-be-bom" else text.encode(encoding)
    assert said(read(put(tmp_path, f"a.{suffix}", data), unit_bytes=8)) == ["Füße 中文 😀", "two"]


def test_mixed_newlines(tmp_path):
    assert said(read(put(tmp_path, "a.jsonl", b'{"text": "a"}\r\n{"text": "b"}\n\r\n{"text": "c"}'))) == ["a", "b", "c"]
    assert said(read(put(tmp_path, "a.csv", b'text\r\na\nb\r\n"c\r\nd"\r\n'))) == ["a", "b", "c\r\nd"]


def test_wrongly_typed_or_missing_columns_are_reported(tmp_path):
    pq.write_table(pa.table({"text": [1, 2], "body": ["a", "b"], "n": [1.5, 2.5]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"'text' is int64; its columns are text \(int64\), body \(string\)"):
        read(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column 'content'; its columns are text \(int64\), body"):
        read(tmp_path / "a.parquet", text="{content}")
    assert said(read(tmp_path / "a.parquet", text="{text}: {body}")) == ["1: a", "2: b"]
    pq.write_table(pa.table({"text": ["a", None, ""]}), tmp_path / "b.parquet")
    assert said(read(tmp_path / "b.parquet")) == ["a", "missing_field text", ""]
    with pa.ipc.new_file(tmp_path / "c.arrow", pa.schema([("x", pa.int64())])):
        pass
    with pytest.raises(DataError, match="no column 'text'"):
        read(tmp_path / "c.arrow")
    for name, data in (
        ("d.parquet", b"<html>not found</html>"),
        ("d.arrow", b"ARROW1 but no more"),
        ("e.arrow", b"x" * 99),
    ):
        with pytest.raises(DataError, match="fetch or make it again"):
            read(put(tmp_path, name, data))


PAGE = """<html><head><title>T</title><meta charset="utf-8"><link rel="canonical" href="https://h.example/p">
<script>var x = 1</script></head>
<body><nav><a href="/">Home</a><a href="/b">About</a></nav><main><article><h1>The river</h1><p>Rivers are long, and this
paragraph says so with enough words to be taken for running text &amp; not for a menu.</p></article></main>
<footer>Copyright</footer></body></html>"""


def test_web_page_is_its_running_text(tmp_path):
    (item,) = read(put(tmp_path, "a.html", PAGE))
    assert "The river" in item.text and "running text & not for a menu" in item.text
    assert "var x" not in item.text and "Home" not in item.text and "Copyright" not in item.text
    assert item.url == "https://h.example/p"
    (latin,) = read(
        put(tmp_path, "b.html", "<html><body><p>Füße und Straße im Text</p></body></html>".encode("latin-1"))
    )
    assert "Füße und Straße" in latin.text
    assert said(read(put(tmp_path, "c.html", b"\0" * 100))) == ["binary"]
    assert said(read(put(tmp_path, "d.html", b"<p>" + b"x" * 5000), limits=Limits(record=1024))) == ["record_too_long"]


def test_book_is_cut_into_chapters(tmp_path):
    book = "紅樓夢\n\n第一回 甄士隱\n\n此開卷第一回也。\n\n第二回 賈夫人\n却說封肅。\n"
    items = read(put(tmp_path, "a.txt", book), cut="^第[一二三四五六七八九十百]+回")
    assert [t.strip() for t in said(items)] == [
        "紅樓夢",
        "第一回 甄士隱\n\n此開卷第一回也。",
        "第二回 賈夫人\n却說封肅。",
    ]
    assert [i.record for i in items] == [0, 1, 2]


def test_one_document_of_100_mb_is_quarantined_and_the_rest_stays(project, story):
    (project / "corpus").mkdir()
    with open(project / "corpus/a.jsonl", "w") as f:
        for i in range(100):
            f.write(json.dumps({"text": story(i)}) + "\n")
        f.write('{"text": "' + "word " * (20 << 20) + '"}\n')
    report = run(MINE)
    assert report["records"] == {**report["records"], "in": 101, "quarantined": 1, "reasons": {"record_too_long": 1}}
    (place,) = quarantined()
    assert place["record"] == 100 and place["offset"] > 10_000 and len(place["excerpt"]) == 160
    assert report["documents"]["kept"] == 100


def test_ids_of_the_records_may_repeat(project, story, write_jsonl):
    rows = "".join(json.dumps({"id": 7, "text": story(i)}) + "\n" for i in range(100))
    (project / "corpus").mkdir()
    (project / "corpus/a.jsonl").write_text(rows)
    assert run(MINE)["documents"]["kept"] == 100 and len(set(texts())) == 100


def test_a_corpus_of_one_document_is_refused(project, story, write_jsonl):
    write_jsonl(project / "corpus/a.jsonl", [story(1)])
    assert "1 of 1 documents were kept" in refused("no document for ", MINE)


def test_a_wrong_suffix_is_reported(project, story):
    (project / "corpus").mkdir()
    for name, source in (("a.parquet", MINE), ("a.jsonl.gz", MINE), ("a.zip", MINE), ("a.tar.xz", MINE)):
        (project / f"corpus/{name}").write_text("<html>404 not found</html>")
        with pytest.raises(DataError, match="a\\."):
            run({**source, "url": f"file:corpus/{name}"})
        (project / f"corpus/{name}").unlink()
    assert not OUT.exists()


def test_a_missing_permission_is_reported(project, story, write_jsonl, monkeypatch):
    write_jsonl(project / "corpus/a.jsonl", [story(i) for i in range(50)])
    monkeypatch.setattr("os.access", lambda *a, **k: False)  # root may read everything
    with pytest.raises(DataError, match="no permission to read"):
        run(MINE)


def test_full_disk_in_the_work_folder_is_reported_and_nothing_is_left(project, story, write_jsonl, monkeypatch):
    """An injected ENOSPC where a unit's documents are written: an error that names folder and space; the next run
    succeeds."""
    from foundry.config import DiskError
    from foundry.utils import files

    write_jsonl(project / "corpus/a.jsonl", [story(i) for i in range(100)])

    def full(dir, prefix, suffix):
        """A file whose device takes nothing, as /dev/full does."""
        name = str(dir / f"{prefix}{suffix}")
        open(name, "x").close()
        return os.open("/dev/full" if "arrow" in prefix else name, os.O_WRONLY), name

    with monkeypatch.context() as m:
        m.setattr(files.tempfile, "mkstemp", full)
        with pytest.raises(DiskError, match=r"cannot write in .*MiB are free"):
            run(MINE)
    assert not OUT.exists() and not list((project / ".foundry").rglob("*.tmp"))
    assert run(MINE)["documents"]["kept"] == 100


NAMES = [
    "line\nend.txt",
    "tab\t.txt",
    "esc\x1b.txt",
    " space .txt",
    "-dash.txt",
    "back\\slash.txt",
    "quote\"'.txt",
    "*.txt",
    "[a].txt",
]
NOTHING = dict.fromkeys([f"empty.{suffix}" for suffix in ("txt", "jsonl", "json", "csv", "html")], b"") | {
    "space.txt": b"\n \r\n",
    "mark.jsonl": b"\xff\xfe",
    "packed.txt.gz": gzip.compress(b""),
    "packed.jsonl.xz": lzma.compress(b""),
    "list.json": b"[]",
    "header.csv": b"text\n",
}
ONE_BYTE = {"a.txt": b"x", "b.txt": b"\xff", "c.md": b"#"}
BAD = {"d.jsonl": b"{", "e.txt": b"\0", "f.csv": b'text\n"x'}


def test_odd_names_and_files_of_almost_nothing_are_accounted_for(project, story):
    """Records in = kept + dropped + quarantined, in total and for each file, whatever a file contains or is called."""
    folder = project / "corpus"
    folder.mkdir()
    for i, name in enumerate(NAMES):
        (folder / name).write_text("\n<|endoftext|>\n".join(story(100 * i + k) for k in range(12)))
    for name, data in (NOTHING | ONE_BYTE | BAD).items():
        (folder / name).write_bytes(data)
    report = run({"name": "s", "url": "file:corpus"}, max_bad_fraction=1.0, val_fraction=0.2, test_fraction=0.2)
    documents, records = report["documents"], report["records"]
    assert documents["kept"] == 12 * len(NAMES) and records["quarantined"] == len(BAD) == len(quarantined())
    assert documents["dropped"]["too_short"] == len(ONE_BYTE) == sum(documents["dropped"].values())
    assert records["in"] == documents["kept"] + len(ONE_BYTE) + len(BAD)
    assert {q["file"] for q in quarantined()} == {f"s/{name}" for name in BAD}


@pytest.mark.parametrize("name", ["a.zip", "a.parquet", "a.gz", "a.txt.gz", "a.tar", "a.tgz", "a.arrow"])
@pytest.mark.parametrize("size", [0, 1, 12])
def test_what_is_left_of_a_binary_file_is_refused_with_its_name(project, name, size):
    """A container that was cut near its beginning is never taken for an empty corpus."""
    whole = {
        ".zip": b"PK\x03\x04",
        ".parquet": b"PAR1",
        ".gz": b"\x1f\x8b\x08",
        ".tgz": b"\x1f\x8b\x08",
        ".arrow": b"ARROW1\0\0",
    }
    (project / "corpus").mkdir()
    (project / "corpus" / name).write_bytes((whole.get(Path(name).suffix, b"") + bytes(12))[:size])
    assert f"{name} " in refused(name, {"name": "s", "url": f"file:corpus/{name}"})
