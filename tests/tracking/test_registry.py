"""One version per content; the champion is decided, recorded, forced and rolled back; nothing is pickled."""

import json
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
from mlflow import MlflowClient

from foundry.config import ConfigError, TrackingError
from foundry.tracking import Candidate, DatasetRef, load_registered, register
from foundry.tracking.names import CHALLENGED, FINGERPRINT, HISTORY, RESTORED, ROLLED_BACK, WHY
from foundry.tracking.promotion import (
    Champion,
    Decision,
    Promotion,
    Rollback,
    force,
    line_as_text,
    rollback,
    settle,
)
from foundry.tracking.registry import download, fetch, find, reached
from foundry.tracking.settings import connect, mlflow_at

CODE = """
import mlflow
class Echo(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.text = open(context.artifacts["export"] + "/weights.txt").read()
    def predict(self, context, model_input, params=None):
        texts = model_input.iloc[:, 0] if hasattr(model_input, "iloc") else model_input
        return [self.text + t + str((params or {}).get("max_tokens")) for t in texts]
mlflow.models.set_model(Echo())
"""


def better_if(score, seen=None):
    """A gate that compares a number, which versions have as a tag."""

    def decide(champion):
        if seen is not None:
            seen.append(champion and champion.version)
        if champion is None:
            return Decision(True, "there was no champion")
        old = float(champion.tags["score"])
        return Decision(score < old, f"{score} against {old}", {"difference": score - old})

    return decide


@pytest.fixture
def call(root, uri, tmp_path):
    (tmp_path / "code.py").write_text(CODE)

    def go(text, score, name="lm", fingerprint=None, to=uri, seen=None, **more):
        export = tmp_path / f"export-{text}"
        export.mkdir(exist_ok=True)
        (export / "weights.txt").write_text(text)
        (tmp_path / "documents.parquet").write_text(f"losses of {text}")
        logged = {"metrics": {"test_bits_per_byte": score}, "artifacts": [export / "weights.txt"], **more}
        paths = (export, tmp_path / "documents.parquet", tmp_path / "code.py", [])
        candidate = Candidate(name, fingerprint or f"fp-{text}", *paths, tags={"score": str(score)}, **logged)
        return register(candidate, uri=to, experiment="registry", decide=better_if(score, seen))

    return go


def aliases(uri, name):
    return {alias: str(v) for alias, v in connect(uri).get_registered_model(name).aliases.items()}


def tags(uri, name, version):
    return connect(uri).get_model_version(name, str(version)).tags


def test_the_same_content_is_one_version_and_only_a_better_one_becomes_champion(call, uri):
    one = call("one", 1.5)
    assert one.created and one.champion and one.reason == "there was no champion"
    again = call("one", 1.5)
    assert (again.version, again.created, again.reason) == (one.version, False, "it is the champion")
    worse = call("worse", 1.6)
    assert worse.created and not worse.champion and worse.reason == "1.6 against 1.5"
    assert aliases(uri, "lm") == {"champion": one.version, "challenger": worse.version}
    assert tags(uri, "lm", worse.version)[WHY] == "refused: 1.6 against 1.5"
    assert float(tags(uri, "lm", worse.version)[f"{WHY}.difference"]) == pytest.approx(0.1)
    assert tags(uri, "lm", one.version)[CHALLENGED] == f"version {worse.version}, refused: 1.6 against 1.5"
    better = call("better", 1.4)
    assert better.champion and aliases(uri, "lm") == {"champion": better.version, "challenger": better.version}
    assert (
        tags(uri, "lm", better.version)[WHY].startswith("promoted: ")
        and "promoted" in tags(uri, "lm", one.version)[CHALLENGED]
    )
    assert not call("one", 1.5).champion  # an old export that DVC restored
    assert aliases(uri, "lm") == {
        "champion": better.version,
        "challenger": better.version,
    }  # the newest stays challenger
    assert len(connect(uri).search_model_versions("name='lm'")) == 3
    line = json.loads(connect(uri).get_registered_model("lm").tags[HISTORY])
    assert [entry["version"] for entry in line] == [one.version, better.version] and all(
        entry["who"] == "the gate" for entry in line
    )


