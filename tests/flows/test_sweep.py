"""A sweep over the toy pipeline: a trial is a DVC experiment, the best is returned, what cannot work does not start."""

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError
from toy import git

from foundry.config import ConfigError


@pytest.fixture
def flow(prefect_server, toy):
    from flows.sweep import sweep

    return sweep


def options(**kw):
    from flows.sweep import Sweep

    kw.setdefault("target", "three")
    return Sweep(**{"others": {"runtime.tracking": False}, **kw})


def experiments(toy):
    show = subprocess.run(
        [sys.executable, "-m", "dvc", "exp", "list", "--name-only"], cwd=toy, capture_output=True, text=True
    )
    return show.stdout.split()


def test_a_grid_makes_an_experiment_of_each_point_and_returns_the_best(flow, toy):
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=toy, check=True)
    git(toy, "add", "-A")
    git(toy, "commit", "-qm", "built")
    best = flow(options(space={"train.lr": {"choices": [0.001, 0.002, 0.004]}}, at_once=2))
    assert best.parameters == {"train.lr": 0.002} and best.metric < 0.1
    names = experiments(toy)
    assert len(names) == 3 and best.name in names
    subprocess.run([sys.executable, "-m", "dvc", "exp", "apply", best.name], cwd=toy, check=True, capture_output=True)
    assert "lr: 0.002" in (toy / "params.yaml").read_text()
    done = subprocess.run([sys.executable, "-m", "dvc", "repro", "three"], cwd=toy, capture_output=True, text=True)
    assert "Running stage" not in done.stdout, done.stdout  # the trial's results are there


def test_halving_gives_the_best_one_more(flow, toy):
    found = flow(options(method="halving", space={"train.lr": {"choices": [0.002, 0.004]}}, trials=2, least=200, eta=2))
    assert found.parameters == {"train.lr": 0.002, "train.steps": 400} and found.rung == 1
    assert len(experiments(toy)) == 2 + 1
    runs = [json.loads(p.read_text()) for p in (toy / ".foundry/runs").glob("*/run.json")]
    steps = sorted(r["parameters"]["train.steps"] for r in runs if "trial" in r)
    assert steps == [200, 200, 400]


def test_a_killed_trial_is_retried(flow, toy):
    (toy / "todo-three").write_text("die")
    best = flow(options(space={"train.lr": {"choices": [0.002]}}))
    assert not (toy / "todo-three").exists() and best.parameters == {"train.lr": 0.002}


def test_when_no_trial_is_trained_to_its_end_the_reason_is_reported(flow, toy):
    (toy / "todo-one").write_text("fail")
    with pytest.raises(RuntimeError, match="none of the 2 trials was trained to its end"):
        flow(options(space={"train.lr": {"choices": [0.001, 0.002]}}))
    assert experiments(toy) == []


def test_a_missing_metric_is_reported_with_those_that_there_are(tmp_path):
    from flows.trials import metric_of

    (tmp_path / "r.json").write_text('{"a": {"b": 2, "n": NaN, "o": null}}')
    assert metric_of(tmp_path / "r.json", "a.b") == 2.0
    with pytest.raises(ConfigError, match="'c' is not among b, n, o"):
        metric_of(tmp_path / "r.json", "a.c")

    for name in ("a.n", "a.o"):
        with pytest.raises(RuntimeError, match="not a finite number"):
            metric_of(tmp_path / "r.json", name)


def test_a_metric_that_no_trial_will_have_is_refused_before_anything_runs(flow, toy):
    with pytest.raises(ConfigError, match=r"report: the stages up to three write reports/train.json; 'reports/x.json'"):
        flow(options(report="reports/x.json"))
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=toy, check=True)
    git(toy, "add", "-A")
    git(toy, "commit", "-qm", "built")
    (toy / "one.pid").unlink()
    with pytest.raises(ConfigError, match="'val_bpb' is not among fingerprint, params, val_bits_per_byte"):
        flow(options(metric="val_bpb"))
    with pytest.raises(ConfigError, match="is not a number, but str"):
        flow(options(metric="fingerprint"))
    assert not (toy / "one.pid").exists() and not list((toy / ".foundry/runs").glob("sweep-*"))


