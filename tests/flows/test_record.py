"""A sweep's run in MLflow ends as the sweep did, whoever ended it, and says what was best until then."""

import contextlib

import pytest

from foundry.tracking.settings import connect


@pytest.fixture
def record(prefect_server, toy, monkeypatch):
    from flows.record import Record
    from flows.sweep import Sweep

    monkeypatch.setenv("DVC_ROOT", str(toy))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    options = Sweep(target="three", space={"train.lr": {"choices": [0.1, 0.2]}})
    return lambda name: Record(toy, name, options)


def row(i, metric, rung=0):
    return {"trial": f"t{i}", "rung": rung, "parameters": {"train.lr": i / 10}, "metric": metric, "fingerprint": None}


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (RuntimeError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_it_ends_as_the_sweep_and_names_the_best_of_the_last_rung(record, error, status):
    with contextlib.suppress(RuntimeError, KeyboardInterrupt), record("abc") as r:
        r.rows += [row(1, 1.0), row(2, 3.0, rung=1), row(3, 2.0, rung=1), row(4, None, rung=2)]
        assert r.open.exists()
        if error:
            raise error
    run = connect(r.uri).get_run(r.run_id)
    assert run.info.status == status and run.info.run_name == "sweep abc" and not r.open.exists()
    assert run.data.tags["best.experiment"] == "t3" and run.data.metrics == {"best_val_bits_per_byte": 2.0, "trials": 4}


def test_the_run_of_a_killed_sweep_is_closed_and_a_retry_goes_on_in_it(record, toy):
    from flows.record import close_record

    r = record("abc")
    r.__enter__()
    close_record(toy, "abc")
    assert connect(r.uri).get_run(r.run_id).info.status == "KILLED" and not r.open.exists()
    close_record(toy, "abc")  # nothing is open
    with record("abc") as again:
        assert again.run_id == r.run_id and connect(r.uri).get_run(r.run_id).info.status == "RUNNING"
    assert connect(r.uri).get_run(r.run_id).info.status == "FINISHED"
