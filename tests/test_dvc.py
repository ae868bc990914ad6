"""What DVC does: remotes, a colleague's cache, two builds at once, differences of revisions, cheap no-ops."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pipeline import commit, environment, repro, run

from foundry.utils.files import sha256_tree

pytestmark = pytest.mark.slow
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


def copy_of(finished, folder):
    """The finished project as a git repository of its own."""
    shutil.copytree(finished[0], folder, symlinks=True)
    return folder, commit(folder, "baseline")


def change(folder, section, **values):
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params[section].update(values)
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def clone_of(folder, there):
    """What a colleague gets from git; the user's own texts in corpus/ are not in git and are copied by hand."""
    subprocess.run(["git", "clone", "-q", str(folder), str(there)], check=True)
    shutil.copytree(folder / "corpus", there / "corpus", dirs_exist_ok=True)
    assert not (there / "artifacts").exists() and not (there / "data").exists()
    return there


@pytest.fixture(scope="module")
def experimented(finished, tmp_path_factory):
    """(project, baseline commit, MLflow address) after `dvc exp run` with more training steps."""
    folder, head = copy_of(finished, tmp_path_factory.mktemp("exp") / "project")
    run(folder, "dvc", "exp", "run", "--name", "longer", "-S", "train.steps=44", "train")
    return folder, head, f"sqlite:///{folder}/.foundry/mlflow.db"