def test_the_line_of_champions_fits_into_a_tag_of_any_store():
    line = [Champion(str(i), "更好的食谱" * 60, "王", "2026-01-01 00:00 UTC") for i in range(40)]
    text = line_as_text(line)
    kept = [Champion(**entry) for entry in json.loads(text)]
    assert len(text) <= 5000 and kept == line[-len(kept) :] and len(kept) > 10


def test_force_overrides_the_gate_with_name_and_reason_and_rollback_returns_and_lasts(call, uri):
    name = "forced"
    one, two = call("f-one", 1.0, name), call("f-two", 2.0, name)
    assert not two.champion
    client = connect(uri)
    assert force(client, name, two.version, "it writes better recipes", "Ada") == one.version
    assert aliases(uri, name)["champion"] == two.version
    assert tags(uri, name, two.version)[WHY] == "promoted: forced by Ada: it writes better recipes"
    assert rollback(client, name, "it does not", "Bob") == Rollback(two.version, one.version)
    assert aliases(uri, name)["champion"] == one.version
    marked = tags(uri, name, two.version)[ROLLED_BACK]
    assert marked.startswith("by Bob on 20") and marked.endswith("UTC: it does not")
    three = call("f-three", 0.5, name)
    assert three.champion
    rollback(client, name, "too good to be true", "Bob")
    seen = []
    refused = call("f-three", 0.5, name, seen=seen)  # the pipeline runs again
    assert not refused.champion and "too good to be true" in refused.reason and "--force" in refused.reason and not seen
    with pytest.raises(ConfigError, match="no champion before version"):
        rollback(client, name, "once more")
    force(client, name, three.version, "it was checked", "Ada")
    assert aliases(uri, name)["champion"] == three.version and ROLLED_BACK not in tags(uri, name, three.version)
    assert rollback(client, name, "back") == Rollback(three.version, one.version)


def test_an_alias_that_was_set_by_hand_can_be_rolled_back_too(call, uri):
    one, two = call("h-one", 1.0, "hand"), call("h-two", 2.0, "hand")
    connect(uri).set_registered_model_alias("hand", "champion", two.version)
    assert rollback(connect(uri), "hand", "who did this?") == Rollback(two.version, one.version)


def test_losses_and_export_come_back_from_a_version_byte_for_byte(call, uri, tmp_path):
    made = call(
        "fetched", 1.0, "fetch-lm", datasets=[DatasetRef(name="wiki", digest="abc", path="pypi:x==1", context="source")]
    )
    with reached(uri, "fetch") as client:
        version = find(client, "models:/fetch-lm@champion")
        losses = fetch(client, version, uri, tmp_path / "a", "documents.parquet")
        inputs = client.get_run(version.run_id).inputs.dataset_inputs
        assert version.run_id and [(d.dataset.name, d.dataset.digest) for d in inputs] == [("wiki", "abc")]
    assert losses.read_text() == "losses of fetched"
    folder = download(f"models:/fetch-lm/{made.version}", uri, tmp_path / "b")
    assert next(folder.rglob("weights.txt")).read_text() == "fetched"
    for wrong in (
        "models:/fetch-lm@nobody",
        "models:/fetch-lm/99",
        "models:/fetch-lm",
        "models:/nothing@champion",
        "fetch-lm@champion",
    ):
        with pytest.raises(ConfigError):
            download(wrong, uri, tmp_path / "c")


def test_a_registered_model_predicts_and_contains_no_pickle(call, uri):
    import mlflow

    made = call("hello ", 1.5, name="predicts")
    model = load_registered("predicts", "champion", uri)
    assert model.predict(["you"], params={"max_tokens": 3}) == ["hello you3"]
    (version,) = connect(uri).search_model_versions("name='predicts'")
    with mlflow_at(uri):
        folder = Path(mlflow.artifacts.download_artifacts(version.source))
    files = [p.name for p in folder.rglob("*") if p.is_file()]
    assert "MLmodel" in files and "input_example.json" in files
    assert not [n for n in files if n.endswith((".pkl", ".pickle", ".cloudpickle", ".pt", ".bin"))]
    assert load_registered("predicts", made.version, uri).predict(["x"])[0].startswith("hello x")


