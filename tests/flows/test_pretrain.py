"""The flow over a toy pipeline on a real Prefect server: isolation, states, order, retries, limits, artifacts."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from prefect_api import wait_for_text, wait_gone
from pydantic import ValidationError
from toy import ROOT, git

from foundry.config import ConfigError, read_yaml

ALL = ("one", "two", "side", "three")


@pytest.fixture
def flow(prefect_server, toy):
    from flows.pretrain import pretrain

    return pretrain


def build(**kw):
    from flows.options import Build

    return Build(**kw)


def artifacts(key):
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = client.read_artifacts()
    return sorted((a for a in found if a.key == key), key=lambda a: a.created)


def tries(stage):
    """How often the newest task run of a stage was started."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        runs = [r for r in client.read_task_runs() if r.name == stage]
    return max(runs, key=lambda r: r.created).run_count


def repro(folder):
    done = subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def kept(toy):
    runs = sorted((toy / ".foundry/runs").glob("*/run.json"), key=lambda p: p.stat().st_mtime)
    return runs[-1].parent


def test_a_run_builds_what_is_committed_and_its_results_come_back_by_the_run_cache(flow, toy):
    (toy / "in-one").write_text("half edited")
    assert flow(build()) == dict.fromkeys(ALL, "Completed")
    assert not (toy / "dvc.lock").exists() and not (toy / "out-one").exists()
    assert list((toy / ".foundry/runs").glob("*/tree")) == []
    (toy / "in-one").write_text("one")
    text = repro(toy)
    assert text.count("is cached - skipping run") == 4 and "Running stage" not in text
    assert read_yaml(toy / "dvc.lock") == read_yaml(kept(toy) / "dvc.lock")
    assert (kept(toy) / "reports/train.json").read_bytes() == (toy / "reports/train.json").read_bytes()
    assert json.loads((kept(toy) / "run.json").read_text())["stages"][0]["why"] == "not built before"


def test_states_and_the_table_say_what_dvc_did_and_why(flow, toy):
    assert flow(build(isolated=False)) == dict.fromkeys(ALL, "Completed")
    assert flow(build(isolated=False)) == dict.fromkeys(ALL, "UpToDate")
    (toy / "in-side").write_text("other")
    states = flow(build(isolated=False))
    assert states == {**dict.fromkeys(ALL, "UpToDate"), "side": "Completed"}
    table = {r["stage"]: r for r in json.loads(artifacts("stages")[-1].data)}
    assert table["side"]["why"] == "in-side modified" and table["one"]["why"] == "nothing changed"
    (toy / "in-side").write_text("side")
    assert flow(build(isolated=False))["side"] == "Restored"
    assert flow(build(isolated=False, target="two", force=True)) == {"one": "Completed", "two": "Completed"}
    shutil.rmtree(toy / ".dvc/cache")
    (toy / "out-one").unlink()
    assert flow(build(isolated=False, target="one")) == {"one": "Completed"}
    assert json.loads(artifacts("stages")[-1].data)[0]["why"] == "out-one is not in the cache"


def test_independent_stages_run_side_by_side(flow, toy):
    (toy / "todo-two").write_text("meet side")
    (toy / "todo-side").write_text("meet two")
    assert flow(build()) == dict.fromkeys(ALL, "Completed")


def test_a_mistake_is_not_retried_and_stops_what_follows(flow, toy):
    (toy / "todo-two").write_text("fail")
    with pytest.raises(RuntimeError, match=r"(?s)two: Failed .*the reason of the failure"):
        flow(build())
    assert tries("two") == 1 and (toy / "side.pid").exists() and not (toy / "three.pid").exists()
    (toy / "todo-two").unlink()
    assert flow(build()) == {"one": "Restored", "two": "Completed", "side": "Restored", "three": "Completed"}


@pytest.mark.parametrize("what", ["away", "die"])
def test_a_publisher_that_is_away_and_a_killed_stage_are_retried(flow, toy, what):
    (toy / "todo-two").write_text(what)
    assert flow(build()) == dict.fromkeys(ALL, "Completed")
    assert tries("two") == 2


def test_a_time_limit_stops_the_stage_which_saves_and_is_not_retried(flow, toy):
    (toy / "todo-two").write_text("sleep")
    with pytest.raises(RuntimeError, match=r"two: TimedOut .*its time limit was reached"):
        flow(build(time_limits_s={"two": 8}))
    assert (toy / "two.saved").read_text() == "2" and tries("two") == 1


def test_overrides_reach_the_stage_and_the_numbers_are_shown_beside_the_last_runs(flow, toy):
    flow(build())
    flow(build(overrides={"train": {"lr": 0.004}}, others={"train.steps": 500}))
    page = artifacts("metrics")[-1].data
    assert "| validation bits per byte | 2.2000 | 3." in page and "| parameters | 12 | 12 | the same |" in page
    lock = (kept(toy) / "params.yaml").read_text()
    assert "lr: 0.004" in lock and "steps: 500" in lock and "#" in lock  # comments stay
    assert f"cp -r .foundry/runs/{kept(toy).name}/" in page
    for name in ("params.yaml", "dvc.lock"):
        shutil.copy(kept(toy) / name, toy / name)
    assert "&& dvc repro`" in page and "checkout" not in page
    assert "Running stage" not in repro(toy)
    for report in ("reports/train.json", "params.yaml", "dvc.lock"):  # files and reports of one model
        assert (toy / report).read_bytes() == (kept(toy) / report).read_bytes(), report