def test_without_a_report_in_the_commit_the_first_trial_ends_a_search_for_a_wrong_metric(flow, toy):
    with pytest.raises(ConfigError, match="'val_bpb' is not among fingerprint"):
        flow(options(metric="val_bpb", space={"train.lr": {"choices": [0.001, 0.002, 0.004]}}))
    assert len(list((toy / ".foundry/runs").glob("sweep-*"))) == 1 and experiments(toy) == []


def test_a_long_message_keeps_its_beginning_and_its_end():
    from flows.names import squeezed

    assert squeezed("a" * 600) == "a" * 600
    text = squeezed("stage two failed" + "x" * 9000 + "the reason")
    assert text.startswith("stage two failed") and text.endswith("the reason") and len(text) < 610


def test_trials_of_a_stage_before_training_and_of_one_commit(flow, toy):
    """A commit that somebody makes meanwhile is in none of them; there is no training to nest in MLflow."""
    first = git(toy, "rev-parse", "HEAD")
    script = toy / "stage.py"
    script.write_text(
        script.read_text()
        + "if name == 'two': import json, subprocess; Path('reports').mkdir(exist_ok=True); "
        + "subprocess.run(['git', '-C', str(home), '-c', 'user.name=t', '-c', 'user.email=t@t', 'commit', '-q', "
        + "'--allow-empty', '-m', 'meanwhile']); "
        + "import yaml; n = yaml.safe_load(open('params.yaml'))['clean']['min_chars']; "
        + "Path('reports/two.json').write_text(json.dumps({'n': n}))\n"
    )
    graph = toy / "dvc.yaml"
    graph.write_text(
        graph.read_text().replace(
            "    outs: [out-two]\n",
            "    params: [clean]\n    outs: [out-two]\n    metrics: [reports/two.json: {cache: false}]\n",
        )
    )
    git(toy, "commit", "-qam", "a report of two")
    first = git(toy, "rev-parse", "HEAD")
    best = flow(
        options(
            target="two",
            report="reports/two.json",
            metric="n",
            space={"clean.min_chars": {"choices": [9, 7, 9]}},
            others={},
        )
    )
    assert best.parameters == {"clean.min_chars": 7}
    runs = [json.loads(p.read_text()) for p in (toy / ".foundry/runs").glob("*/run.json")]
    assert [r["commit"] for r in runs] == [first] * 2 and git(toy, "rev-list", "--count", f"{first}..HEAD") == "2"


def test_a_search_that_cannot_work_is_refused_before_anything_starts(flow, toy):
    with pytest.raises(ValidationError, match="grid needs choices"):
        options(space={"train.lr": {"low": 0.1, "high": 0.2}})
    with pytest.raises(ValidationError, match="changes no result"):
        options(space={"runtime.workers": {"choices": [1, 2]}})
    with pytest.raises(ValidationError, match="10000 combinations, 1000 are allowed"):
        options(space={k: {"choices": list(range(10))} for k in "abcd"})
    with pytest.raises(ConfigError, match="no revision 'nosuch'"):
        flow(options(revision="nosuch"))
    with pytest.raises(ValidationError, match="take it out of the space"):
        options(method="halving", space={"train.steps": {"choices": [1, 2]}})
    with pytest.raises(ConfigError, match=r"the trial train.lr=-1(?s:.*)greater than 0"):
        flow(options(space={"train.lr": {"choices": [0.001, -1]}}))
    with pytest.raises(ConfigError, match="warmup_steps"):  # in the first rung
        flow(options(method="halving", space={"train.lr": {"choices": [0.001, 0.002]}}, least=5))
    with pytest.raises(ConfigError, match=r"train.steps=6000, more than the 4000 of.*3 times `least`, so least=1333 "):
        flow(options(method="halving", space={"train.lr": {"choices": [0.001, 0.002]}}, least=6000))
    with pytest.raises(ConfigError, match=r"train.steps=300, more than the 200 of a build"):  # with the overrides
        overrides = {"train.steps": 200, "runtime.tracking": False}
        flow(options(method="halving", space={"train.lr": {"choices": [0.001, 0.002]}}, least=300, others=overrides))
    assert not (toy / "one.pid").exists() and experiments(toy) == []
