"""Tarballs of the npm registry: found as the ordinary client finds them, pinned, never installed."""

import hashlib
import io
import json
import logging
import shutil
import tarfile
from pathlib import Path

import pytest

from foundry.config import DataError, parse_config
from foundry.data.fetch.download import download
from foundry.utils.raw_manifest import RawFile

RAW = Path("data/raw")


def make_tarball():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as t:
        for name, text in {
            "package/package.json": json.dumps({"scripts": {"install": "touch installed"}}),
            "package/data/poems.json": json.dumps([{"text": "one"}]),
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            t.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


BODY = make_tarball()
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def bare(project, tmp_path, monkeypatch):
    """A user without npm, with an empty home and environment."""
    (tmp_path / "home").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def run(url="npm:poems@1.0.0", sha256=SHA):
    source = {"name": "s", "url": url, "sha256": sha256, "member": "package/data/*.json"}
    return download(parse_config({"download": {"sources": [source]}}), RAW, logging.getLogger("foundry"))


def test_a_tarball_is_downloaded_once_and_stored_as_published(site, project, bare, monkeypatch):
    monkeypatch.setenv("npm_config_registry", site.url)
    site.files["/poems/-/poems-1.0.0.tgz"] = BODY
    assert run().sources[0].files == (RawFile(path="s/poems-1.0.0.tgz", sha256=SHA, bytes=len(BODY)),)
    assert (RAW / "s/poems-1.0.0.tgz").read_bytes() == BODY
    run()
    assert len(site.requests) == 1 and site.sent == len(BODY)
    assert not list(project.rglob("installed")) and not list(project.rglob("package.json"))


def test_a_scoped_name_is_below_its_scope(site, project, bare, monkeypatch):
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", site.url + "/npm/")
    site.files["/npm/@me/poems/-/poems-1.0.0-rc.1.tgz"] = BODY
    assert run("npm:@me/poems@1.0.0-rc.1").sources[0].files[0].path == "s/poems-1.0.0-rc.1.tgz"


@pytest.mark.parametrize("where", ["project", "home"])
def test_registry_of_an_npmrc_is_found(site, project, bare, where):
    site.files["/poems/-/poems-1.0.0.tgz"] = BODY
    folder = project if where == "project" else bare
    (folder / ".npmrc").write_text(f"; mine\nstrict-ssl=true\nregistry = {site.url}/\n")
    run()


def test_registry_of_the_scope_goes_before_the_general_one(site, project, bare):
    site.files["/scope/@me/poems/-/poems-1.0.0.tgz"] = BODY
    (bare / ".npmrc").write_text(f"registry=http://127.0.0.1:9\n@me:registry={site.url}/scope/\n")
    run("npm:@me/poems@1.0.0")


def test_without_a_registry_the_error_says_what_to_set(project, bare):
    with pytest.raises(DataError, match=r"npm_config_registry.*\.npmrc"):
        run()


def test_another_tarball_is_refused_with_both_hashes(site, project, bare, monkeypatch):
    monkeypatch.setenv("npm_config_registry", site.url)
    site.files["/poems/-/poems-1.0.0.tgz"] = BODY
    with pytest.raises(DataError) as e:
        run(sha256="0" * 64)
    assert SHA in str(e.value) and "0" * 64 in str(e.value)


@pytest.mark.skipif(not shutil.which("npm"), reason="needs npm")
def test_npm_itself_is_asked_where_it_is_installed(site, project, tmp_path, monkeypatch):
    site.files["/poems/-/poems-1.0.0.tgz"] = BODY
    (tmp_path / "user.npmrc").write_text(f"registry={site.url}\n")
    monkeypatch.delenv("npm_config_registry", raising=False)
    monkeypatch.setenv("npm_config_userconfig", str(tmp_path / "user.npmrc"))  # which only npm understands
    run()
