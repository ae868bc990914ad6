"""A project that is moved keeps its runs and models; one that is copied never writes to the original."""

import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from tracking_servers import free_port, history, tracker

from foundry.config import Runtime
from foundry.tracking import Candidate, load_registered, register, sync, tracking_uri
from foundry.tracking.names import FINGERPRINT, KEY
from foundry.tracking.promotion import Decision
from foundry.tracking.registry import download
from foundry.tracking.settings import connect, repair_addresses

CODE = """
import mlflow
class Echo(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.text = open(context.artifacts["export"] + "/weights.txt").read()
    def predict(self, context, model_input, params=None):
        texts = model_input.iloc[:, 0] if hasattr(model_input, "iloc") else model_input
        return [self.text + t for t in texts]
mlflow.models.set_model(Echo())
"""


def add(home, text):
    """Registers a model of the project at `home`."""
    export = home / "artifacts/export"
    export.mkdir(parents=True, exist_ok=True)
    (export / "weights.txt").write_text(text)
    (home / "documents.parquet").write_text(f"losses of {text}")
    (home / "code.py").write_text(CODE)
    candidate = Candidate("lm", f"fp-{text}", export, home / "documents.parquet", home / "code.py", [])
    return register(
        candidate, uri=tracking_uri(Runtime()), experiment="e", decide=lambda champion: Decision(True, "newest")
    )


def train(home, name, points=3, uri=None):
    with tracker(home / ".foundry/train" / name, uri or tracking_uri(Runtime()), name) as t:
        for step in range(points):
            t.log(step, {"loss": float(step)})


def content(folder):
    """{path: bytes} of everything in a folder."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"}


def texts(store):
    """Every text in every table of a store."""
    with sqlite3.connect(store) as db:
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in db.execute(f"SELECT * FROM {table}"):
                yield from ((table, value) for value in row if isinstance(value, str))


@pytest.fixture
def home(tables, tmp_path, monkeypatch):
    """A project with a registered model and two delivered runs.

    Its store is a copy of an empty one, and is repaired like any copy.
    """
    home = tmp_path / "the original"
    (home / ".foundry").mkdir(parents=True)
    shutil.copy(tables, home / ".foundry/mlflow.db")
    monkeypatch.setenv("DVC_ROOT", str(home))
    assert add(home, "one").champion
    train(home, "fp-run")
    return home


def test_a_moved_project_reads_and_writes_where_it_is_now(home, monkeypatch):
    new = home.with_name("moved ? %20 到")
    os.rename(home, new)
    monkeypatch.setenv("DVC_ROOT", str(new))
    uri = tracking_uri(Runtime())
    assert next(download("models:/lm@champion", uri, new / "got").rglob("weights.txt")).read_text() == "one"
    assert load_registered("lm", "champion", uri).predict(["!"]) == ["one!"]
    train(new, "fp-run", 5)
    run, points = history(uri, "fp-run")  # one run, which was continued
    assert [s for s, _ in points] == [0, 1, 2, 3, 4] and run.info.status == "FINISHED"
    assert add(new, "two").version == "2"
    assert next(download("models:/lm/2", uri, new / "got2").rglob("weights.txt")).read_text() == "two"
    assert not home.exists()
    assert [
        found for found in texts(new / ".foundry/mlflow.db") if str(home) in found[1] or home.as_uri() in found[1]
    ] == []


def test_a_copied_project_never_writes_to_the_original_nor_the_other_way_round(home, monkeypatch):
    copy = home.with_name("the copy")
    shutil.copytree(home, copy, symlinks=True)
    before = content(home)
    monkeypatch.setenv("DVC_ROOT", str(copy))
    uri = tracking_uri(Runtime())
    assert add(copy, "two").version == "2"
    train(copy, "fp-run", 5)
    train(copy, "fp-new")
    assert next(download("models:/lm@champion", uri, copy / "got").rglob("weights.txt")).read_text() == "two"
    assert content(home) == before
    mine = content(copy / ".foundry")
    monkeypatch.setenv("DVC_ROOT", str(home))
    assert load_registered("lm", "champion", tracking_uri(Runtime())).predict(["!"]) == ["one!"]
    train(home, "fp-run", 4)
    assert [s for s, _ in history(tracking_uri(Runtime()), "fp-run")[1]] == [0, 1, 2, 3]
    assert content(copy / ".foundry") == mine
    assert str(home) not in json.dumps([t for t in texts(copy / ".foundry/mlflow.db") if t[0] != "tags"])


def test_what_a_copy_delivers_later_goes_to_its_own_store_or_as_a_run_of_its_own(home, monkeypatch):
    """Metrics that wait in the original also wait in the copy; on a server that both use they are two runs."""
    train(home, "fp-late", uri=f"http://127.0.0.1:{free_port()}")
    server = tracking_uri(Runtime())  # plays the server that both know
    copy = home.with_name("the copy")
    shutil.copytree(home, copy, symlinks=True)
    assert sync(home / ".foundry", server) == 3
    first = (home / ".foundry/train/fp-late/run.json").read_text()
    monkeypatch.setenv("DVC_ROOT", str(copy))
    assert sync(copy / ".foundry", server) > 0
    client = connect(server)
    where = [client.get_experiment_by_name("e").experiment_id]
    runs = client.search_runs(where, f"tags.`{FINGERPRINT}` = 'fp-late'")
    assert len(runs) == 2 and len({r.data.tags[KEY] for r in runs}) == 2
    for run in runs:
        assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [0, 1, 2]
    assert (home / ".foundry/train/fp-late/run.json").read_text() == first
    moved = copy.with_name("and moved")
    os.rename(copy, moved)
    monkeypatch.setenv("DVC_ROOT", str(moved))
    (moved / ".foundry/train/fp-late/delivered").unlink(missing_ok=True)
    sync(moved / ".foundry", server)
    assert len(client.search_runs(where, f"tags.`{FINGERPRINT}` = 'fp-late'")) == 2  # it was not copied again


def test_addresses_that_were_never_beside_the_store_stay(home):
    store = home / ".foundry/mlflow.db"
    with sqlite3.connect(store) as db:
        db.execute("UPDATE experiments SET artifact_location = 's3://bucket/mlartifacts' WHERE name = 'Default'")
        db.execute("UPDATE runs SET artifact_uri = 's3://bucket/mlartifacts/x' WHERE rowid = 1")
    before = sorted(texts(store))
    assert repair_addresses(store) == 0 and sorted(texts(store)) == before


def test_a_kill_during_the_repair_leaves_all_old_or_all_new(home, monkeypatch):
    new = home.with_name("moved")
    os.rename(home, new)
    store = new / ".foundry/mlflow.db"
    before = sorted(texts(store))
    with monkeypatch.context() as m:
        m.setattr("foundry.tracking.settings.ADDRESSES", (("experiments", "artifact_location"), ("runs", "not_there")))
        with pytest.raises(sqlite3.OperationalError):
            repair_addresses(store)
    assert sorted(texts(store)) == before
    assert repair_addresses(store) > 0 and repair_addresses(store) == 0


def test_the_experiment_that_mlflow_makes_by_itself_does_not_write_to_the_folder_that_a_process_stands_in(root, uri):
    client = connect(uri)
    location = client.get_experiment("0").artifact_location
    assert location == (Path(root) / ".foundry/mlartifacts").as_uri()
