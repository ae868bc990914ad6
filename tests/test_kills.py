"""Each writer, killed at every system call with which it changes the disk (tests/helpers/kills.py).

What is found afterwards is the old content or the new, and the same call then succeeds.
"""

import hashlib
import json
import shutil
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kills import every_kill

from foundry.config import ModelConfig
from foundry.data.fetch.lockfile import LockEntry, read_lock, write_lock
from foundry.data.fetch.web import fetch_url
from foundry.evaluation import baselines
from foundry.models import MiniLLM, TrainingFacts, load_trained_model, save_model
from foundry.models.files import weights_sha256
from foundry.project import register
from foundry.tracking import backup
from foundry.tracking.spool import Pending, Spool
from foundry.training.checkpoints import Checkpoints
from foundry.utils.files import sha256_tree, write_json
from foundry.utils.locks import exclusive

MODEL = ModelConfig(vocab_size=64, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=16, max_seq_len=16)


def cleared(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def saved(folder, *steps, keep=1):
    kept = Checkpoints(folder, keep=keep)
    for step in steps:
        kept.save(step, {"x": torch.full((3,), float(step))}, {"step": step})
    kept.wait()


def test_checkpoints_killed_while_one_is_written_and_an_old_one_removed(tmp_path, caplog):
    """The moment between the two included: the new one has its name, the old one still has its own."""
    folder, seen = tmp_path / "run", set()

    def check(place):
        tensors, values = Checkpoints(folder, keep=1).load_newest()
        seen.add((values["step"], len(Checkpoints(folder, keep=1).steps())))
        assert torch.all(tensors["x"] == values["step"]), place
        saved(folder, 3)
        assert sorted(p.name for p in folder.iterdir()) == ["step-00000003"], place

    def prepare():
        cleared(folder)
        saved(folder, 1)

    every_kill(lambda: saved(folder, 2), check, prepare, least=20)
    assert seen == {(1, 1), (2, 2), (2, 1)} and "damaged" not in caplog.text


def test_a_models_folder(tmp_path):
    folder = tmp_path / "model"
    torch.manual_seed(1)
    old, new = MiniLLM(MODEL), MiniLLM(MODEL)
    known = {weights_sha256(m): n for m, n in ((old, "old"), (new, "new"))}
    seen = set()

    def check(place):
        model, facts = load_trained_model(folder)
        seen.add(known[weights_sha256(model)])
        assert facts.fingerprint == known[weights_sha256(model)], place  # weights and facts belong together

    def save(model, name):
        hashes = {"tokenizer_sha256": "0" * 64, "index_sha256": "1" * 64}
        save_model(folder, model, TrainingFacts(fingerprint=name, **hashes, steps=1, tokens=1))

    every_kill(lambda: save(new, "new"), check, lambda: save(old, "old"), least=15)
    assert seen == {"old", "new"}


def test_the_spool_of_metrics(tmp_path):
    folder = tmp_path / "spool"

    def log(*steps):
        spool = Spool(folder)
        for step in steps:
            spool.log(step, {"loss": float(step)})
        spool.delivered(len((folder / "metrics.jsonl").read_bytes()))
        spool.close()

    def check(place):
        log(9)
        lines = [json.loads(line)["s"] for line in (folder / "metrics.jsonl").read_text().splitlines() if line]
        assert lines in ([1, 2, 9], [1, 2, 3, 9], [1, 2, 3, 4, 9]), (place, lines)
        assert Spool(folder).pending() == Pending([], (folder / "metrics.jsonl").stat().st_size), place

    def prepare():
        cleared(folder)
        log(1, 2)

    every_kill(lambda: log(3, 4), check, prepare)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextmanager
def served(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_the_store_of_downloads(tmp_path):
    """Between the file and the note of its validators, and between the file and the note of its hash, too."""
    site, store = cleared(tmp_path / "site"), tmp_path / "store"
    data = bytes(range(256)) * 1000
    (site / "a.bin").write_bytes(data)
    name = hashlib.sha256(data).hexdigest()
    transfers = SimpleNamespace(expect=lambda n: None, advance=lambda n: None)

    with served(site) as address:

        def fetch():
            return fetch_url(f"{address}/a.bin", "a.bin", None, store, transfers, True)

        def check(place):
            for folder in (p for p in store.glob("*/") if len(p.name) == 64):
                assert all(hashlib.sha256(f.read_bytes()).hexdigest() == folder.name for f in folder.iterdir()), place
            assert fetch() == store / name / "a.bin" and fetch().read_bytes() == data, place

        every_kill(fetch, check, lambda: cleared(store), least=8)


def test_the_lock_of_downloads(tmp_path):
    path = tmp_path / "download.lock"
    old, new = ({f"https://example.org/{n}": LockEntry(sha256=n * 64, bytes=3)} for n in "ab")
    seen = []

    def check(place):
        seen.append(read_lock(path))
        assert seen[-1] in (old, {**old, **new}), place

    every_kill(lambda: write_lock(path, {**old, **new}), check, lambda: write_lock(path, old))
    assert old in seen and {**old, **new} in seen


@pytest.mark.parametrize("below", ["", "artifacts"])
def test_a_version_in_a_backup(tmp_path, monkeypatch, below):
    """Copied a second time, since the version of another registry was there."""
    to = tmp_path / "backup" / "model" / "1"

    def fetched(what):
        def fetch(client, version, uri, into):
            (into / below / "export").mkdir(parents=True)
            for name in ("export/weights", "documents"):
                (into / below / name).write_text(what)
            return into / below

        monkeypatch.setattr(backup, "fetch", fetch)

    def copy(what):
        fetched(what)
        backup._copy(None, None, "", to)

    def check(place):
        found = {p.relative_to(to).as_posix(): p.read_text() for p in to.rglob("*") if p.is_file()}
        assert set(found) == {"export/weights", "documents"} and len(set(found.values())) == 1, place
        copy("next")
        assert [p.name for p in to.parent.iterdir()] == ["1"] and (to / "documents").read_text() == "next", place

    def prepare():
        cleared(to.parent)
        copy("old")

    every_kill(lambda: copy("new"), check, prepare, least=8)


def test_a_registration_that_waits(tmp_path, monkeypatch):
    """A copy of an export waits completely, or not at all, and then the command makes it again."""
    root, waiting = cleared(tmp_path / "project"), tmp_path / "register" / "abc"
    monkeypatch.setattr(register, "lineage_tags", lambda root: {"git": "x"})
    for name in ("artifacts/export/hf/a", "artifacts/export/b", "scores.parquet", "params.yaml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    candidate = SimpleNamespace(
        export_dir=root / "artifacts/export",
        scores=root / "scores.parquet",
        artifacts=[root / "params.yaml"],
        tags={"git": "x", "other": "y"},
    )

    def keep():
        register._keep(root, waiting, candidate)

    keep()
    complete = sha256_tree(waiting)

    def check(place):
        found = list(waiting.parent.glob("[!.]*/waiting.json"))
        assert found in ([], [waiting / "waiting.json"]), place
        keep()
        assert sha256_tree(waiting) == complete, place

    every_kill(keep, check, lambda: cleared(waiting.parent), least=20)

    def remove():
        register.remove_dir(waiting)

    def checked(place):  # one that was delivered is there completely, or gone
        assert not waiting.exists() or sha256_tree(waiting) == complete, place

    def kept():
        cleared(waiting.parent)
        keep()

    every_kill(remove, checked, kept)


def test_the_sizes_of_compressed_texts(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    folder, sizes = tmp_path / ".foundry/baselines", {"xz": [10, 5]}

    def keep():
        baselines.keep(folder / "a.json", sizes)

    def check(place):
        assert baselines.kept(folder / "a.json") in (None, sizes), place
        keep()
        assert baselines.kept(folder / "a.json") == sizes, place

    every_kill(keep, check, lambda: cleared(tmp_path))


@pytest.mark.parametrize("note", ["", "a note"])
def test_a_lock_file(tmp_path, note):
    path = tmp_path / "lock"

    def hold():
        with exclusive(path, "the work", note=note):
            write_json(tmp_path / "done.json", True)

    def check(place):
        with exclusive(path, "the work", note=note):
            pass

    every_kill(hold, check)
    assert Path(path).exists()
