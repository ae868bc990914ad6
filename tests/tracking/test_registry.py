"""One version for one content; the champion moves only to a better model on the same text; no pickle anywhere."""

import subprocess
import sys
from pathlib import Path

import pytest

from foundry.config import TrackingError
from foundry.tracking import load_registered, register
from foundry.tracking.settings import connect

CODE = """
import mlflow
class Echo(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.text = open(context.artifacts["export"] + "/weights.txt").read()
    def predict(self, context, model_input, params=None):
        return [self.text + t + str((params or {}).get("max_tokens")) for t in model_input.iloc[:, 0]]
mlflow.models.set_model(Echo())
"""


@pytest.fixture
def call(root, uri, tmp_path):
    (tmp_path / "code.py").write_text(CODE)

    def go(text, bpb, test="t1", name="lm", fingerprint=None, to=uri):
        export = tmp_path / f"export-{text}"
        export.mkdir(exist_ok=True)
        (export / "weights.txt").write_text(text)
        return register(
            export, uri=to, experiment="registry", name=name, fingerprint=fingerprint or f"fp-{text}", bits_per_byte=bpb, test_sha256=test,
            model_code=tmp_path / "code.py", code_paths=[], metrics={"test_bits_per_byte": bpb}, artifacts=[export / "weights.txt"],
        )  # fmt: skip

    return go


def aliases(uri, name):
    return {alias: str(v) for alias, v in connect(uri).get_registered_model(name).aliases.items()}


def test_the_same_content_is_one_version_and_a_better_one_becomes_champion(call, uri):
    one = call("one", 1.5)
    assert one.created and one.champion
    again = call("one", 1.5)
    assert (again.version, again.created) == (one.version, False)
    worse = call("worse", 1.6)
    assert worse.created and not worse.champion and "not better than 1.5000" in worse.reason
    assert aliases(uri, "lm") == {"champion": one.version, "challenger": worse.version}
    other = call("other", 1.0, test="t2")
    assert not other.champion and "tested on other text" in other.reason
    better = call("better", 1.4)
    assert better.champion and aliases(uri, "lm")["champion"] == better.version
    assert len(connect(uri).search_model_versions("name='lm'")) == 4


def test_a_registered_model_predicts_and_holds_no_pickle(call, uri):
    import mlflow

    made = call("hello ", 1.5, name="predicts")
    model = load_registered("predicts", "champion", uri)
    assert model.predict(["you"], params={"max_tokens": 3}) == ["hello you3"]
    (version,) = connect(uri).search_model_versions("name='predicts'")
    folder = Path(mlflow.artifacts.download_artifacts(version.source, tracking_uri=uri))
    files = [p.name for p in folder.rglob("*") if p.is_file()]
    assert "MLmodel" in files and not [
        n for n in files if n.endswith((".pkl", ".pickle", ".cloudpickle", ".pt", ".bin"))
    ]
    assert load_registered("predicts", made.version, uri).predict(["x"])[0].startswith("hello x")


def test_an_export_that_was_trained_elsewhere_gets_a_run_that_says_so(call, uri):
    call("restored", 1.2, name="restored-lm", fingerprint="unknown-here")
    client = connect(uri)
    where = client.get_experiment_by_name("registry").experiment_id
    (run,) = client.search_runs([where], "tags.`foundry.fingerprint` = 'unknown-here'")
    assert (
        run.data.tags["foundry.restored"] == "true"
        and run.data.metrics["test_bits_per_byte"] == 1.2
        and run.info.status == "FINISHED"
    )


def test_lost_aliases_are_set_again(call, uri):
    made = call("alias", 1.5, name="alias-lm")
    client = connect(uri)
    client.delete_registered_model_alias("alias-lm", "champion")
    client.delete_registered_model_alias("alias-lm", "challenger")
    assert not call("alias", 1.5, name="alias-lm").created
    assert aliases(uri, "alias-lm") == {"champion": made.version, "challenger": made.version}


def test_two_processes_at_once_make_one_version(root, uri, tmp_path):
    (tmp_path / "code.py").write_text(CODE)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "weights.txt").write_text("both")
    code = (
        "import sys\nfrom pathlib import Path\nfrom foundry.tracking import register\nt = Path(sys.argv[1])\n"
        "r = register(t / 'export', uri=sys.argv[2], experiment='registry', name='both', fingerprint='both', bits_per_byte=1.0, test_sha256='t',\n"
        "             model_code=t / 'code.py', code_paths=[], metrics={}, artifacts=[])\nprint('created', r.created, r.version)\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), uri], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    lines = sorted(
        next(line for line in c.communicate()[0].splitlines() if line.startswith("created")) for c in children
    )
    assert lines == ["created False 1", "created True 1"]


def test_a_store_that_does_not_answer_is_told_in_seconds_with_the_command(call):
    with pytest.raises(TrackingError, match=r"could not register .* run `foundry register`"):
        call("one", 1.5, to="http://127.0.0.1:9")
