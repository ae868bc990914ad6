"""The gate and a champion whose files are unreachable, deleted, incomplete or damaged.

The reason that is recorded is the true one, and nothing is decided that cannot be decided now.
"""

import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foundry.config import ConfigError, Runtime, TrackingError, parse_config
from foundry.project import register, registration
from foundry.tracking import Candidate, tracking_uri
from foundry.tracking.backup import BackedUp, backup
from foundry.tracking.names import WHY
from foundry.tracking.promotion import Promotion, Rollback
from foundry.tracking.registry import find
from foundry.tracking.settings import connect

CODE = """
import mlflow
class Nothing(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return ["" for _ in model_input]
mlflow.models.set_model(Nothing())
"""


def write_losses(path, scale):
    rng = np.random.default_rng(0)
    size = rng.integers(300, 3000, 40)
    nats = size * rng.normal(1.1, 0.2, 40) * scale
    ids = [f"{i:016x}" for i in range(40)]
    table = {
        "doc_id": ids,
        "source": ["one"] * 40,
        "lang": ["en"] * 40,
        "n_bytes": size,
        "tokens": size // 3,
        "nats": nats,
    }
    pq.write_table(pa.table(table), path)


@pytest.fixture
def cfg():
    return parse_config(
        {"download": {"sources": [{"name": "one", "url": "file:corpus/x"}]}, "export": {"model_name": "lm"}}
    )


@pytest.fixture
def home(tables, tmp_path, monkeypatch, cfg):
    """A project whose champion is version 1; `better` is an export that the gate would promote."""
    home = tmp_path / "project"
    (home / ".foundry").mkdir(parents=True)
    shutil.copy(tables, home / ".foundry/mlflow.db")
    monkeypatch.setenv("DVC_ROOT", str(home))
    (home / "code.py").write_text(CODE)
    (home / "params.yaml").write_text(
        "download: {sources: [{name: one, url: 'file:corpus/x'}]}\n"
        "export: {model_name: lm}\nevaluate: {bootstrap: 200}\n"
    )

    def candidate(cfg, folder):
        text = (folder / "artifacts/export/weights.txt").read_text()
        scores = folder / "documents.parquet"
        return Candidate(
            "lm",
            f"fp-{text}",
            folder / "artifacts/export",
            scores,
            home / "code.py",
            [],
            artifacts=[folder / "params.yaml"],
        )

    monkeypatch.setattr(register, "_candidate", candidate)
    exported(home, "first", 1.0)
    assert register.register_export(cfg, home).champion
    exported(home, "better", 0.9)
    return home


def exported(home, text, scale):
    (home / "artifacts/export").mkdir(parents=True, exist_ok=True)
    (home / "artifacts/export/weights.txt").write_text(text)
    write_losses(home / "documents.parquet", scale)


def model_folder(home):
    (folder,) = (home / ".foundry/mlartifacts/models").glob("m-*/artifacts")
    return folder


def champion(home):
    return str(connect(tracking_uri(Runtime())).get_registered_model("lm").aliases["champion"])


def test_a_store_that_is_away_for_a_moment_is_no_decision_and_the_registration_waits(home, cfg, monkeypatch):
    with monkeypatch.context() as m:

        def away(*args):
            raise ConnectionError("no route to host")

        m.setattr(registration, "fetch", away)
        with pytest.raises(TrackingError, match=r"gate cannot decide now.*version 1.*no route to host.*`foundry sync`"):
            register.register_export(cfg, home)
    client = connect(tracking_uri(Runtime()))
    assert champion(home) == "1" and WHY not in client.get_model_version("lm", "2").tags
    (waiting,) = (home / ".foundry/register").glob("*/waiting.json")
    (done,) = register.deliver_registrations(cfg)
    assert (
        register.described(done).startswith("version 2 of lm: better: ")
        and champion(home) == "2"
        and not waiting.exists()
    )
    assert client.get_model_version("lm", "2").tags[WHY].startswith("promoted: better")


def test_a_disk_that_is_not_mounted_is_away_and_not_empty(home, cfg):
    uri, disk = tracking_uri(Runtime()), home / ".foundry/mlartifacts"
    decide = register._gate(cfg, register.read_losses(home / "documents.parquet"), uri)
    version = connect(uri).get_model_version("lm", "1")
    disk.rename(disk.with_name("unplugged"))
    with register.reached(uri, "ask"), pytest.raises(TrackingError, match="mlartifacts is not there"):
        decide(version)
    disk.with_name("unplugged").rename(disk)
    with register.reached(uri, "ask"):
        assert decide(version).promote


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: shutil.rmtree(folder.parent), "has no files any more at file:///"),
        (lambda folder: (folder / "artifacts/documents.parquet").unlink(), "has no losses by document to compare with"),
        (lambda folder: (folder / "artifacts/documents.parquet").write_text("x"), "that cannot be read ("),
    ],
)
def test_files_that_somebody_deleted_or_damaged_are_reported_as_they_are(home, cfg, damage, words):
    damage(model_folder(home))
    done = register.register_export(cfg, home)
    assert done.created and not done.champion and words in done.reason and "--force --why" in done.reason
    assert not list((home / ".foundry/register").glob("*"))


def test_one_registration_that_cannot_be_read_keeps_no_other_waiting(home, cfg):
    for name in ("aaa", "zzz"):
        folder = home / ".foundry/register" / name
        exported(folder, name, 0.8)
        shutil.copy(home / "params.yaml", folder / "params.yaml")
        (folder / "waiting.json").write_text('{"tags": {}}')
    (home / ".foundry/register/aaa/documents.parquet").write_text("cut off")
    with pytest.raises(TrackingError, match=r"(?s)version 2 of lm: better.*aaa: .*cannot be read"):
        register.deliver_registrations(cfg)
    assert champion(home) == "2"


def test_an_alias_that_was_removed_is_named_with_the_command_that_brings_it_back(home, cfg):
    client = connect(tracking_uri(Runtime()))
    client.delete_registered_model_alias("lm", "challenger")
    with pytest.raises(ConfigError, match=r"challenger.*`foundry register` sets it to the newest version again"):
        register.promote(cfg, "challenger")
    register.register_export(cfg, home)
    assert register.promote(cfg, "challenger") == Promotion(True, "it is the champion")
    client.delete_registered_model_alias("lm", "champion")
    with pytest.raises(ConfigError, match="`foundry promote` asks the gate"):
        register.promote(cfg, "champion")
    assert register.rollback(cfg, "it was removed by hand") == Rollback("2", "1") and champion(home) == "1"
    with pytest.raises(ConfigError, match="MLflow has no model other") as e:
        find(client, "models:/other@champion")
    assert "promote" not in str(e.value)  # it would not help: there is no such model at all


def test_a_moved_project_compares_with_its_champion_rolls_back_and_backs_up(home, cfg, monkeypatch, tmp_path):
    new = home.with_name("moved to 那里")
    home.rename(new)
    monkeypatch.setenv("DVC_ROOT", str(new))
    monkeypatch.setattr(register, "_candidate", partial(_moved, register._candidate, new))
    done = register.register_export(cfg, new)
    assert done.champion and done.reason.startswith("better: ") and done.reason.endswith("against version 1")
    assert register.promote(cfg, "1").reason.startswith("worse: ")
    assert register.rollback(cfg, "x") == Rollback("2", "1")
    assert backup(tracking_uri(Runtime()), tmp_path / "kept") == BackedUp(models=1, versions=2, copied=2)
    assert not home.exists()


def _moved(made, new, cfg, folder):
    return replace(made(cfg, folder), model_code=new / "code.py")
