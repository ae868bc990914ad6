"""The whole pipeline on the smoke profile, by real processes: two clones give the same bits, one of them killed while it trains."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def environment():
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DVC_", "GLIBC_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    return {
        **env,
        "PATH": path,
        "PYTHONPATH": "",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "FOUNDRY_PROGRESS": "0",
    }


def run(folder, *command, ok=True):
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment(), capture_output=True, text=True, timeout=600
    )
    text = done.stdout + done.stderr
    assert not ok or done.returncode == 0, text
    return done.returncode, text


def make_corpus(path):
    """Documents of made-up words with a skewed frequency, as JSON lines; one line is broken."""
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(2, 8))) for _ in range(1500)]
    weights = [1 / (i + 5) for i in range(len(words))]
    with open(path, "w", encoding="utf-8") as f:
        for i in range(700):
            sentences = (
                " ".join(rng.choices(words, weights, k=rng.randint(5, 14))).capitalize() + "." for _ in range(9)
            )
            f.write(json.dumps({"id": i, "title": f"Document {i}", "body": " ".join(sentences)}) + "\n")
            if i == 350:
                f.write('{"id": 351, "title": "cut of\n')


def make_clone(folder):
    """A fresh clone of the tracked files on the smoke profile with a corpus of its own."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, tracked.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    make_corpus(folder / "corpus" / "words.jsonl")
    run(folder, "foundry.cli", "profile", "smoke")
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    source = {
        "name": "words",
        "url": "file:corpus/*.jsonl",
        "format": "jsonl",
        "text": "{title}\n\n{body}",
        "license": "CC0-1.0",
    }
    params["download"]["sources"] = [source]
    params["shard"]["weights"] = {}
    params["runtime"]["checkpoint_interval"] = 5
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def repro(folder, *args, ok=True):
    return run(folder, "dvc", "--wait-for-lock", "repro", *args, ok=ok)[1]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose pipeline ran through, in a folder with a space and non-ASCII letters."""
    folder = tmp_path_factory.mktemp("whole") / "Größe 模型 one"
    folder.mkdir()
    make_clone(folder)
    return folder, repro(folder)


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


def test_another_clone_that_is_killed_while_it_trains_ends_with_the_same_lock(project, tmp_path):
    folder = make_clone(tmp_path)
    p = subprocess.Popen(
        [sys.executable, "-m", "dvc", "--wait-for-lock", "repro"], cwd=folder, env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.time() + 300
    while (
        not list(folder.glob(".foundry/train/*/checkpoints/step-*/checkpoint.json"))
        and p.poll() is None
        and time.time() < deadline
    ):
        time.sleep(0.01)
    os.killpg(p.pid, signal.SIGKILL)
    p.communicate()
    assert not (folder / "artifacts/model").exists() and list(folder.glob(".foundry/train/*/checkpoints/step-*"))
    assert "goes on from the checkpoint of step" in repro(folder)
    assert (folder / "dvc.lock").read_text() == (project[0] / "dvc.lock").read_text()
    for name in ("evaluate.json", "report.html", "train.csv", "samples.md", "loss.png", "clean.json", "data_card.md"):
        assert (folder / "reports" / name).read_bytes() == (project[0] / "reports" / name).read_bytes(), name


def test_nothing_reruns_when_nothing_or_only_runtime_changed(project):
    folder, _ = project
    assert "Running stage" not in repro(folder)
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("threads: 0", "threads: 1").replace("device: auto", "device: cpu"))
    try:
        assert "Running stage" not in repro(folder)
    finally:
        (folder / "params.yaml").write_text(text)


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
        "import mlflow, sys\nmlflow.set_tracking_uri(sys.argv[1])\nm = mlflow.pyfunc.load_model('models:/foundry-lm@champion')\n"
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


def test_the_chain_leads_back_to_the_corpus_and_can_be_built_anew_from_the_commit(copy):
    """`dvc repro` in a temporary clone with an empty cache; then again from a commit that trains differently."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], cwd=copy, check=True)
    _, text = run(copy, "foundry.cli", "trace")
    assert "file:corpus/*.jsonl (CC0-1.0)" in text and "not known here" not in text
    _, text = run(copy, "foundry.cli", "reproduce")
    assert "rebuilt, every link has the same bytes" in text
    params = (copy / "params.yaml").read_text()
    (copy / "params.yaml").write_text(params.replace("steps: 40", "steps: 39"))
    subprocess.run([*git, "commit", "-qam", "two"], cwd=copy, check=True)
    code, text = run(copy, "foundry.cli", "reproduce", "--commit", "HEAD", ok=False)
    assert (
        code == 1 and "parameters: train.steps was 40, now 39" in text and "model: " in text and "shards: " not in text
    )


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
    assert code == 1 and "is no file, no folder" in text and "Traceback" not in text


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
    ("stage", "change", "told"),
    [
        ("train", {"train": {"stesp": 5}}, "did you mean 'steps'"),
        ("train", {"train": {"steps": "many"}}, "train.steps"),
        ("download", {"download": {"sources": [{"name": "x", "url": "file:nowhere/*.txt"}]}}, "nowhere"),
        ("clean", {"clean": {"min_chars": 100_000}}, "too_short"),
        ("train_tokenizer", {"tokenizer": {"vocab_size": 500_000}}, "the largest possible is"),
        ("train", {"train": {"tokens_per_step": 128 * 10_000}}, "fewer than one batch"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_a_users_mistake_is_told_without_a_traceback(copy, stage, change, told):
    params = yaml.safe_load((copy / "params.yaml").read_text())
    for section, values in change.items():
        params[section].update(values)
    (copy / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    code, text = run(copy, f"stages.{stage}", ok=False)
    assert code == 1 and told in text and "Traceback" not in text


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
