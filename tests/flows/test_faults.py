"""Faults that an operator meets, on real servers with a real worker, and what the pages show.

Killed processes, a restarted server, two runs at once, cancelling.
"""

import contextlib
import json
import os
import signal
import sqlite3
import time
import urllib.error
import urllib.parse
from pathlib import Path

import psutil
import pytest
from browser import look, look_and_listen, needs_browser
from prefect_api import Api, wait_for_text, wait_gone, wait_until
from toy import ROOT, git, make_toy
from tracking_servers import tracker

from flows import ui as module
from foundry.tracking.nested import begin_parent, end_parent, nest
from foundry.tracking.settings import connect

pytestmark = pytest.mark.slow
STAGES = ("one", "two", "side", "three")
FINE = {"Completed", "Restored", "UpToDate"}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """The servers, the worker and a project that they serve."""
    base = tmp_path_factory.mktemp("house")
    toy = make_toy(base / "Größe 模型")
    for name in ("flows", "foundry"):  # the flows' own code: a deployment names files of its project
        (toy / name).symlink_to(ROOT / name)
    (toy / "prefect.yaml").write_text((ROOT / "prefect.yaml").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(base / "prefect"))
        patch.setenv("FOUNDRY_ROOT", str(toy))
        ui = module.start(toy, 0, 0)
        yield ui, Api(ui.prefect_url), toy
        ui.stop()


@pytest.fixture
def served(house):
    ui, api, toy = house
    for path in [*toy.glob("todo-*"), *toy.glob("*.pid"), *toy.glob("*.saved")]:
        path.unlink()
    for stage in STAGES:  # nothing of an earlier test is in the run cache
        (toy / f"in-{stage}").write_text(os.urandom(8).hex())
    git(toy, "commit", "-qam", "other")
    return ui, api, toy


def finishes(api, toy, **options):
    """A new run completes, without a lock released by hand, and leaves no worktree."""
    for path in toy.glob("todo-*"):
        path.unlink()
    run = api.start("pretrain/manual", **options)
    assert api.until(run)["state_type"] == "COMPLETED"
    assert set(api.tasks(run).values()) <= FINE and set(api.tasks(run)) == set(STAGES)
    assert list((toy / ".foundry/runs").glob("*/tree")) == []
    return api.tasks(run)


def begin(api, toy, stage):
    """Starts a run and waits until a stage runs: (run, pid of the stage)."""
    run = api.start("pretrain/manual")
    return run, int(wait_for_text(toy / f"{stage}.pid"))


def test_cancelling_lets_the_stage_save_and_the_last_run_finishes(served):
    _, api, toy = served
    for stage in ("one", "three"):
        (toy / f"todo-{stage}").write_text("sleep")
        run, pid = begin(api, toy, stage)
        api.cancel(run)
        assert wait_gone(pid) and (toy / f"{stage}.saved").read_text() == "2"
        assert api.until(run)["state_type"] == "CANCELLED"
        for path in [*toy.glob("todo-*"), *toy.glob("*.pid")]:
            path.unlink()
    states = finishes(api, toy)
    assert states["three"] == "Completed" and states["one"] == states["two"] == "Restored"


def test_a_killed_worker_ends_its_run_and_a_retry_resumes_it(served):
    ui, api, toy = served
    (toy / "todo-two").write_text("sleep")
    run, pid = begin(api, toy, "two")
    assert {name.partition("-")[0] for name in api.tasks(run)} == set(STAGES)  # of those that wait, too
    os.kill(ui.children["worker"].pid, signal.SIGKILL)
    ui.children["worker"].wait()
    assert wait_gone(pid) and (toy / "two.saved").exists()
    assert api.until(run)["state_type"] == "CRASHED"
    (toy / "todo-two").unlink()
    ui.spawn("worker")
    api.retry(run)
    assert wait_until(lambda: api.run(run)["run_count"] == 2) and api.until(run)["state_type"] == "COMPLETED"
    assert api.tasks(run) == {
        "one": "Restored",
        "two": "Completed",
        "side": api.tasks(run)["side"],
        "three": "Completed",
    }
    assert list((toy / ".foundry/runs").glob("*/tree")) == []


