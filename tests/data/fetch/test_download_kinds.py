"""A file that is not what its name says never enters data/raw."""

import bz2
import gzip
import io
import logging
import lzma
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foundry.config import DataError, parse_config
from foundry.data.fetch.download import download
from foundry.data.fetch.sniff import check_kind

TEXT = b'{"text": "one"}\n'
HTML = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"


def make_zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as z:
        z.writestr("a.txt", "a")
    return buffer.getvalue()


def make_tar(mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as t:
        t.addfile(tarfile.TarInfo("a.txt"))
    return buffer.getvalue()


def make_parquet():
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"]}), buffer)
    return buffer.getvalue()


def make_arrow(new):
    buffer, table = io.BytesIO(), pa.table({"text": ["a"]})
    with new(buffer, table.schema) as w:
        w.write_table(table)
    return buffer.getvalue()


GOOD = {
    "a.jsonl": TEXT,
    "a.txt": b"plain",
    "empty.txt": b"",
    "a.md": b"# title",
    "a.csv": b"text\none\n",
    "a.html": HTML,
    "a.jsonl.gz": gzip.compress(TEXT),
    "a.jsonl.bz2": bz2.compress(TEXT),
    "empty.bz2": bz2.compress(b""),
    "a.txt.xz": lzma.compress(TEXT),
    "a.txt.zst": pa.compress(TEXT, codec="zstd", asbytes=True),
    "a.zip": make_zip(),
    "a.whl": make_zip(),
    "a.tar": make_tar(),
    "a.tgz": make_tar("w:gz"),
    "a.parquet": make_parquet(),
    "a.arrow": make_arrow(pa.ipc.new_file),
    "stream.arrow": make_arrow(pa.ipc.new_stream),
    "a.unknown": b"anything",
}


@pytest.mark.parametrize("name", GOOD)
def test_real_files_pass(tmp_path, name):
    (tmp_path / name).write_bytes(GOOD[name])
    check_kind(tmp_path / name, name, "auto")


@pytest.mark.parametrize("named", [n for n in GOOD if n not in ("a.unknown", "a.tar", "a.html")])
def test_an_html_page_is_no_other_format(tmp_path, named):
    (tmp_path / "x").write_bytes(HTML)
    with pytest.raises(DataError, match="HTML page"):
        check_kind(tmp_path / "x", named, "auto")


BINARY = ["a.jsonl.gz", "a.jsonl.bz2", "a.txt.xz", "a.txt.zst", "a.zip", "a.parquet", "a.arrow"]


@pytest.mark.parametrize("held", BINARY)
def test_binary_formats_pass_for_no_other(tmp_path, held):
    (tmp_path / "x").write_bytes(GOOD[held])
    for named in GOOD:
        if named in ("a.unknown", "a.tar") or Path(named).suffix == Path(held).suffix:
            continue
        if {Path(named).suffix, Path(held).suffix} in ({".zip", ".whl"}, {".gz", ".tgz"}):
            continue
        with pytest.raises(DataError, match="is expected"):
            check_kind(tmp_path / "x", named, "auto")


@pytest.mark.parametrize("named", [*BINARY, "a.whl"])
def test_text_and_nothing_are_no_binary_format(tmp_path, named):
    for data, seen in ((TEXT, "something else"), (b"", "nothing")):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(DataError, match=seen):
            check_kind(tmp_path / "x", named, "auto")


def test_the_format_parameter_decides_for_plain_files(tmp_path):
    (tmp_path / "x").write_bytes(HTML)
    check_kind(tmp_path / "x", "page.txt", "html")
    check_kind(tmp_path / "x", "page", "html")
    with pytest.raises(DataError, match="format: parquet"):
        check_kind(tmp_path / "x", "page", "parquet")
    (tmp_path / "x").write_bytes(gzip.compress(TEXT))
    check_kind(tmp_path / "x", "a.gz", "jsonl")


def test_an_error_page_is_refused_by_the_stage_and_the_next_run_succeeds(site, project):
    site.files["/a.jsonl.gz"] = HTML
    config = parse_config({"download": {"sources": [{"name": "s", "url": f"{site.url}/a.jsonl.gz"}]}})
    with pytest.raises(DataError, match=r"a\.jsonl\.gz .*gzip is expected.*HTML page"):
        download(config, Path("data/raw"), logging.getLogger("foundry"))
    assert not Path("data").exists() and not Path("data.lock.json").exists()
    site.files["/a.jsonl.gz"], site.etag = gzip.compress(TEXT), '"two"'
    download(config, Path("data/raw"), logging.getLogger("foundry"))
    assert gzip.decompress(Path("data/raw/s/a.jsonl.gz").read_bytes()) == TEXT
