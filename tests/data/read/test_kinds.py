"""The table of formats: complete, unambiguous, and the only place that a new format is added to besides its reader."""

from collections import Counter
from typing import get_args, get_type_hints

import pytest
from raw_files import raw_source
from reading import put, read, said

from foundry.config import DataError, Source, parse_config
from foundry.config import formats as table
from foundry.data.read import readers, units
from foundry.data.read.kinds import archive_of, begins_as, binary_kind, format_by_content, format_of, outer_kind
from foundry.data.read.readers import READERS, Range
from foundry.data.read.records import Document
from foundry.data.read.streams import Limits

KINDS = (*table.FORMATS, *table.COMPRESSIONS, *table.ARCHIVES, *table.UNREADABLE)


def test_every_format_has_a_reader_and_is_accepted_by_the_parameter():
    assert set(READERS) == set(table.FORMAT_NAMES)
    assert get_args(get_type_hints(Source)["format"]) == ("auto", *table.FORMAT_NAMES)
    source = {"name": "s", "url": "file:corpus/*", "format": "docx"}
    with pytest.raises(Exception, match=r"'jsonl'.*'parquet'"):
        parse_config({"download": {"sources": [source]}})


def test_no_name_and_no_suffix_occurs_twice():
    assert [n for n, times in Counter(k.name for k in KINDS).items() if times > 1] == []
    suffixes = [*(s for k in KINDS for s in k.suffixes), *table.COMPRESSED_TAR]
    assert [s for s, times in Counter(suffixes).items() if times > 1] == [] and all(s == s.lower() for s in suffixes)


@pytest.mark.parametrize(
    "name, format, archive, outer",
    [
        ("a.TXT", "txt", None, "txt"),
        ("a.jsonl.gz", "jsonl", None, "gzip"),
        ("a.tsv.zst", "csv", None, "zstd"),
        ("a.tar", None, ("tar", None), "tar"),
        ("a.tar.xz", None, ("tar", "xz"), "xz"),
        ("a.tgz", None, ("tar", "gzip"), "gzip"),
        ("a.whl", None, ("zip", None), "zip"),
        ("a.zip.gz", None, None, "gzip"),
        ("a", None, None, None),
    ],
)
def test_a_name_shows_format_archive_and_outermost_layer(name, format, archive, outer):
    assert (format_of(name), archive_of(name), outer_kind(name)) == (format, archive, outer)


@pytest.mark.parametrize(
    "head, kind, format",
    [
        (b"PAR1\x15\0", "parquet", "parquet"),
        (b"PAR1 is where cars park", None, "parquet"),
        (b"ARROW1\0\0", "arrow", "arrow"),
        (b"\xff\xff\xff\xff\x10\0", "arrow", "arrow"),
        (b"GIF89a\x01\0", "image (GIF)", None),
        (b"GIF89a is a format", None, None),
        (b"BZh91AY&SY", "bzip2", None),
        (b"BZh51AY&SY", "bzip2", None),
        (b"\x50\x2a\x4d\x18", "zstd", None),
        (b"PK\x05\x06", "zip", None),
        (b"SQLite format 3\0", "database (SQLite)", None),
        (b'\xef\xbb\xbf {"a": 1}\n{', None, "jsonl"),
        (b'{"a":\n1,', None, "json"),
        (b" [1", None, "json"),
        (b"\n<!DOCTYPE HTML>", None, "html"),
        (b"plain", None, None),
        (b"", None, None),
    ],
)
def test_first_bytes_show_what_is_binary_and_which_formats_are_unmistakable(head, kind, format):
    assert (binary_kind(head), format_by_content(head)) == (kind, format)
    assert kind is None or begins_as(head, kind)


def test_a_reader_says_by_itself_how_its_files_are_divided(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "READERS", {})
    monkeypatch.setattr(units, "READERS", readers.READERS)

    @readers.reads("letters", divide=lambda path, shown, unit_bytes, limits: [Range(0, 2), Range(2, None)])
    def read_letters(stream, shown, builder, start=0, stop=None):
        taken = stream.read(100)[start and 1 :][: stop and stop - start]  # the stream begins one byte before `start`
        yield from (Document(shown, i, chr(letter), False) for i, letter in enumerate(taken))

    path = put(tmp_path, "a.letters", b"abc")
    assert said(read(path, format="letters")) == ["a", "b", "c"]
    plain, foreign = (raw_source(path.name, format="letters", encoding=e) for e in (None, "cp1251"))
    assert [(u.start, u.stop) for u in units.plan_units(tmp_path, [plain], 10, Limits())] == [(0, 2), (2, None)]
    assert [(u.start, u.stop) for u in units.plan_units(tmp_path, [foreign], 10, Limits())] == [(0, None)]


def test_content_of_a_kind_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"a\.txt contains image \(PNG\) data"):
        read(put(tmp_path, "a.txt", b"\x89PNG\r\n"))