def test_a_fresh_clone_pulls_from_an_s3_store_and_runs_nothing(finished, tmp_path):
    """moto's server speaks S3 on loopback; the remote is one line, its address may be in the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        env = {**KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
        options = {name.lower(): value for name, value in KEYS.items() if "KEY" in name}
        client = boto3.client("s3", endpoint_url=env["AWS_ENDPOINT_URL"], region_name="us-east-1", **options)
        client.create_bucket(Bucket="team")
        folder, _ = copy_of(finished, tmp_path / "mine")
        run(folder, "dvc", "remote", "add", "--default", "store", "s3://team/foundry")
        commit(folder, "remote")
        pushed = run(folder, "dvc", "push", **env)[1]
        assert re.search(r"\d+ files? pushed", pushed), pushed
        there = clone_of(folder, tmp_path / "colleague")
        pulled = run(there, "dvc", "pull", "dvc.yaml", **env)[1]
        assert re.search(r"files? (fetched|added)", pulled), pulled
    finally:
        server.stop()
    text = repro(there)  # the store is away: nothing is asked
    assert "Running stage" not in text and "up to date" in text, text
    for name in (
        "artifacts/model/model.safetensors",
        "artifacts/export/hf/model.safetensors",
        "data/shards/index.json",
    ):
        assert (there / name).read_bytes() == (folder / name).read_bytes(), name
    clean = subprocess.run(["git", "status", "--porcelain"], cwd=there, capture_output=True, text=True, check=True)
    assert clean.stdout == ""


def test_a_colleagues_run_cache_spares_the_training(experimented, tmp_path):
    """A local folder is the remote; the colleague has the baseline and sets parameters that were already tried here."""
    folder, _, _ = experimented
    run(folder, "dvc", "remote", "add", "--default", "--force", "--local", "store", str(tmp_path / "remote"))
    pushed = run(folder, "scripts.push")[1]
    assert re.search(r"[1-9]\d* more files of former runs pushed", pushed), pushed
    assert "0 more files" in run(folder, "scripts.push")[1]
    there = clone_of(folder, tmp_path / "colleague")
    run(there, "dvc", "remote", "add", "--default", "--local", "store", str(tmp_path / "remote"))
    change(there, "train", steps=44)
    text = repro(there, "--pull", "train")
    assert "Running stage" not in text and "is cached - skipping run" in text, text
    assert json.loads((there / "reports/train.json").read_text())["steps"] == 44
    assert (there / "artifacts/model/model.safetensors").read_bytes() == (
        folder / "artifacts/model/model.safetensors"
    ).read_bytes()
    (there / "dvc.lock").unlink()
    change(there, "train", steps=45)
    text = repro(there, "--pull", "train_tokenizer")  # a stage with a report that git keeps
    assert "Running stage" not in text and text.count("is cached - skipping run") == 3, text


def test_the_differences_between_two_revisions_are_what_a_person_wants_to_see(experimented):
    folder, base, _ = experimented
    params = json.loads(run(folder, "dvc", "params", "diff", base, "longer", "--json")[1])
    assert params == {"params.yaml": {"train.steps": {"old": 40, "new": 44, "diff": 4}}}
    metrics = json.loads(run(folder, "dvc", "metrics", "diff", base, "longer", "--json")[1])
    assert set(metrics) == {"reports/train.json"}
    changed = metrics["reports/train.json"]
    assert {"val_bits_per_byte", "val_loss", "loss", "steps", "tokens", "epochs"} <= set(changed)
    assert changed["steps"] == {"old": 40, "new": 44, "diff": 4} and changed["val_bits_per_byte"]["diff"] != 0
    table = run(folder, "dvc", "metrics", "diff", base, "longer", "--md")[1]
    assert re.search(r"\| reports/train.json +\| val_bits_per_byte +\| [\d.]+ +\| [\d.]+ +\| -?[\d.e-]+ ", table), table
    run(folder, "dvc", "plots", "diff", base, "longer", "--out", "both")
    page = (folder / "both/index.html").read_text()
    assert "training loss (nats per token)" in page and "validation (bits per byte)" in page
    for revision in (base, "longer"):
        assert f'"rev": "{revision}"' in page, revision


def test_dvc_and_mlflow_agree_on_an_experiment(experimented):
    import mlflow

    folder, base, uri = experimented
    client = mlflow.MlflowClient(uri)
    (one,) = client.search_runs(
        [client.get_experiment_by_name("foundry").experiment_id], "tags.`dvc.exp_name` = 'longer'"
    )
    assert one.info.run_name.endswith(" longer") and one.data.tags["dvc.exp_baseline_rev"] == base
    assert one.data.params["train.steps"] == "44" and "dvc.exp_rev" not in one.data.tags

    rows = json.loads(run(folder, "foundry.cli", "runs", "--json", "--tag")[1].splitlines()[-1])
    (row,) = (r for r in rows if r["experiment"])
    assert (row["name"], row["steps"], row["changed"]) == ("longer", 44, {"train.steps": "44"})
    assert row["run_id"] == one.info.run_id and row["agree"] is True
    assert row["test_bits_per_byte"] is None  # reports/evaluate.json is of the commit's model
    commits = [r for r in rows if r["revision"] == base]
    assert commits and all(r["agree"] is True and r["steps"] == 40 for r in commits)
    assert all(r["test_bits_per_byte"] > 0 for r in commits)
    assert commits[0]["run_id"] not in ("", row["run_id"])
    assert client.get_run(one.info.run_id).data.tags["dvc.exp_rev"] == row["revision"]
    revision = subprocess.run(["git", "cat-file", "-t", row["revision"]], cwd=folder, capture_output=True, text=True)
    assert revision.stdout == "commit\n"

    table = run(folder, "foundry.cli", "runs")[1]
    assert re.search(
        r"^  longer +[0-9a-f]{7} +foundry-lm-[0-9a-f]{8} longer +finished +44 .* train\.steps=44$", table, re.M
    ), table


def test_a_second_repro_says_who_is_at_work(finished, tmp_path):
    folder, _ = copy_of(finished, tmp_path / "project")
    first = subprocess.Popen(
        [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--force", "--single-item", "clean"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        for line in first.stdout:
            if line.startswith("Running stage 'clean'"):
                break
        os.killpg(first.pid, signal.SIGSTOP)  # it is at work for as long as the second one asks
        before = (folder / "dvc.lock").read_bytes()
        code, text = run(folder, "dvc", "--wait-for-lock", "repro", ok=False)
        assert first.poll() is None
        assert code != 0 and "is busy, it is being blocked by" in text and f"(PID {first.pid})" in text, text
        assert (folder / "dvc.lock").read_bytes() == before
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    assert "Running stage" in repro(folder, "clean")  # nobody freed a lock by hand


def test_a_clock_that_was_set_back_hides_no_change(finished, tmp_path):
    """A file of the same size with another letter, written a day before the one that it replaces."""
    folder = Path(shutil.copytree(finished[0], tmp_path / "copy", symlinks=True))
    assert "up to date" in run(folder, "dvc", "status", "download")[1]
    path = folder / "corpus/words.jsonl"
    data, old = bytearray(path.read_bytes()), path.stat()
    data[-20] = ord("x") if data[-20] != ord("x") else ord("y")
    path.write_bytes(data)
    os.utime(path, (old.st_mtime - 86_400,) * 2)
    assert path.stat().st_size == old.st_size
    text = run(folder, "dvc", "status", "download")[1]
    assert re.search(r"modified:\s+corpus", text), text


@pytest.mark.parametrize("command", [("repro",), ("status", "dvc.yaml")], ids=lambda c: c[0])
def test_nothing_to_do_imports_nothing_of_ours(finished, command):
    """Our part of a no-op is none: DVC reads YAML and hashes, no stage starts."""
    line = [sys.executable, "-X", "importtime", "-m", "dvc", *command]
    done = subprocess.run(line, cwd=finished[0], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and "up to date" in done.stdout, done.stdout
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "dvc" in imported and not imported & {"torch", "mlflow", "prefect", "foundry", "stages", "transformers"}


# Makes one call of a stage's process fail as on a full or read-only disk: root may write everywhere.
FAILING = """
import errno, os, tempfile
code = int(os.environ["FAIL_WITH"])
def fail(*args, **kw):
    raise OSError(code, os.strerror(code))