def test_a_killed_flow_ends_its_stage_and_the_run_is_reported_as_crashed(served):
    ui, api, toy = served
    (toy / "todo-two").write_text("sleep")
    run, pid = begin(api, toy, "two")
    flow = next(p for p in psutil.Process(pid).parents() if p.ppid() == ui.children["worker"].pid)
    flow.kill()
    assert wait_gone(pid) and (toy / "two.saved").exists()
    assert api.until(run)["state_type"] == "CRASHED"
    assert wait_until(lambda: list((toy / ".foundry/runs").glob("*/tree")) == [])
    assert finishes(api, toy)["one"] == "Restored"


def test_a_server_that_is_away_while_stages_work_and_end_harms_no_run(served):
    ui, api, toy = served
    (toy / "todo-two").write_text("nap 6")
    run, _ = begin(api, toy, "two")
    os.killpg(ui.children["prefect-server"].pid, signal.SIGKILL)
    ui.children["prefect-server"].wait()
    wait_for_text(toy / "three.pid")  # progress, states of tasks and artifacts had no server
    assert wait_until(lambda: (toy / ".foundry/runs" / run[:8] / "run.json").exists())
    time.sleep(3)
    ui.spawn("prefect-server")
    ui.wait_for(f"{ui.prefect_url}/api/health")
    assert api.until(run)["state_type"] == "COMPLETED"
    assert wait_until(lambda: set(api.tasks(run).values()) <= FINE) and ui.dead() is None
    assert {"stages", "metrics"} <= set(api.artifacts(run))


def test_a_locked_database_of_prefects_delays_a_run_and_fails_none(served):
    """Another process holds SQLite's lock for longer than Prefect waits for it (10 s)."""
    _, api, toy = served
    (toy / "todo-two").write_text("nap 4")
    run, _ = begin(api, toy, "two")
    path = Path(os.environ["PREFECT_HOME"]) / "prefect.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as db:
        db.execute("BEGIN IMMEDIATE")
        time.sleep(12)
        db.execute("ROLLBACK")
    assert api.until(run)["state_type"] == "COMPLETED"
    assert wait_until(lambda: set(api.tasks(run).values()) <= FINE)


def test_of_two_runs_that_are_due_at_once_the_second_waits_and_finds_everything_built(served):
    _, api, toy = served
    (toy / "todo-two").write_text("nap 5")
    first, second = api.start("pretrain/manual", "a name that I typed"), api.start("pretrain/manual")
    one, two = sorted((api.until(r) for r in (first, second)), key=lambda r: r["start_time"])
    assert one["state_type"] == two["state_type"] == "COMPLETED"
    assert two["start_time"] >= one["end_time"]
    assert api.run(first)["name"] == "a name that I typed" and api.run(second)["name"].startswith("pretrain ")
    assert set(api.tasks(two["id"]).values()) == {"Restored"} and "progress-two" in api.artifacts(one["id"])
    runs = str(toy / ".foundry/runs")
    assert not [p for p in psutil.process_iter(["cmdline"]) if runs in " ".join(p.info["cmdline"] or [])]


def test_a_bad_value_is_refused_by_the_server_and_no_run_is_made(served):
    _, api, _ = served
    for wrong in ({"target": "thre"}, {"overrides": {"train": {"lr": -1}}}, {"forse": True}):
        with pytest.raises(urllib.error.HTTPError) as refused:
            api.start("pretrain/manual", **wrong)
        assert refused.value.code in (409, 422), wrong


