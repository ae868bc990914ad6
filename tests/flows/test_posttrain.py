"""The flow over a second pipeline: its stages after those that they need, its own lock, the forms that name it."""

import subprocess
import sys

import pytest
from toy import git

from flows.graph import plan
from foundry.config import ConfigError, read_yaml
from foundry.config.pipelines import read_stages

CHAT = """
stages:
  four:
    wdir: ..
    desc: plays the fine-tuning
    cmd: exec python stage.py four
    deps: [in-four, out-two]
    outs: [out-four]
    meta: {prefect: {retries: 1, retry_delay_s: 0}}
"""


@pytest.fixture
def toy(toy):
    (toy / "chat").mkdir()
    (toy / "chat/dvc.yaml").write_text(CHAT)
    (toy / "in-four").write_text("four")
    git(toy, "add", "-A")
    git(toy, "commit", "-qm", "a second pipeline")
    return toy


def repro(folder):
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "chat/dvc.yaml"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_target_is_a_stage_or_a_pipeline_with_what_it_needs(toy):
    assert [n.name for n in plan(toy)] == ["one", "two", "side", "three"]
    assert [n.name for n in plan(toy, "chat")] == [n.name for n in plan(toy, "four")] == ["one", "two", "four"]
    assert len(plan(toy, "all", "chat")) == 5
    with pytest.raises(ConfigError, match="unknown stage 'align'"):
        plan(toy, "align")
    (toy / "chat/dvc.yaml").write_text(CHAT.replace("four:", "two:"))
    with pytest.raises(ConfigError, match=r"chat/dvc.yaml and dvc.yaml both have a stage two"):
        read_stages(toy)


def test_a_run_builds_the_second_pipeline_and_its_results_come_back_by_the_run_cache(prefect_server, toy):
    from flows.options import PostBuild
    from flows.posttrain import posttrain

    built = ("one", "two", "four")
    (toy / "todo-four").write_text("die")  # it is retried by its own policy
    assert posttrain() == dict.fromkeys(built, "Completed")
    (run,) = (toy / ".foundry/runs").glob("*/run.json")
    assert set(read_yaml(run.parent / "chat/dvc.lock")["stages"]) == {"four"} and not (toy / "chat/dvc.lock").exists()
    text = repro(toy)
    assert text.count("is cached - skipping run") == 3 and "Running stage" not in text
    assert read_yaml(toy / "chat/dvc.lock") == read_yaml(run.parent / "chat/dvc.lock")
    assert posttrain(PostBuild(isolated=False)) == dict.fromkeys(built, "UpToDate")
    (toy / "in-two").write_text("other")
    assert posttrain(PostBuild(isolated=False)) == {"one": "UpToDate", "two": "Completed", "four": "Completed"}


def test_the_night_and_a_search_can_include_it(toy):
    from flows.nightly import Nightly
    from flows.search import Sweep

    assert Nightly().targets() == ["all"] and Nightly(chat=True).targets() == ["all", "chat"]
    Nightly(chat=True).check(toy)
    search = Sweep(target="four", space={"train.lr": {"choices": [0.001]}}, report="out-four", metric="x")
    with pytest.raises(ConfigError, match="the stages up to four write no report"):
        search.check(toy)