if code == errno.ENOSPC:
    os.fsync = fail
else:
    tempfile.mkstemp = tempfile.mkdtemp = fail
"""


OUTS = {
    "download": "data/raw",
    "clean": "data/clean",
    "train_tokenizer": "artifacts/tokenizer",
    "shard": "data/shards",
    "train": "artifacts/model",
    "evaluate": "artifacts/evaluation",
    "export": "artifacts/export",
}


@pytest.mark.parametrize(
    ("stage", "code", "words"),
    [
        ("download", 28, "No space left on device"),
        ("clean", 28, "No space left on device"),
        ("train_tokenizer", 30, "Read-only file system"),
        ("shard", 28, "No space left on device"),
        ("train", 30, "Read-only file system"),
        ("train", 28, "No space left on device"),
        ("evaluate", 30, "Read-only file system"),
        ("export", 28, "No space left on device"),
    ],
)
def test_a_disk_that_takes_nothing_is_reported_and_leaves_the_outs_unchanged(finished, tmp_path, stage, code, words):
    folder = Path(shutil.copytree(finished[0], tmp_path / "copy", symlinks=True))
    if stage == "train":
        change(folder, "train", steps=41)  # a new run: it has no checkpoint yet
    before = sha256_tree(folder / OUTS[stage])
    (tmp_path / "inject").mkdir()
    (tmp_path / "inject/sitecustomize.py").write_text(FAILING)
    status, text = run(folder, f"stages.{stage}", ok=False, PYTHONPATH=str(tmp_path / "inject"), FAIL_WITH=str(code))
    assert status == 1 and words in text and "cannot write in" in text and "MiB are free" in text, text
    assert "Traceback" not in text and f"error in stage {stage}" in text
    assert not [p for top in ("data", "artifacts", "reports") for p in (folder / top).rglob("*.tmp")]
    assert sha256_tree(folder / OUTS[stage]) == before
