"""A sweep's run in MLflow ends as the sweep did, whoever ended it, and names the best trial until then."""

import contextlib

import pytest

from foundry.tracking.settings import connect


@pytest.fixture
def tracking(prefect_server, toy, monkeypatch):
    from flows.search import Sweep
    from flows.sweep_tracking import SweepTracking

    monkeypatch.setenv("DVC_ROOT", str(toy))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    options = Sweep(target="three", space={"train.lr": {"choices": [0.1, 0.2]}})
    return lambda name: SweepTracking(toy, name, options)


def trial(i, metric, rung=0):
    from flows.search import Trial

    return Trial(f"t{i}", rung, {"train.lr": i / 10}, metric)


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (RuntimeError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_it_ends_as_the_sweep_and_names_the_best_of_the_last_rung(tracking, error, status):
    with contextlib.suppress(RuntimeError, KeyboardInterrupt), tracking("abc") as t:
        t.trials += [trial(1, 1.0), trial(2, 3.0, rung=1), trial(3, 2.0, rung=1), trial(4, None, rung=2)]
        assert t.file.exists()
        if error:
            raise error
    run = connect(t.uri).get_run(t.run_id)
    assert run.info.status == status and run.info.run_name == "sweep abc" and not t.file.exists()
    assert run.data.tags["best.experiment"] == "t3" and run.data.metrics == {"best_val_bits_per_byte": 2.0, "trials": 4}


def test_the_run_of_a_killed_sweep_is_closed_and_a_retry_resumes_it(tracking, toy):
    from flows.sweep_tracking import close_sweep

    t = tracking("abc")
    t.__enter__()
    close_sweep(toy, "abc")
    assert connect(t.uri).get_run(t.run_id).info.status == "KILLED" and not t.file.exists()
    close_sweep(toy, "abc")  # nothing is open
    with tracking("abc") as again:
        assert again.run_id == t.run_id and connect(t.uri).get_run(t.run_id).info.status == "RUNNING"
    assert connect(t.uri).get_run(t.run_id).info.status == "FINISHED"
