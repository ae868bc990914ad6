"""Every preset is valid, and one of each kind runs against a local server that serves the same format."""

import hashlib
import http.server
import io
import json
import logging
import re
import tarfile
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tqdm import tqdm

from foundry.config import DataError, UnreachableError, parse_config
from foundry.data.fetch.download import download
from foundry.data.fetch.hub import fetch_hub
from foundry.data.fetch.sources import Hub, parse_source
from foundry.data.fetch.store import Transfers
from foundry.data.read.template import Template
from foundry.utils.raw_manifest import read_manifest, verified

PRESETS = sorted((Path(__file__).parents[3] / "presets").glob("*.yaml"))
RAW = Path("data/raw")


def load(name):
    return yaml.safe_load(next(p for p in PRESETS if p.stem == name).read_text(encoding="utf-8"))


def run(values):
    download(parse_config(values), RAW, logging.getLogger("foundry"))
    sources = read_manifest(RAW).sources
    for s in sources:
        for f in s.files:
            verified(RAW, f)
    return sources


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_every_preset_is_valid(path):
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = parse_config(values)
    assert "sources" in values["download"] and "weights" in values["shard"]
    for s in config.download.sources:
        assert parse_source(s) and Template(s.text).fields
        if path.stem != "book":  # whose licence only the user knows
            assert s.license != "unknown" and s.attribution and s.lang != "und"


def test_the_readme_lists_every_preset():
    readme = (PRESETS[0].parent / "README.md").read_text(encoding="utf-8")
    assert len(PRESETS) >= 7 and all(f"`{p.name}`" in readme for p in PRESETS)


HUB_PRESETS = {  # the files of each data set as the hub lists them, the columns of its tables
    "tinystories": (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], ["text"]),
    "wikitext-103": (["wikitext-103-raw-v1/train-00000-of-00002.parquet"], ["text"]),
    "fineweb-edu": (["sample/10BT/000_00000.parquet"], ["text", "id", "dump", "url", "language", "score"]),
    "wikipedia-zh": (["20231101.zh/train-00000-of-00006.parquet"], ["id", "url", "title", "text"]),
}


def make_parquet(columns, rows=50):
    buffer = io.BytesIO()
    pq.write_table(pa.table({c: [f"{c} {i}, once upon a time" for i in range(rows)] for c in columns}), buffer)
    return buffer.getvalue()


class HubServer(http.server.BaseHTTPRequestHandler):
    """A hub's tree and resolve routes for any data set, at the revision main."""

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        files, path = self.server.files, self.path.split("?")[0]
        if path.startswith("/api/datasets/"):
            tree = [{"type": "file", "path": p, "oid": "0" * 40, "size": len(b)} for p, b in files.items()]
            return self.reply(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        body = files.get(path.partition("/resolve/main/")[2])
        if body is None:
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        if self.command == "GET":
            self.server.served.append(path)
        return self.reply(200, body, {"X-Repo-Commit": "a" * 40, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'})

    def reply(self, status, body, headers):
        self.send_response(status)
        for k, v in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(k, v)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubServer)
    server.files, server.served = {}, []
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # the tests' own setting, read at import
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", HUB_PRESETS)
def test_presets_of_the_hub(project, hub, name):
    paths, columns = HUB_PRESETS[name]
    hub.files = {p: make_parquet(columns, 50 + i) for i, p in enumerate(paths)}
    wanted = dict(hub.files)
    hub.files |= {"README.md": b"card", "validation.parquet": make_parquet(["other"])}
    (source,) = run(load(name))
    assert [f.path for f in source.files] == [f"{name}/{p}" for p in paths]
    assert [f.sha256 for f in source.files] == [hashlib.sha256(b).hexdigest() for b in wanted.values()]
    table = pq.read_table(RAW / source.files[0].path)
    assert Template(source.text).render(table.to_pylist()[0])
    assert len(json.loads(Path("data.lock.json").read_text())["files"]) == len(paths)
    served = len(hub.served)
    run(load(name))
    assert len(hub.served) == served == len(paths)  # recorded and stored: no file is sent again


def test_the_bar_counts_the_bytes_of_the_hub(project, hub):
    hub.files = {f"data/train-{i}.parquet": make_parquet(["text"], 50 + i) for i in range(8)}
    with tqdm(file=io.StringIO()) as bar:
        address = Hub("me/set", "main", "data/*.parquet")
        files = fetch_hub(address, project / "store", lambda a: None, lambda a: None, Transfers(bar, 3))
        assert bar.n == bar.total == sum(map(len, hub.files.values()))
    assert [f.name for f in files] == sorted(hub.files)
    assert [f.path.read_bytes() for f in files] == list(hub.files.values())


def test_a_session_of_the_hub_that_another_thread_closed_is_a_hub_that_cannot_be_reached(project, monkeypatch):
    """After a failed connection the hub's client closes the session that all threads share."""
    monkeypatch.setattr("huggingface_hub.utils._http.get_session", lambda: None)
    with tqdm(file=io.StringIO()) as bar, pytest.raises(UnreachableError, match="HF_ENDPOINT"):
        address = Hub("me/set", "main", "data/*.parquet")
        fetch_hub(address, project / "store", lambda a: None, lambda a: None, Transfers(bar, 3))


def test_a_branch_of_the_hub_that_moves_on_is_refused(project, hub):
    paths, columns = HUB_PRESETS["fineweb-edu"]
    hub.files = {paths[0]: make_parquet(columns)}
    run(load("fineweb-edu"))
    (project / ".foundry/downloads/hub").rename(project / "elsewhere")
    hub.files = {paths[0]: make_parquet(columns, 51)}
    with pytest.raises(DataError, match=r"data\.lock\.json.*foundry relock fineweb-edu"):
        run(load("fineweb-edu"))


def test_presets_of_the_npm_registry(project, site, monkeypatch):
    buffer = io.BytesIO()
    poem = {"author": "李白", "title": "靜夜思", "rhythmic": "菩萨蛮", "paragraphs": ["牀前明月光", "疑是地上霜"]}
    with tarfile.open(fileobj=buffer, mode="w:gz") as t:
        for name in ("quantangshi/poet.tang.0.json", "songci/ci.song.0.json"):
            data = json.dumps([poem], ensure_ascii=False).encode()
            info = tarfile.TarInfo(f"package/dist/{name}")
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    site.files["/chinese-poetry/-/chinese-poetry-2.0.1.tgz"] = buffer.getvalue()
    monkeypatch.setenv("npm_config_registry", site.url)
    values = load("chinese-poetry")
    for s in values["download"]["sources"]:
        s["sha256"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    sources = run(values)
    assert len(site.requests) == 1  # two sources, one tarball
    assert [Template(s.text).render(poem).split("\n")[0] for s in sources] == ["靜夜思", "菩萨蛮"]
    assert {s.files[0].path.split("/")[1] for s in sources} == {"chinese-poetry-2.0.1.tgz"}


def test_preset_of_a_book(project):
    (project / "corpus").mkdir()
    lines = ["红楼梦", "第一回 甄士隐梦幻识通灵", "此开卷第一回也。", "　　第一百二十回 归结", "第一个回合"]
    (project / "corpus/book.txt").write_text("\n".join(lines), encoding="utf-8")
    (source,) = run(load("book"))
    assert [bool(re.match(source.cut, x)) for x in lines] == [False, True, False, True, False]
    assert not Path("data.lock.json").exists()
