"""`foundry verify` on a finished project: a flipped byte in any file is found, and each printed remedy works."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from pipeline import commit, run

from foundry.cli import main
from foundry.project.verify import verify
from foundry.utils.dvc_record import Cache, md5_file, recorded_outs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def copied(finished, tmp_path_factory):
    """A copy of the finished project, whose files the tests damage and restore."""
    ignore = shutil.ignore_patterns(".foundry")
    folder = shutil.copytree(finished[0], tmp_path_factory.mktemp("damaged") / "project", symlinks=True, ignore=ignore)
    commit(folder, "baseline")
    return Path(folder)


@pytest.fixture
def project(copied, monkeypatch):
    monkeypatch.chdir(copied)
    yield copied
    assert not [f for f in verify("artifacts/export") if f.state != "ok"]  # the next test needs an undamaged project


def flip(path):
    """Another bit in the middle of a file; one byte more in an empty one."""
    data = bytearray(path.read_bytes())
    if data:
        data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data or b"x")


DATA = [f"data/{name}" for name in ("raw", "clean", "shards")]
ARTIFACTS = [f"artifacts/{name}" for name in ("tokenizer", "model", "evaluation", "export")]


@pytest.mark.parametrize("top", [*DATA, *ARTIFACTS, "reports"])
def test_a_flipped_byte_in_any_file_of_a_finished_project_is_found_and_named(project, top):
    files = sorted(p for p in Path(top).rglob("*") if p.is_file())
    assert len(files) >= 2 and {o.split("/")[0] for o in recorded_outs(project)} == {"data", "artifacts", "reports"}
    for path in files:
        data = path.read_bytes()
        flip(path)
        broken = [f for f in verify("artifacts/export") if f.broken]
        path.write_bytes(data)
        assert [(f.path, f.state) for f in broken] == [(str(path), "changed")], path


def refused(capsys, *command):
    with pytest.raises(SystemExit):
        main(list(command))
    return capsys.readouterr().err


def damage_cache(path):
    """Damages the object of DVC's cache that a file was checked out from, and checks it out again.

    Returns:
        The object.
    """
    (out,) = [o for o in recorded_outs(Path.cwd()).values() if str(path).startswith(o.path)]
    cache = Cache(Path.cwd())
    object_ = cache.path(cache.listing(out)[str(path)])
    flip(object_)
    object_.chmod(0o444)
    path.unlink()
    run(Path.cwd(), "dvc", "checkout", "dvc.yaml")
    return object_


def test_what_the_cache_or_git_has_is_restored_by_repair(project, capsys):
    damaged = [
        "artifacts/model/model.safetensors",
        "artifacts/export/proof.json",
        "reports/report.html",
        "data/raw/manifest.json",
    ]
    before = {name: Path(name).read_bytes() for name in damaged}
    for name in damaged:
        times = os.stat(name)
        flip(Path(name))
        os.utime(name, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a disk does it: DVC sees no change
    assert "`foundry verify --repair` restores these files" in refused(capsys, "verify")
    main(["verify", "--repair"])
    text = capsys.readouterr().out
    assert all(f"restored {name}" in text for name in damaged) and "every file that is here" in text
    assert {name: Path(name).read_bytes() for name in damaged} == before
    assert "up to date" in run(project, "dvc", "status", "dvc.yaml")[1]


def test_a_damaged_object_of_the_cache_is_removed_and_the_stage_that_is_named_builds_it_again(project, capsys):
    """DVC trusts its cache: it checks the damage out and calls it up to date."""
    path = Path("artifacts/tokenizer/facts.json")
    good, lock = path.read_bytes(), Path("dvc.lock").read_bytes()
    object_ = damage_cache(path)
    assert path.read_bytes() == object_.read_bytes() != good
    assert "tokenizer: artifacts/tokenizer/facts.json: changed" in refused(capsys, "verify")
    err = refused(capsys, "verify", "--repair")
    assert not object_.exists() and str(path) in err
    (command,) = re.findall(r"`(dvc repro [\w ]+)` builds them again", err)
    assert command == "dvc repro train_tokenizer"
    assert "Running stage 'train_tokenizer'" in run(project, *command.split())[1]
    assert path.read_bytes() == good and md5_file(object_) == object_.parent.name + object_.name
    assert Path("dvc.lock").read_bytes() == lock


def test_a_damaged_object_of_the_cache_is_fetched_by_the_other_remedy(project, tmp_path, capsys):
    run(project, "dvc", "remote", "add", "--default", "--local", "store", str(tmp_path / "remote"))
    run(project, "dvc", "push")
    path = Path("artifacts/tokenizer/facts.json")
    good = path.read_bytes()
    damage_cache(path)
    assert "`dvc pull train_tokenizer` fetches them" in refused(capsys, "verify", "--repair")
    run(project, "dvc", "pull", "train_tokenizer")
    assert path.read_bytes() == good


def test_a_damaged_list_of_a_folder_in_the_cache_is_removed_and_built_again(project, capsys):
    out = recorded_outs(project)["artifacts/tokenizer"]
    listing = Cache(project).path(out.md5)
    flip(listing)
    flip(Path("artifacts/tokenizer/facts.json"))
    assert "dvc repro train_tokenizer" in refused(capsys, "verify", "--repair")
    assert not listing.exists()
    run(project, "dvc", "repro", "train_tokenizer")
    assert listing.exists()


def test_an_object_is_restored_from_a_good_one_when_only_the_file_is_hardlinked_damage(project, capsys):
    """With `cache.type hardlink` the file is the object: both are damaged, and git does not have it."""
    path = Path("data/shards/index.json")
    cache = Cache(project)
    object_ = cache.path(cache.listing(recorded_outs(project)["data/shards"])[str(path)])
    good = object_.read_bytes()
    path.unlink()
    os.link(object_, path)
    flip(path)
    assert object_.read_bytes() != good
    assert "dvc repro shard" in refused(capsys, "verify", "--repair")
    run(project, "dvc", "repro", "shard")
    assert path.read_bytes() == good


def test_before_there_is_an_export_repair_restores_what_the_lock_has(project, capsys):
    """As `dvc.lock` of a project in which training has not ended."""
    export = Path("artifacts/export")
    export.rename("aside")
    path = Path("data/shards/train/shard-00000.arrow")
    good = path.read_bytes()
    flip(path)
    assert "it has no proof.json" in refused(capsys, "verify", "--repair")  # the command verifies after the repair
    assert path.read_bytes() == good
    Path("aside").rename(export)


def test_files_that_are_newer_than_the_export_are_left_and_the_remedy_is_to_build_on(project, capsys):
    lock, path = Path("dvc.lock"), Path("artifacts/model/config.json")
    old, text = path.read_bytes(), lock.read_text()
    path.write_bytes(old + b"\n")  # trained again, and recorded
    out = recorded_outs(project)["artifacts/model"]
    rows = [{"md5": md5_file(p), "relpath": p.name} for p in sorted(path.parent.iterdir())]
    listing = json.dumps(rows).encode()
    new = hashlib.md5(listing).hexdigest() + ".dir"
    Cache(project).path(new).parent.mkdir(exist_ok=True)
    Cache(project).path(new).write_bytes(listing)
    lock.write_text(text.replace(out.md5, new))
    err = refused(capsys, "verify", "--repair")
    assert "newer than the export: run `dvc repro`" in err and str(path) in err
    assert path.read_bytes() == old + b"\n"
    path.write_bytes(old)
    lock.write_text(text)


def test_repair_leaves_files_that_no_record_has_to_their_owner(project, capsys):
    extra = Path("data/clean/train/part-00009.parquet")
    extra.write_bytes(b"mine")
    assert "for you to judge" in refused(capsys, "verify", "--repair")
    assert extra.read_bytes() == b"mine"
    extra.unlink()
    done = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True)
    assert done.stdout == ""