@pytest.mark.browser
@needs_browser
def test_no_page_asks_another_host(served, tmp_path):
    """Prefect's first page and a run's, MLflow's first page; `tests/test_dvc.py` has the pages that are files."""
    ui, api, _ = served
    run = api.start("pretrain/manual", target="one")
    assert api.until(run)["state_type"] == "COMPLETED"
    for url, words in (
        (f"{ui.prefect_url}/", "Flow Runs"),
        (f"{ui.prefect_url}/runs/flow-run/{run}", api.run(run)["name"]),
        (f"{ui.mlflow_url}/#/experiments?workflowType=machine_learning", "Experiments"),
    ):
        page, hosts = look_and_listen(url, tmp_path)
        assert words in page and hosts == set(), (url, hosts)


@pytest.mark.browser
@needs_browser
def test_prefects_pages_show_the_run_its_artifacts_and_the_form(served, tmp_path):
    ui, api, _ = served
    run = api.start("pretrain/manual", others={"train.lr": 0.004})
    done = api.until(run)
    page = look(f"{ui.prefect_url}/runs/flow-run/{run}", tmp_path)
    assert done["name"] in page and "train.lr=0.004" in page and "Completed" in page and "4 Task runs" in page
    keys = api.artifacts(run)
    assert {"stages", "metrics", "mlflow"} <= set(keys)
    assert "not built before" in look(f"{ui.prefect_url}/artifacts/artifact/{keys['stages']}", tmp_path)
    assert "validation bits per byte" in look(f"{ui.prefect_url}/artifacts/artifact/{keys['metrics']}", tmp_path)
    deployment = api.get("deployments/name/pretrain/manual")["id"]
    form = look(f"{ui.prefect_url}/deployments/deployment/{deployment}/run", tmp_path)
    for words in (
        "Target stage",
        "this stage and those it needs",
        "Parameter overrides",
        "peak learning rate of AdamW",
    ):
        assert words in form, words


@pytest.mark.browser
@needs_browser
def test_mlflows_pages_show_the_sweep_its_trials_and_the_model_with_its_alias(served, tmp_path):
    ui, _, toy = served
    uri = f"sqlite:///{toy}/.foundry/mlflow.db"
    parent = begin_parent(uri, "e", "abc", {"method": "grid"}, "A grid search.")
    assert begin_parent(uri, "e", "abc", {"method": "grid"}, "A grid search.") == parent  # a sweep that is retried
    runs = []
    for i in range(2):
        with tracker(tmp_path / f"f{i}", uri, f"f{i}", params={"train": {"lr": 0.1 + i}}) as t:
            for step in range(3):
                t.log(step, {"loss": 3.0 - step - i})
        runs.append(nest(uri, "e", f"f{i}", parent, f"trial-{i}"))
    end_parent(uri, parent, {"best_loss": 0.0}, {"best.experiment": "trial-1"})
    client = connect(uri)
    client.create_registered_model("foundry-lm", description="A language model trained by Foundry.")
    client.create_model_version(
        "foundry-lm", source=str(tmp_path), run_id=runs[1], description="1.4399 bits per byte on test"
    )
    client.set_registered_model_alias("foundry-lm", "champion", "1")
    where = client.get_run(parent).info.experiment_id

    def page(path):
        return look(f"{ui.mlflow_url}/#/{path}", tmp_path / "c", 40_000)

    training = "workflowType=machine_learning"
    assert "sweep abc" in page(f"experiments/{where}/runs?{training}")
    charts = page(f"experiments/{where}/runs?{training}&compareRunsMode=CHART")
    assert "Search metric charts" in charts and "best_loss" in charts
    sweep = page(f"experiments/{where}/runs/{parent}?{training}")
    assert "A grid search." in sweep and "Child runs" in sweep and "best_loss" in sweep
    both = urllib.parse.quote(json.dumps(runs))
    compared = page(f"compare-runs?runs={both}&experiments=%5B%22{where}%22%5D")
    assert "Comparing 2 Runs" in compared and "Parallel Coordinates" in compared and "train.lr" in compared
    model = page("models/foundry-lm")
    assert "champion" in model and "1.4399 bits per byte" in model
