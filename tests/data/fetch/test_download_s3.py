"""Buckets by fsspec: a loopback server that answers what the s3 driver asks."""

import hashlib
import http.server
import json
import logging
import re
import sys
import threading
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest
import yaml

from foundry.cli import main
from foundry.config import DataError, parse_config
from foundry.data.fetch.download import download
from foundry.utils.raw_manifest import RawFile

pytest.importorskip("s3fs")  # an extra of its own

RAW = Path("data/raw")
LOCK = Path("data.lock.json")
BIG = bytes(range(256)) * 80_000  # more than one request of the driver


class Bucket(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.asked.append((self.command, self.path))
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = {k: v[0] for k, v in parse_qs(parts.query).items()}
        if bucket != "books":
            return self.reply(404, self.error("NoSuchBucket"), {})
        if not key and "list-type" in query:
            return self.reply(200, self.listing(query.get("prefix", ""), query.get("delimiter")), {})
        data = self.server.files.get(key)
        if data is None:
            return self.reply(404, self.error("NoSuchKey"), {})
        headers = {
            "ETag": f'"{hashlib.md5(data).hexdigest()}"',
            "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT",
            "Accept-Ranges": "bytes",
        }
        if m := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(m[1]), min(int(m[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            return self.reply(206, data[start : end + 1], headers)
        return self.reply(200, data, headers)

    def listing(self, prefix, delimiter):
        rows, folders = [], set()
        for key, data in sorted(self.server.files.items()):
            if not key.startswith(prefix):
                continue
            rest = key.removeprefix(prefix)
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
                continue
            rows.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>&quot;{hashlib.md5(data).hexdigest()}&quot;</ETag><Size>{len(data)}</Size>"
                "<StorageClass>STANDARD</StorageClass></Contents>"
            )
        rows += [f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders)]
        return (
            f"<ListBucketResult><Name>books</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(rows)}</KeyCount>"
            f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{''.join(rows)}</ListBucketResult>"
        ).encode()

    def error(self, code):
        return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()

    def reply(self, status, body, headers):
        self.send_response(status)
        for k, v in {"Content-Type": "application/xml", **headers, "Content-Length": str(len(body))}.items():
            self.send_header(k, v)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            self.server.sent += len(body)


@pytest.fixture
def bucket(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    server.daemon_threads = True
    server.asked, server.sent, server.files = [], 0, {}
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    for key, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "AWS_ACCESS_KEY_ID": "fake",
        "AWS_SECRET_ACCESS_KEY": "fake",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(key, value)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run(*urls, **options):
    sources = [{"name": f"s{i}" if i else "s", "url": u, **options} for i, u in enumerate(urls)]
    Path("params.yaml").write_text(yaml.safe_dump({"download": {"sources": sources}}))
    return download(parse_config({"download": {"sources": sources}}), RAW, logging.getLogger("foundry"))


def sha(data):
    return hashlib.sha256(data).hexdigest()


def test_an_object_is_transferred_completely_and_once(project, bucket):
    bucket.files["deep/big book.txt"] = BIG
    manifest = run("s3://books/deep/big book.txt")
    assert manifest.sources[0].files == (RawFile(path="s/big book.txt", sha256=sha(BIG), bytes=len(BIG)),)
    assert (RAW / "s/big book.txt").read_bytes() == BIG
    assert json.loads(LOCK.read_text())["files"] == {
        "s3://books/deep/big book.txt": {"sha256": sha(BIG), "bytes": len(BIG)}
    }
    asked = len(bucket.asked)
    assert run("s3://books/deep/big book.txt") == manifest
    assert len(bucket.asked) == asked  # recorded and stored: no request
    LOCK.unlink()
    sent = bucket.sent
    run("s3://books/deep/big book.txt")
    assert bucket.sent - sent < 10_000  # looked up, not sent again


def test_patterns_take_every_match_and_no_more(project, bucket):
    bucket.files |= {
        "x/a.txt": b"a",
        "x/b.txt": b"b",
        "x/c.md": b"c",
        "x/deep/a.txt": b"other",
        "xx/d.txt": b"d",
    }
    manifest = run("s3://books/x/*.txt", "s3://books/x/**/*.txt")
    got = [[f.path for f in s.files] for s in manifest.sources]
    assert got == [["s/a.txt", "s/b.txt"], ["s1/a.txt", "s1/b.txt", "s1/deep/a.txt"]]
    assert (RAW / "s1/deep/a.txt").read_bytes() == b"other"
    assert sorted(json.loads(LOCK.read_text())["files"]) == [
        f"s3://books/x/{n}" for n in ("a.txt", "b.txt", "deep/a.txt")
    ]


def test_a_pattern_that_matches_other_files_than_before_is_refused_until_relocked(project, bucket, capsys):
    bucket.files |= {"x/a.txt": b"a", "x/b.txt": b"b"}
    run("s3://books/x/*.txt")
    del bucket.files["x/a.txt"]
    bucket.files["x/c.txt"] = b"c"
    with pytest.raises(DataError, match=r"1 new \(s3://books/x/c.txt\); 1 gone \(s3://books/x/a.txt\).*relock s"):
        run("s3://books/x/*.txt")
    main(["relock", "s"])
    assert "forgot s3://books/x/a.txt" in capsys.readouterr().out
    assert [f.path for f in run("s3://books/x/*.txt").sources[0].files] == ["s/b.txt", "s/c.txt"]


def test_other_bytes_are_refused(project, bucket):
    bucket.files["a.txt"] = b"new"
    LOCK.write_text(json.dumps({"version": 1, "files": {"s3://books/a.txt": {"sha256": sha(b"old"), "bytes": 3}}}))
    with pytest.raises(DataError) as e:
        run("s3://books/a.txt")
    assert sha(b"old") in str(e.value) and sha(b"new") in str(e.value) and "relock" in str(e.value)
    with pytest.raises(DataError, match=r"params\.yaml"):
        run("s3://books/a.txt", sha256=sha(b"older"))
    assert run("s3://books/a.txt", sha256=sha(b"new"))


def test_what_is_missing_is_reported(project, bucket):
    bucket.files["x/a.txt"] = b"a"
    with pytest.raises(DataError, match=r"s3://books/x/b.txt does not exist"):
        run("s3://books/x/b.txt")
    with pytest.raises(DataError, match=r"x/\*\.md matches no file.*contains a\.txt"):
        run("s3://books/x/*.md")
    with pytest.raises(DataError, match="is a folder"):
        run("s3://books/x")
    with pytest.raises(DataError, match="s3://nowhere"):
        run("s3://nowhere/a.txt")
    assert not RAW.exists()


@pytest.mark.parametrize("key", ["x/../../escaped.txt", "x//../escaped.txt", "x/./a.txt", "x/a\\..\\b.txt"])
def test_names_that_lead_out_of_the_folder_are_refused(project, bucket, key):
    bucket.files |= {"x/a.txt": b"a", key: b"evil"}
    with pytest.raises(DataError, match="leads out of its folder"):
        run("s3://books/x/**")
    assert not list(project.parent.rglob("escaped.txt")) and not RAW.exists()


@pytest.mark.parametrize(
    "scheme, driver, words",
    [
        ("s3", "s3fs", r"pip install s3fs \(or foundry-lm\[s3\]\)"),
        ("gs", "gcsfs", "pip install gcsfs"),
        ("abfs", "adlfs", "pip install adlfs"),
    ],
)
def test_a_missing_driver_is_named_with_its_package(project, monkeypatch, scheme, driver, words):
    monkeypatch.setitem(sys.modules, driver, None)  # as python does for a module that cannot be imported
    loaded = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(loaded, scheme, raising=False)
    with pytest.raises(DataError, match=words):
        run(f"{scheme}://books/a.txt")
