"""A stage's child streams its lines, obeys its time limit, says what DVC did, and never outlives its parent."""

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect_api import alive, wait_for_text, wait_gone

from flows.graph import plan
from flows.runner import StageFailed, StageProcess, StageStopped, retryable
from flows.stages import StageRunner, retry_options
from flows.workspace import Workspace
from foundry.config import ConfigError
from foundry.config.pipelines import read_stages

ROOT = Path(__file__).resolve().parents[2]


def test_lines_are_streamed_and_what_dvc_did_is_distinguished(toy):
    lines = []
    assert StageProcess("one", toy, extra_env={"FOUNDRY_FLOW_RUN_ID": "run-7"}).execute(lines.append) == "ran"
    assert "hello from one run-7" in lines and not any("git add" in line for line in lines)
    assert StageProcess("one", toy).execute(lines.append) == "up-to-date"
    (toy / "in-one").write_text("changed")
    assert StageProcess("one", toy).execute(lines.append) == "ran"
    (toy / "in-one").write_text("one")
    assert StageProcess("one", toy).execute(lines.append) == "restored"
    assert StageProcess("one", toy, force=True).execute(lines.append) == "ran"


def test_a_failure_carries_the_stages_own_words(toy):
    (toy / "todo-one").write_text("fail")
    with pytest.raises(StageFailed, match=r"(?s)stage one failed .*the reason of the failure"):
        StageProcess("one", toy).execute(lambda line: None)


@pytest.mark.parametrize("stage", ["download", "clean", "train_tokenizer", "shard", "train", "evaluate"])
def test_a_stage_that_is_killed_is_retried_and_a_mistake_or_a_cancelled_run_is_not(stage):
    """By the policies in the project's dvc.yaml, and by DVC's own words for how its stage ended."""
    (node,) = [n for n in plan(ROOT) if n.name == stage]

    def again(code, cancelled=False):
        words = (
            f"ERROR: failed to reproduce '{stage}': failed to run: exec python -m stages.{stage}, exited with {code}"
        )

        def result():
            raise StageFailed(words, retryable([words]))

        options = retry_options(node, lambda: cancelled)
        assert options["retries"] >= 1 and len(options["retry_delay_seconds"]) == options["retries"]
        return options["retry_condition_fn"](None, None, SimpleNamespace(result=result))

    assert again(-9) and again(137) and again(75)
    assert not again(1) and not again(-9, cancelled=True)


def test_the_deadline_stops_the_whole_group_and_the_stage_saves(toy):
    (toy / "todo-one").write_text("sleep")
    process = StageProcess("one", toy, timeout_s=6.0)
    with pytest.raises(StageStopped, match="time limit"):
        process.execute(lambda line: None)
    assert wait_gone(int((toy / "one.pid").read_text()))
    assert (toy / "one.saved").read_text() == "2"  # SIGINT


def test_stop_from_another_thread_ends_the_stage(toy):
    (toy / "todo-one").write_text("sleep")
    process = StageProcess("one", toy)
    threading.Timer(5.0, process.stop, ("the run was cancelled",)).start()
    with pytest.raises(StageStopped, match="cancelled"):
        process.execute(lambda line: None)
    assert wait_gone(int((toy / "one.pid").read_text()))


def test_a_cancelled_runner_starts_no_stage(toy):
    runner = StageRunner(Workspace(toy, toy, toy))
    runner.stop()
    with pytest.raises(StageStopped, match="before it began"):
        runner.execute("one", lambda line: None)
    process = StageProcess("one", toy)
    process.stop("the run was cancelled")  # between the two
    with pytest.raises(StageStopped, match="cancelled"):
        process.execute(lambda line: None)
    assert not (toy / "out-one").exists()


def test_a_killed_flow_leaves_no_orphan(toy):
    (toy / "todo-one").write_text("sleep")
    code = (
        "import sys\nfrom pathlib import Path\nfrom flows.runner import StageProcess\n"
        "StageProcess('one', Path(sys.argv[1])).execute(print)"
    )
    flow = subprocess.Popen([sys.executable, "-c", code, str(toy)], cwd=ROOT, stdout=subprocess.DEVNULL)
    stage = int(wait_for_text(toy / "one.pid"))
    assert alive(stage)
    flow.kill()
    flow.wait()
    assert wait_gone(stage)


def test_the_plan_is_dvcs_graph():
    """Against DVC's own reading of the real dvc.yaml."""
    from dvc.repo import Repo

    with Repo(str(ROOT)) as repo:
        graph = repo.index.graph
        expected = {s.addressing: sorted({u.addressing for u in graph.successors(s)}) for s in graph.nodes}
    stages = read_stages(ROOT)
    nodes = plan(ROOT, *{s.pipeline for s in stages.values()})
    found = {stages[n.name].address: sorted(stages[u].address for u in n.upstream) for n in nodes}
    assert found == expected and len(plan(ROOT)) == 7
    nodes = plan(ROOT)
    assert nodes[4].name == "train" and nodes[4].policy.retries == 2
    for i, node in enumerate(nodes):
        assert set(node.upstream) <= {n.name for n in nodes[:i]}


def test_an_unknown_stage_is_reported_with_the_nearest_name():
    with pytest.raises(ConfigError, match="unknown stage 'trian'; did you mean 'train'"):
        plan(ROOT, "trian")
    assert [n.name for n in plan(ROOT, "shard")] == ["download", "clean", "train_tokenizer", "shard"]