def test_what_the_commits_lock_names_and_the_cache_does_not_have_is_built_once(flow, toy):
    """As after a clone without a remote: the lock was written on another machine."""
    repro(toy)
    lock = read_yaml(toy / "dvc.lock")
    lock["stages"]["one"]["outs"][0]["md5"] = "0" * 32
    (toy / "dvc.lock").write_text(yaml.safe_dump(lock))
    git(toy, "add", "-A")
    git(toy, "commit", "-qm", "built elsewhere")
    shutil.rmtree(toy / ".dvc/cache")
    assert flow(build(target="one")) == {"one": "Completed"}
    assert json.loads(artifacts("stages")[-1].data)[0]["why"] == "out-one is not in the cache"
    assert flow(build(target="one")) == {"one": "Restored"}


def test_mlflow_away_at_the_end_fails_no_run(flow, toy, monkeypatch):
    monkeypatch.setenv("FOUNDRY_MLFLOW_URL", "http://127.0.0.1:1")
    (toy / ".foundry/train/none").mkdir(parents=True)
    (toy / ".foundry/train/none/run_id.json").write_text('{"uri": "http://127.0.0.1:9", "run_id": "x"}')
    assert flow(build()) == dict.fromkeys(ALL, "Completed")
    assert "http://127.0.0.1:1/#/experiments" in artifacts("mlflow")[-1].data


@pytest.mark.slow
def test_ctrl_c_of_a_run_without_a_server_saves_and_ends(toy, tmp_path):
    """As a terminal does it: to the whole process group."""
    (toy / "todo-two").write_text("sleep")
    env = {**os.environ, "FOUNDRY_ROOT": str(toy), "PREFECT_HOME": str(tmp_path / "prefect-home")}
    command = [sys.executable, "-m", "flows.pretrain", "--target", "two"]
    p = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True
    )
    stage = int(wait_for_text(toy / "two.pid", 120))
    os.killpg(p.pid, signal.SIGINT)
    assert p.wait(60) == 130 and wait_gone(stage) and (toy / "two.saved").read_text() == "2"
    assert list((toy / ".foundry/runs").glob("*/tree")) == []


@pytest.mark.parametrize(
    "wrong,message",
    [
        ({"target": "thre"}, "unknown stage 'thre'; did you mean 'three'"),
        ({"others": {"train.lrr": 1}}, "train.lrr: unknown key; did you mean 'lr'"),
        ({"overrides": {"train": {"warmup_steps": 100_000}}}, "warmup_steps"),
        ({"revision": "nosuch"}, "no revision 'nosuch'"),
        ({"time_limits_s": {"tow": 5}}, "time limits: unknown stage tow"),
        ({"isolated": False, "others": {"train.lr": 0.1}}, "isolated"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(flow, toy, wrong, message):
    with pytest.raises(ConfigError, match=message):
        flow(build(**wrong))
    assert not (toy / "one.pid").exists()


def test_a_users_mistake_fails_the_run_with_its_message_and_without_a_traceback(flow, toy):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("prefect.flow_runs")
    logger.addHandler(handler)
    try:
        state = flow(build(others={"train.lrr": 1}), return_state=True)
    finally:
        logger.removeHandler(handler)
    assert state.name == "Failed" and "train.lrr: unknown key; did you mean 'lr'" in state.message
    words = [r.getMessage() for r in records]
    assert any("unknown key" in w for w in words) and not [r for r in records if r.exc_info], words
    assert not any("Traceback" in w for w in words)


@pytest.mark.parametrize(
    "wrong", [{"stages": ["one"]}, {"overrides": {"train": {"lr": -1}}}, {"overrides": {"train": {"optimizer": "sgd"}}}]
)
def test_a_value_out_of_its_range_does_not_fit_the_form(wrong):
    with pytest.raises(ValidationError):
        build(**wrong)


def test_the_form_has_every_plain_parameter_with_its_description_and_range():
    from flows.options import Build
    from foundry.config import Config

    schema = Build.model_json_schema()
    train = schema["$defs"]["TrainSectionOverrides"]["properties"]
    assert train["lr"]["description"] == Config.model_fields["train"].annotation.model_fields["lr"].description
    assert {"exclusiveMinimum": 0, "maximum": 100, "type": "number"} in train["lr"]["anyOf"] and train["lr"][
        "default"
    ] is None
    assert schema["properties"]["target"]["enum"][0] == "all" and "laptop" in schema["properties"]["profile"]["enum"]


def test_telemetry_is_off(prefect_server):
    import os

    from prefect.settings import get_current_settings

    assert get_current_settings().server.analytics_enabled is False
    assert os.environ["DO_NOT_TRACK"] == "true" and os.environ["DVC_NO_ANALYTICS"] == "1"
