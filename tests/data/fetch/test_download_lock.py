"""data.lock.json: recorded at the first download, enforced later, removed on demand; and mirrors."""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import yaml

from foundry.cli import main
from foundry.config import ConfigError, DataError, parse_config
from foundry.data.fetch.download import download

RAW = Path("data/raw")
LOCK = Path("data.lock.json")
LOG = logging.getLogger("foundry")
OLD, NEW = b"the old text\n", b"another text, just as good\n"


def sha(data):
    return hashlib.sha256(data).hexdigest()


def run(*sources):
    return download(parse_config({"download": {"sources": list(sources)}}), RAW, LOG)


def forget_store(project):
    shutil.rmtree(project / ".foundry")


def test_the_first_download_is_recorded_and_a_rerun_requests_nothing(site, project):
    site.files |= {"/a.txt": OLD, "/b.txt": NEW}
    sources = [{"name": n, "url": f"{site.url}/{n}.txt"} for n in ("b", "a")]
    manifest = run(*sources)
    text = LOCK.read_text()
    assert json.loads(text) == {
        "version": 1,
        "files": {
            f"{site.url}/a.txt": {"sha256": sha(OLD), "bytes": len(OLD)},
            f"{site.url}/b.txt": {"sha256": sha(NEW), "bytes": len(NEW)},
        },
    }
    assert list(json.loads(text)["files"]) == sorted(json.loads(text)["files"])
    before, sent, written = len(site.requests), site.sent, os.stat(LOCK).st_mtime_ns
    assert run(*sources) == manifest
    assert (len(site.requests), site.sent) == (before, sent) == (2, len(OLD) + len(NEW))
    assert os.stat(LOCK).st_mtime_ns == written  # not written again


def test_pinned_and_local_files_are_not_in_the_lock_file(site, project):
    site.files["/a.txt"] = OLD
    (project / "corpus").mkdir()
    (project / "corpus/mine.txt").write_bytes(NEW)
    run({"name": "a", "url": f"{site.url}/a.txt", "sha256": sha(OLD)}, {"name": "m", "url": "file:corpus/mine.txt"})
    assert not LOCK.exists()


def test_other_bytes_are_refused_until_relocked(site, project, capsys):
    site.files["/a.txt"] = OLD
    source = {"name": "news", "url": f"{site.url}/a.txt"}
    run(source)
    recorded = LOCK.read_bytes()
    site.files["/a.txt"], site.etag = NEW, '"two"'
    assert run(source).sources[0].files[0].sha256 == sha(OLD)  # the store has what was recorded
    forget_store(project)
    with pytest.raises(DataError) as e:
        run(source)
    for word in (sha(OLD), sha(NEW), "data.lock.json", "foundry relock news"):
        assert word in str(e.value)
    assert LOCK.read_bytes() == recorded
    (project / "params.yaml").write_text(yaml.safe_dump({"download": {"sources": [source]}}))
    main(["relock", "news"])
    assert source["url"] in capsys.readouterr().out
    assert json.loads(LOCK.read_text())["files"] == {}
    assert run(source).sources[0].files[0].sha256 == sha(NEW)
    assert json.loads(LOCK.read_text())["files"][source["url"]]["sha256"] == sha(NEW)


def test_relock_removes_only_the_named_sources(site, project, capsys):
    site.files |= {"/a.txt": OLD, "/b.txt": NEW}
    sources = [{"name": n, "url": f"{site.url}/{n}.txt"} for n in ("a", "b")]
    (project / "params.yaml").write_text(yaml.safe_dump({"download": {"sources": sources}}))
    run(*sources)
    with pytest.raises(SystemExit, match="1"):
        main(["relock", "a", "c"])
    assert "no such source: c" in capsys.readouterr().err and len(json.loads(LOCK.read_text())["files"]) == 2
    main(["relock", "a"])
    assert list(json.loads(LOCK.read_text())["files"]) == [sources[1]["url"]]
    main(["relock", "a"])
    assert "has no record of a" in capsys.readouterr().out


def test_nothing_is_recorded_unless_all_succeed_and_what_came_is_kept(site, project):
    site.files["/a.txt"] = OLD
    sources = [{"name": n, "url": f"{site.url}/{n}.txt"} for n in ("a", "b")]
    with pytest.raises(DataError, match=r"1 of 2 .*\n.*b: "):
        run(*sources)
    assert not LOCK.exists() and not RAW.exists()
    site.files["/b.txt"] = NEW
    sent = site.sent
    run(*sources)
    assert site.sent - sent == len(NEW)  # a was requested and not sent again
    assert len(json.loads(LOCK.read_text())["files"]) == 2


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "\xff",
        "[]",
        '{"version": 2, "files": {}}',
        '{"version": 1}',
        '{"version": 1, "files": []}',
        '{"version": 1, "files": {"x": {"sha256": "zz", "bytes": 1}}}',
        '{"version": 1, "files": {"x": {"sha256": "%s", "bytes": -1}}}' % ("0" * 64),
        '<<<<<<< ours\n{"version": 1, "files": {}}',
    ],
)
def test_a_damaged_lock_file_is_an_error_before_any_work(site, project, text):
    site.files["/a.txt"] = OLD
    LOCK.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"data\.lock\.json .*restore it"):
        run({"name": "a", "url": f"{site.url}/a.txt"})
    assert site.requests == [] and LOCK.read_bytes() == text.encode("latin-1")


def test_mirrors_are_tried_in_order_and_leave_no_trace_in_the_result(site, project, caplog):
    site.files["/main/a.txt"] = OLD
    urls = [f"{site.url}/{p}" for p in ("main/a.txt", "gone/b.txt", "wrong/c.txt", "good/d.txt")]
    source = {"name": "s", "url": urls[0], "mirrors": urls[1:], "sha256": sha(OLD)}
    run(source)
    expected = (RAW / "manifest.json").read_bytes()
    forget_store(project)
    del site.files["/main/a.txt"]
    site.files |= {"/wrong/c.txt": NEW, "/good/d.txt": OLD}
    site.requests.clear()
    logger = logging.getLogger("foundry")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger="foundry"):
            run(source)
    finally:
        logger.removeHandler(caplog.handler)
    assert [p for p, _ in site.requests] == ["/main/a.txt", "/gone/b.txt", "/wrong/c.txt", "/good/d.txt"]
    assert (RAW / "manifest.json").read_bytes() == expected and (RAW / "s/a.txt").read_bytes() == OLD
    assert f"mirror {urls[3]}" in caplog.text
    assert run(source) and len(site.requests) == 4  # from the store


def test_a_vendored_copy_serves_where_all_else_fails_if_it_is_the_same(site, project):
    (project / "corpus").mkdir()
    (project / "corpus/copy.txt").write_bytes(NEW)
    source = {"name": "s", "url": f"{site.url}/a.txt", "mirrors": ["file:corpus/copy.txt"], "sha256": sha(OLD)}
    with pytest.raises(DataError, match=rf"404(.|\n)*mirrors: file:corpus/copy.txt is not the file .*{sha(NEW)}"):
        run(source)
    (project / "corpus/copy.txt").write_bytes(OLD)
    run(source)
    assert (RAW / "s/a.txt").read_bytes() == OLD


def test_a_mirror_of_many_files_is_refused_before_any_work(project):
    source = {"name": "s", "url": "https://corpus.invalid/a.txt", "mirrors": ["file:corpus/*.txt"], "sha256": "0" * 64}
    with pytest.raises(ConfigError, match="may name several"):
        run(source)
