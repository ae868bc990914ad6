"""SIGKILL while MLflow writes to SQLite: the same command finishes the work.

The result is one version, one run and a champion that can be traced. The processes are forks of this one, which has
imported MLflow and opened none of their stores, so that a kill does not cost the start of an interpreter.
"""

import os
import random
import shutil
import signal
import time
import traceback

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine
from tracking_servers import history, tracker

from foundry.tracking import Candidate, register, sync
from foundry.tracking.names import CONTENT, FINGERPRINT, HISTORY, MOVE, TEST_SCORE, WHY
from foundry.tracking.promotion import Decision
from foundry.tracking.registry import download
from foundry.tracking.settings import connect
from foundry.utils.files import sha256_tree

CODE = """
import mlflow
class Nothing(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return ["" for _ in model_input]
mlflow.models.set_model(Nothing())
"""


def killed(work, at_commit=None, after=None):
    """Runs `work` in a process that is killed just before its n-th commit, or after some seconds.

    Returns:
        Whether it was killed.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if at_commit:
                left = [at_commit]

                @event.listens_for(Engine, "commit")
                def count(_):
                    left[0] -= 1
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.fixture
def home(tables, tmp_path, monkeypatch):
    home = tmp_path / "project"
    (home / ".foundry").mkdir(parents=True)
    shutil.copy(tables, home / ".foundry/mlflow.db")
    monkeypatch.setenv("DVC_ROOT", str(home))
    (home / "export").mkdir()
    (home / "export/weights.txt").write_text("weights")
    (home / "documents.parquet").write_text("losses")
    (home / "code.py").write_text(CODE)
    return home


@pytest.mark.slow
def test_a_registration_that_is_killed_again_and_again_is_one_version_and_one_run(home):
    own = f"sqlite:///{home}/.foundry/mlflow.db"
    code = home / "code.py"
    c = Candidate("lm", "fp", home / "export", home / "documents.parquet", code, [], "", {}, {TEST_SCORE: 1.5}, [code])

    def work():
        register(c, uri=own, experiment="e", decide=lambda champion: Decision(True, "first", {"difference": 0.0}))

    begin = time.monotonic()
    kills = sum(killed(work, at_commit=n) for n in (1, 2, 3, 4, 5, 7, 9, 11, 13, 3, 2, 1))
    seconds = (time.monotonic() - begin) / 12
    chance = random.Random(7)
    kills += sum(killed(work, after=chance.uniform(0, 2 * seconds)) for _ in range(6))
    assert kills >= 12
    assert not killed(work)
    client = connect(own)
    (version,) = client.search_model_versions("name='lm'")
    (run,) = client.search_runs([client.get_experiment_by_name("e").experiment_id], f"tags.`{FINGERPRINT}` = 'fp'")
    assert version.run_id == run.info.run_id and run.info.status == "FINISHED"
    assert version.tags[CONTENT] == sha256_tree(home / "export") and version.tags[WHY] == "promoted: first"
    assert len(client.search_logged_models([run.info.experiment_id])) == 1
    assert [m.value for m in client.get_metric_history(run.info.run_id, TEST_SCORE)] == [1.5]
    model = client.get_registered_model("lm")
    assert {k: str(v) for k, v in model.aliases.items()} == {"champion": "1", "challenger": "1"}
    assert MOVE not in model.tags and model.tags[HISTORY].count('"version"') == 1
    got = download("models:/lm@champion", own, home / "got")
    assert sha256_tree(next(got.rglob("weights.txt")).parent) == version.tags[CONTENT]


@pytest.mark.slow
def test_a_training_that_is_killed_at_every_write_of_its_delivery_is_one_run_with_each_point_once(home):
    own, folder = f"sqlite:///{home}/.foundry/mlflow.db", home / ".foundry/train/fp"

    def work():
        with tracker(folder, own, "fp") as t:
            for step in range(20):
                t.log(step, {"loss": float(step)})

    kills = sum(killed(work, at_commit=n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 3, 1))
    assert kills >= 8
    sync(home / ".foundry")
    run, points = history(own, "fp")
    assert run.info.status in ("KILLED", "FINISHED")  # depends on how far the training itself came
    assert points == [(s, float(s)) for s in range(20)]
    assert not killed(work)
    run, points = history(own, "fp")
    assert run.info.status == "FINISHED" and points == [(s, float(s)) for s in range(20)]
    assert len(run.inputs.dataset_inputs) == 1
