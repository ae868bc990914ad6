"""What an operator meets, on a real server with a real worker: killed processes, a server that restarts, two runs at once, cancelling."""

import os
import signal

import psutil
import pytest
from prefect_api import Api, alive, wait_for_text, wait_gone
from toy import ROOT, git, make_toy

from flows import ui as module

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
    for stage in STAGES:  # nothing of a former test is in the run cache
        (toy / f"in-{stage}").write_text(os.urandom(8).hex())
    git(toy, "commit", "-qam", "other")
    return ui, api, toy


def finishes(api, toy, **options):
    """A new run comes to its end, no lock was freed by hand, and no worktree is left."""
    for path in toy.glob("todo-*"):
        path.unlink()
    run = api.start("pretrain/manual", **options)
    assert api.until(run)["state_type"] == "COMPLETED"
    assert set(api.tasks(run).values()) <= FINE and set(api.tasks(run)) == set(STAGES)
    assert list((toy / ".foundry/runs").glob("*/tree")) == []
    return api.tasks(run)


def begin(api, toy, stage):
    """A run whose stage is at work: (run, pid of the stage)."""
    run = api.start("pretrain/manual")
    return run, int(wait_for_text(toy / f"{stage}.pid"))


def test_cancelling_in_each_stage_lets_it_save_and_the_last_run_finishes(served):
    _, api, toy = served
    for stage in ("one", "two", "three"):  # `side` is built while `two` is at work
        (toy / f"todo-{stage}").write_text("sleep")
        run, pid = begin(api, toy, stage)
        api.cancel(run)
        assert wait_gone(pid) and (toy / f"{stage}.saved").read_text() == "2"
        assert api.until(run)["state_type"] == "CANCELLED"
        for path in [*toy.glob("todo-*"), *toy.glob("*.pid")]:
            path.unlink()
    states = finishes(api, toy)
    assert states["three"] == "Completed" and states["one"] == states["two"] == "Restored"


def test_a_killed_worker_takes_its_run_along_and_the_next_one_finishes(served):
    ui, api, toy = served
    (toy / "todo-two").write_text("sleep")
    run, pid = begin(api, toy, "two")
    os.kill(ui.children["worker"].pid, signal.SIGKILL)
    ui.children["worker"].wait()
    assert wait_gone(pid) and (toy / "two.saved").exists()
    assert api.until(run)["state_type"] == "CRASHED"
    ui.spawn("worker")
    assert finishes(api, toy)["one"] == "Restored"


def test_a_killed_flow_takes_its_stage_along_and_the_run_is_told_as_crashed(served):
    ui, api, toy = served
    (toy / "todo-two").write_text("sleep")
    run, pid = begin(api, toy, "two")
    flow = next(p for p in psutil.Process(pid).parents() if p.ppid() == ui.children["worker"].pid)
    flow.kill()
    assert wait_gone(pid) and (toy / "two.saved").exists()
    assert api.until(run)["state_type"] == "CRASHED"
    assert finishes(api, toy)["one"] == "Restored"


def test_a_server_that_is_killed_and_started_again_harms_no_run(served):
    ui, api, toy = served
    (toy / "todo-two").write_text("nap 12")
    run, _ = begin(api, toy, "two")
    os.killpg(ui.children["prefect-server"].pid, signal.SIGKILL)
    ui.children["prefect-server"].wait()
    ui.spawn("prefect-server")
    ui.wait_for(f"{ui.prefect_url}/api/health")
    assert api.until(run)["state_type"] == "COMPLETED"
    assert set(api.tasks(run).values()) <= FINE and ui.dead() is None


def test_of_two_runs_that_are_due_at_once_the_second_waits_and_finds_everything_built(served):
    _, api, toy = served
    (toy / "todo-two").write_text("nap 5")
    first, second = api.start("pretrain/manual"), api.start("pretrain/manual")
    one, two = sorted((api.until(r) for r in (first, second)), key=lambda r: r["start_time"])
    assert one["state_type"] == two["state_type"] == "COMPLETED"
    assert two["start_time"] >= one["end_time"]
    assert set(api.tasks(two["id"]).values()) == {"Restored"}


def test_a_bad_value_is_refused_by_the_server_and_no_run_is_made(served):
    import urllib.error

    _, api, _ = served
    for wrong in ({"target": "thre"}, {"overrides": {"train": {"lr": -1}}}, {"forse": True}):
        with pytest.raises(urllib.error.HTTPError) as refused:
            api.start("pretrain/manual", **wrong)
        assert refused.value.code in (409, 422), wrong


def test_nothing_of_a_run_outlives_it(served):
    _, api, toy = served
    run, pid = begin(api, toy, "one")
    assert api.until(run)["state_type"] == "COMPLETED" and not alive(pid)
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if str(toy / ".foundry/runs") in " ".join(p.info["cmdline"] or [])
    ]