def test_an_export_that_was_trained_elsewhere_gets_a_run_that_is_marked_as_restored(call, uri):
    call("restored", 1.2, name="restored-lm", fingerprint="unknown-here")
    client = connect(uri)
    where = client.get_experiment_by_name("registry").experiment_id
    (run,) = client.search_runs([where], f"tags.`{FINGERPRINT}` = 'unknown-here'")
    assert run.data.tags[RESTORED] == "true"
    assert run.data.metrics["test_bits_per_byte"] == 1.2 and run.info.status == "FINISHED"


def test_a_registration_is_completed_after_an_error_at_any_write_and_after_the_loss_of_its_files(
    call, uri, monkeypatch
):
    """The answer of a server is lost after it has executed the request.

    In the end there is one version with one entry and one link.
    """
    name = "completed-lm"

    def go():
        return call("completed", 1.3, name=name)

    for step in ("log_model_artifacts", "log_outputs", "log_batch", "finalize_logged_model"):
        with monkeypatch.context() as m:
            done = getattr(MlflowClient, step)

            def lost(self, *args, done=done, **more):
                done(self, *args, **more)
                raise ConnectionError("the answer is lost")

            m.setattr(MlflowClient, step, lost)
            with pytest.raises(TrackingError, match="the answer is lost"):
                go()
    (entry,) = entries(uri, name)
    shutil.rmtree(urllib.parse.unquote(urllib.parse.urlsplit(entry.artifact_location).path))
    assert go().created and not go().created
    (entry,) = entries(uri, name)
    run = connect(uri).get_run(entry.source_run_id)
    assert [m.model_id for m in run.outputs.model_outputs] == [entry.model_id] and entry.status == "READY"
    assert {m.key: m.value for m in entry.metrics} == {"test_bits_per_byte": 1.3}
    assert load_registered(name, "1", uri).predict(["x"])[0].startswith("completedx")


def entries(uri, name):
    """MLflow's logged models of a registered model, including those of registrations that were not completed."""
    client = connect(uri)
    where = client.get_experiment_by_name("registry").experiment_id
    return [m for m in client.search_logged_models([where]) if m.name == name]


def test_lost_aliases_are_set_again(call, uri):
    made = call("alias", 1.5, name="alias-lm")
    client = connect(uri)
    client.delete_registered_model_alias("alias-lm", "champion")
    client.delete_registered_model_alias("alias-lm", "challenger")
    assert not call("alias", 1.5, name="alias-lm").created
    assert aliases(uri, "alias-lm") == {"champion": made.version, "challenger": made.version}


def test_settling_twice_changes_nothing(call, uri):
    made = call("twice", 1.5, name="twice-lm")
    client = connect(uri)
    before = client.get_registered_model("twice-lm").tags[HISTORY]
    for _ in range(2):
        assert settle(
            client, "twice-lm", client.get_model_version("twice-lm", made.version), better_if(1.5)
        ) == Promotion(True, "it is the champion")
    assert client.get_registered_model("twice-lm").tags[HISTORY] == before


def test_two_processes_at_once_make_one_version(root, uri, tmp_path):
    (tmp_path / "code.py").write_text(CODE)
    (tmp_path / "documents.parquet").write_text("losses")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "weights.txt").write_text("both")
    code = (
        "import sys\nfrom pathlib import Path\nfrom foundry.tracking import Candidate, register\n"
        "from foundry.tracking.promotion import Decision\nt = Path(sys.argv[1])\n"
        "c = Candidate('both', 'both', t / 'export', t / 'documents.parquet', t / 'code.py', [])\n"
        "first = lambda champion: Decision(champion is None, 'first')\n"
        "r = register(c, uri=sys.argv[2], experiment='registry', decide=first)\n"
        "print('created', r.created, r.version)\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), uri], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    lines = sorted(
        next(line for line in c.communicate()[0].splitlines() if line.startswith("created")) for c in children
    )
    assert lines == ["created False 1", "created True 1"]


def test_a_store_that_does_not_answer_is_reported_within_seconds_with_the_command(call):
    with pytest.raises(TrackingError, match=r"could not register .* run `foundry register`"):
        call("one", 1.5, to="http://127.0.0.1:9")
