"""`foundry data`: the list says what each preset is, and a download has the bytes that its hash names, or fails."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from foundry import cli
from foundry.config import ConfigError
from foundry.data.fetch.presets import FOLDER, read_presets
from foundry.utils.raw_manifest import read_manifest, verified


def run(capsys, *args):
    code = 0
    try:
        cli.main(["data", *args])
    except SystemExit as e:
        code = e.code or 0
    return code, *capsys.readouterr()


@pytest.fixture
def poems(site, monkeypatch):
    """The registry's tarball of one preset, with other bytes than the published ones; gives a way to pin them."""
    data = gzip.compress(b"poems" * 1000, mtime=0)
    site.files["/chinese-poetry/-/chinese-poetry-2.0.1.tgz"] = data
    monkeypatch.setenv("npm_config_registry", site.url)
    return data


def presets_with(folder, sha256):
    """A copy of the presets in which the hash of the poems is another one."""
    folder.mkdir()
    for path in (p for p in FOLDER.iterdir() if p.suffix in (".yaml", ".toml")):
        text = path.read_text(encoding="utf-8")
        if path.stem == "chinese-poetry":
            text = text.replace("25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86", sha256)
        (folder / path.name).write_text(text, encoding="utf-8")
    return folder


def use(monkeypatch, folder):
    monkeypatch.setattr("foundry.data.fetch.presets.read_presets", lambda: read_presets(folder))


def test_the_list_has_each_preset_with_size_language_licence_address_and_hash(capsys):
    code, text, _ = run(capsys, "list")
    presets = read_presets()
    assert code == 0 and len(presets) >= 7
    for p in presets:
        (line,) = (x for x in text.splitlines() if x.startswith(f"{p.name} "))
        assert p.title in line and all(x in line for x in (*p.languages, *p.licences))
        assert all(s.url in text and (s.sha256 or "data.lock.json") in text for s in p.sources)
    assert "5.96 MB" in text and "about 991 MB" in text and "size unknown" in text and "your file" in text
    assert [p["name"] for p in json.loads(run(capsys, "list", "--json")[1])] == [p.name for p in presets]


def test_measured_sizes_are_those_of_presets_whose_files_are_pinned():
    for p in read_presets():
        assert p.pinned == p.measured, p.name
        assert p.local or p.bytes is None or p.bytes > 1e6


def test_a_download_has_the_bytes_of_its_hash_and_is_kept_for_the_pipeline(
    project, site, poems, monkeypatch, capsys, tmp_path
):
    use(monkeypatch, presets_with(tmp_path / "presets", hashlib.sha256(poems).hexdigest()))
    code, text, errors = run(capsys, "get", "chinese-poetry")
    assert code == 0, errors
    out = Path("data/sets/chinese-poetry")
    for s in read_manifest(out).sources:
        assert [verified(out, f).read_bytes() for f in s.files] == [poems]
    assert hashlib.sha256(poems).hexdigest() in text and "licence: MIT" in text
    requests = len(site.requests)
    code, _, errors = run(capsys, "get", "chinese-poetry")
    assert code == 1 and "exists: remove it, or name another folder" in errors
    assert run(capsys, "get", "chinese-poetry", "--out", "again")[0] == 0
    assert len(site.requests) == requests and read_manifest(Path("again"))


def test_other_bytes_than_the_presets_hash_names_are_refused(project, poems, capsys):
    code, _, errors = run(capsys, "get", "chinese-poetry")
    assert code == 1 and "is not the file that" in errors and "Traceback" not in errors
    assert not Path("data/sets").exists()


def test_offline_the_error_names_the_preset_the_address_and_the_network(project, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.utils._http.get_session", lambda: None)
    code, _, errors = run(capsys, "get", "tinystories")
    assert code == 1 and "tinystories: hf:roneneldan/TinyStories@main" in errors and "check the network" in errors
    assert not Path("data/sets").exists()


def test_an_unknown_name_and_a_preset_of_the_users_own_file_are_refused(project, capsys):
    code, _, errors = run(capsys, "get", "tiny-stories")
    assert code == 1 and "did you mean 'tinystories'?" in errors and "wikitext-103" in errors
    code, _, errors = run(capsys, "get", "book")
    assert code == 1 and "nothing to download" in errors and "corpus/book.txt" in errors


def test_an_index_that_misses_a_preset_or_is_damaged_is_named(tmp_path):
    folder = presets_with(tmp_path / "presets", "a" * 64)
    (folder / "new.yaml").write_text((folder / "tinystories.yaml").read_text())
    with pytest.raises(ConfigError, match=r"index.toml has no section \[new\]"):
        read_presets(folder)
    (folder / "index.toml").write_text("[a\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_presets(folder)
    (folder / "index.toml").unlink()
    with pytest.raises(ConfigError, match="from a clone"):
        read_presets(folder)
