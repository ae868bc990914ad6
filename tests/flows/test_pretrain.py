"""The flow over a toy pipeline on a real Prefect server: states, order, retries, artifacts."""

import json

import pytest


@pytest.fixture
def flow(prefect_server, toy):
    from flows.pretrain import pretrain

    return pretrain


def options(**kw):
    from flows.pretrain import Options

    return Options(**kw)


def artifacts(key):
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = client.read_artifacts()
    return [a for a in found if a.key == key]


def test_states_say_what_dvc_did(flow, toy):
    assert flow(options()) == {"one": "Completed", "two": "Completed", "three": "Completed"}
    assert (toy / "out-three").read_text() == "three"
    assert flow(options()) == {"one": "UpToDate", "two": "UpToDate", "three": "UpToDate"}
    assert flow(options(only=["two"], force=True)) == {"two": "Completed"}
    table = json.loads(artifacts("stages")[-1].data)
    assert {"stage", "state", "message"} <= set(table[0])


def test_a_failure_is_tried_again_by_the_stages_policy_and_stops_what_follows(flow, toy):
    (toy / "todo-two").write_text("fail")
    with pytest.raises(RuntimeError, match="two: Failed"):
        flow(options())
    assert (toy / "out-one").exists() and not (toy / "three.pid").exists()
    (toy / "todo-two").unlink()
    assert flow(options())["three"] == "Completed"


def test_the_metrics_of_the_reports_become_an_artifact(flow, toy):
    (toy / "reports").mkdir()
    (toy / "reports/evaluate.json").write_text(
        json.dumps(
            {
                "test": {"bits_per_byte": {"value": 1.4321, "low": 1.4, "high": 1.5}},
                "baselines": {"xz": {"given_train": 1.9}},
            }
        )
    )
    flow(options(only=["one"]))
    assert "1.4321" in artifacts("metrics")[-1].data and "1.9000" in artifacts("metrics")[-1].data


def test_an_unknown_stage_or_option_runs_nothing(flow, toy):
    from pydantic import ValidationError

    with pytest.raises(Exception, match="did you mean 'three'"):
        flow(options(only=["thre"]))
    with pytest.raises(ValidationError):
        options(stages=["one"])
    assert not (toy / "one.pid").exists()


def test_telemetry_is_off(prefect_server):
    import os

    from prefect.settings import get_current_settings

    assert get_current_settings().server.analytics_enabled is False
    assert os.environ["DO_NOT_TRACK"] == "true" and os.environ["DVC_NO_ANALYTICS"] == "1"
