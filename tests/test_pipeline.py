"""The complete pipeline on the smoke profile, by real processes.

Two clones give the same bits, one of them killed in every stage.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml
from pipeline import STAGES, commit, environment, make_clone, repro, run

from flows.runner import StageProcess, StageStopped

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(finished):
    return finished


@pytest.fixture
def copy(project, tmp_path):
    """The finished project, to be damaged."""
    return Path(shutil.copytree(project[0], tmp_path / "copy", symlinks=True))


def test_the_pipeline_runs_through_and_says_what_it_derived_and_wrote(project):
    folder, text = project
    for line in ("expected first loss", "bits per byte", "wrote artifacts/model"):
        assert line in text
    report = json.loads((folder / "reports/evaluate.json").read_text())
    bpb = report["test"]["bits_per_byte"]
    assert 0 < bpb["low"] < bpb["value"] < bpb["high"] < 8
    assert report["baselines"]["ppmd_order_8"]["given_train"] > 0
    clean = json.loads((folder / "reports/clean.json").read_text())
    assert (
        clean["documents"]["in"] == clean["documents"]["kept"] + sum(clean["documents"]["dropped"].values())
        and clean["records"]["quarantined"] == 1
    )
    assert (folder / "reports/loss.png").read_bytes().startswith(b"\x89PNG")
    assert "greedy" in (folder / "reports/samples.md").read_text()
    _, shown = run(folder, "dvc", "metrics", "show")  # DVC takes a key named "error" at any depth for one of its own
    assert "evaluate.json" in shown and "failed" not in shown


# The other clone's surroundings: results depend on none of them.
ELSEWHERE = {"LC_ALL": "C", "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "4321"}


def half_written(folder):
    """Files and folders that are being written: they have a temporary name beside their final one."""
    return [p for top in ("data", "artifacts", "reports") for p in (folder / top).glob(".*.tmp")]


def begun(folder, stage):
    """Whether a stage is in the middle of its work."""
    if stage == "train":
        return list(folder.glob(".foundry/train/*/checkpoints/step-*/checkpoint.json"))
    return half_written(folder)


def kill_in(folder, stage):
    """Runs `dvc repro` and kills all of it once `stage` has begun to write.

    Returns (whether the stage was cut off, what was half written).
    """
    for left in half_written(folder):  # of former kills
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    run(folder, "foundry.cli", "check")
    p = subprocess.Popen(
        [sys.executable, "-m", "dvc", "--wait-for-lock", "repro"],
        cwd=folder,
        env=environment(**ELSEWHERE),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    running, lines = "", []
    for line in p.stdout:
        lines.append(line)
        if line.startswith("Running stage '"):
            running = line.split("'")[1]
            if running == stage:
                break
    assert running == stage, "".join(lines)
    deadline = time.time() + 200
    while not begun(folder, stage) and p.poll() is None and time.time() < deadline:
        time.sleep(0.001)
    if p.poll() is None:
        os.killpg(p.pid, signal.SIGKILL)
    p.communicate()
    lock = folder / "dvc.lock"
    finished = lock.exists() and stage in yaml.safe_load(lock.read_text())["stages"]
    return not finished, half_written(folder)


def stop_in(folder, stage):
    """Stops the stage at its first word, as a flow does that is cancelled; whether it was cut off."""
    process = StageProcess(stage, folder, extra_env=environment(**ELSEWHERE))

    def on_line(line):
        if line.startswith(f"[{stage}]"):
            threading.Thread(target=process.stop, args=("the run was cancelled",)).start()

    try:
        process.execute(on_line)
    except StageStopped:
        assert not [c for c in psutil.Process().children(recursive=True) if f"stages.{stage}" in " ".join(c.cmdline())]
        return True
    return False


def test_another_clone_that_is_killed_and_stopped_in_every_stage_ends_with_the_same_lock(project, tmp_path):
    """The folder, locale, time zone, hash seed and number of workers differ, too.

    Nobody removes a lock by hand: `make repro` checks before it builds.
    """
    folder = make_clone(tmp_path)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["runtime"].update(workers=1)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    seen = {stage: (*kill_in(folder, stage), stop_in(folder, stage)) for stage in STAGES}
    cut, halves = [s for s in seen if seen[s][0]], [s for s in seen if seen[s][1]]
    stopped = [s for s in seen if seen[s][2]]
    assert "train" in stopped and len(stopped) >= 4, seen
    assert "train" in cut and len(cut) >= 6 and len(halves) >= 5, seen  # the moment of a short one may be missed
    run(folder, "foundry.cli", "check")
    repro(folder)
    assert (folder / "dvc.lock").read_text() == (project[0] / "dvc.lock").read_text()
    for name in ("evaluate.json", "report.html", "train.csv", "samples.md", "loss.png", "clean.json", "data_card.md"):
        assert (folder / "reports" / name).read_bytes() == (project[0] / "reports" / name).read_bytes(), name
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder}/.foundry/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("foundry").experiment_id])
    assert len(runs) == 1 and len(client.get_metric_history(runs[0].info.run_id, "loss")) == 21


def test_nothing_reruns_when_nothing_or_only_runtime_changed(copy):
    assert "Running stage" not in repro(copy)
    text = (copy / "params.yaml").read_text()
    (copy / "params.yaml").write_text(text.replace("threads: 0", "threads: 1").replace("device: auto", "device: cpu"))
    assert "Running stage" not in repro(copy)


def test_the_model_is_registered_once_and_loads_back(project):
    folder, _ = project
    import mlflow

    uri = f"sqlite:///{folder}/.foundry/mlflow.db"
    client = mlflow.MlflowClient(uri)
    (version,) = client.search_model_versions("name='foundry-lm'")
    assert set(client.get_registered_model("foundry-lm").aliases) == {"champion", "challenger"}
    _, text = run(folder, "foundry.cli", "register")
    assert "was registered before" in text and len(client.search_model_versions("name='foundry-lm'")) == 1
    training = client.get_run(version.run_id)
    assert training.info.status == "FINISHED" and training.data.params["train.steps"] == "40"
    assert len(client.get_metric_history(version.run_id, "loss")) == 21
    assert training.inputs.dataset_inputs
    code = (
        "import mlflow, sys\nmlflow.set_tracking_uri(sys.argv[1])\n"
        "m = mlflow.pyfunc.load_model('models:/foundry-lm@champion')\n"
        "print(m.predict(['Document '], params={'max_tokens': 5, 'temperature': 0.0}))"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", code, uri], cwd="/", env=environment(), capture_output=True, text=True
    )
    assert elsewhere.returncode == 0 and elsewhere.stdout.strip().startswith("["), elsewhere.stderr


def test_generate_continues_a_prompt_the_same_for_the_same_seed(project):
    folder, _ = project
    texts = [
        run(folder, "foundry.cli", "generate", "Document 1", "--seed", "5", "--max-new-tokens", "12")[1]
        for _ in range(2)
    ]
    assert texts[0] == texts[1] and texts[0].startswith("Document 1") and len(texts[0]) > 15
    code, text = run(folder, "foundry.cli", "generate", "x", "--top-p", "1.5", ok=False)
    assert code == 1 and "top_p" in text and "Traceback" not in text


def test_what_a_flow_built_with_overrides_leads_back_to_the_corpus_and_is_reproduced_by_its_registered_name(copy):
    """`dvc repro` runs in a temporary clone with an empty cache and with the flow's parameters.

    The folder's own parameters are others, and are not committed.
    """
    shutil.rmtree(copy / ".foundry")  # its store of models is that of the project that was copied
    commit(copy, "one")
    changed = ["train.steps=6", "train.warmup_steps=2", "runtime.checkpoint_interval=4"]
    changed += ["evaluate.baselines=false", "evaluate.tasks=[]", "export.gguf_types=[f32]"]
    _, text = run(copy, "flows.pretrain", "--set", *changed)
    assert "not registered yet" not in text, text
    (copy / "params.yaml").write_text((copy / "params.yaml").read_text() + "# edited\n")
    where = "models:/foundry-lm/1"
    _, text = run(copy, "foundry.cli", "trace", where)
    assert "file:corpus/*.jsonl (CC0-1.0)" in text and "not known here" not in text and "not committed" not in text
    assert "train.steps: 6 (the commit has 40)" in text and "runtime" not in text
    _, text = run(copy, "foundry.cli", "reproduce", where)
    assert f"{where}: rebuilt, every link has the same bytes" in text
    for name in ("dvc.lock", "params.yaml"):  # the run's results come into the folder; git has neither
        (run_folder,) = (p.parent for p in copy.glob(".foundry/runs/*/run.json"))
        shutil.copy(run_folder / name, copy / name)
    run(copy, "dvc", "checkout", "--force", "dvc.yaml")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=copy, capture_output=True, text=True, check=True).stdout
    assert f"commit      {head.strip()}\n" in run(copy, "foundry.cli", "trace")[1]
    code, text = run(copy, "foundry.cli", "verify", ok=False)
    assert code == 1 and "reports/evaluate.json: changed" in text and "artifacts" not in text  # git has the commit's


def test_two_revisions_and_a_folder_compare(copy):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], cwd=copy, check=True)
    _, text = run(copy, "foundry.cli", "compare", "HEAD", "artifacts/export")
    assert (
        "artifacts/export against HEAD" in text
        and "not distinguishable" in text
        and "noise between seeds: not known" in text
    )
    code, text = run(copy, "foundry.cli", "compare", "HEAD", "no-such-thing", ok=False)
    assert code == 1 and "is not a file, a folder" in text and "Traceback" not in text


def test_an_export_with_a_flipped_byte_is_refused(copy):
    assert "every file that is here is what was recorded" in run(copy, "foundry.cli", "verify")[1]
    path = next((copy / "artifacts/export").glob("*.gguf"))
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    code, text = run(copy, "foundry.cli", "verify", ok=False)
    assert code == 1 and path.name in text and "Traceback" not in text


@pytest.mark.parametrize(
    ("stage", "change", "reported"),
    [
        ("train", {"train": {"stesp": 5}}, "did you mean 'steps'"),
        ("train", {"train": {"steps": "many"}}, "train.steps"),
        ("download", {"download": {"sources": [{"name": "x", "url": "file:corpus/nowhere/*.txt"}]}}, "nowhere"),
        ("clean", {"clean": {"min_chars": 100_000}}, "too_short"),
        ("train_tokenizer", {"tokenizer": {"vocab_size": 500_000}}, "the largest possible is"),
        ("train", {"train": {"tokens_per_step": 128 * 10_000}}, "fewer than one batch"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_a_users_mistake_is_reported_without_a_traceback(copy, stage, change, reported):
    params = yaml.safe_load((copy / "params.yaml").read_text())
    for section, values in change.items():
        params[section].update(values)
    (copy / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    code, text = run(copy, f"stages.{stage}", ok=False)
    assert code == 1 and reported in text and "Traceback" not in text


def test_a_flipped_byte_in_a_shard_stops_training_with_its_name(copy):
    path = copy / "data/shards/train/shard-00000.arrow"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    code, text = run(copy, "stages.train", ok=False)
    assert code == 1 and "shard-00000.arrow was changed" in text and "Traceback" not in text


def test_an_unreachable_mlflow_delays_nothing_and_loses_nothing(copy):
    """A new seed is a new run: it trains with a dead address, then `foundry sync` delivers every point."""
    params = yaml.safe_load((copy / "params.yaml").read_text())
    params["seed"] = 2
    params["runtime"]["tracking_uri"] = "http://127.0.0.1:9"
    (copy / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    _, text = run(copy, "stages.train")
    assert "foundry sync" in text and (copy / "artifacts/model/model.safetensors").exists()
    uri = f"sqlite:///{copy}/.foundry/late.db"
    run(copy, "foundry.cli", "sync", "--uri", uri)
    import mlflow

    client = mlflow.MlflowClient(uri)
    runs = [
        r
        for e in client.search_experiments()
        for r in client.search_runs([e.experiment_id])
        if r.data.params.get("seed") == "2"
    ]
    assert len(runs) == 1 and len(client.get_metric_history(runs[0].info.run_id, "loss")) == 21
