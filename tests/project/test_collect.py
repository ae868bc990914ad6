"""`foundry gc` frees what nothing refers to, and only with --yes."""

import json
import os
import subprocess
import time

import pytest
from flow_notes import build_note

from foundry.cli import main
from foundry.config import load_params
from foundry.data.tokens.index import ShardIndex
from foundry.training.identity import fingerprint, identity
from foundry.utils.files import write_json
from foundry.utils.flow_runs import write_note
from foundry.utils.locks import exclusive

OLD = time.time() - 30 * 86_400


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "params.yaml").write_text("download: {sources: [{name: one, url: 'file:corpus/x.txt'}]}\n")
    (tmp_path / ".gitignore").write_text("/.foundry\n/artifacts\n/data\n")
    write_json(tmp_path / "reports/train.json", {"fingerprint": "committed"})
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", *command], check=True)
    write_json(tmp_path / "reports/train.json", {"fingerprint": "here"})
    return tmp_path


def training(root, name, status="FINISHED", delivered=True):
    """A state folder with a checkpoint, thirty days old."""
    folder = root / ".foundry/train" / name
    write_json(folder / "identity.json", {"train.steps": 10})
    write_json(folder / "checkpoints/step-00000010/checkpoint.json", {})
    (folder / "checkpoints/step-00000010/tensors.safetensors").write_bytes(b"x" * 5000)
    write_json(folder / "run.json", {"uri": "http://127.0.0.1:9"})
    (folder / "status").write_text(status)
    (folder / "lock").write_text("1")
    if delivered:
        write_json(folder / "run_id.json", {"uri": "http://127.0.0.1:9", "run_id": "1"})
        (folder / "delivered").write_text(status)
    return folder


def age(root):
    for path in (root / ".foundry").rglob("*"):
        os.utime(path, (OLD, OLD), follow_symlinks=False)


def collected(capsys, *more):
    main(["gc", "--json", *more])
    found = json.loads(capsys.readouterr().out)
    short = {k: {p["path"].removeprefix(".foundry/"): p["why"] for p in found[k]} for k in ("free", "kept")}
    return short["free"], short["kept"], found["removed_bytes"]


def test_what_anything_refers_to_is_kept_and_the_rest_is_freed_only_when_asked(root, capsys):
    index = ShardIndex(dtype="uint16", vocab_size=400, tokenizer_sha256="t" * 64, splits={})
    (root / "data/shards").mkdir(parents=True)
    index.write(root / "data/shards")
    cfg = load_params()
    present = fingerprint(identity(cfg.model, cfg.train, cfg.seed, index.identity))
    kept = ["committed", "here", present, "running", "undelivered", "registered", "waits", "stored"]
    kept += ["tuned", "rewarded", "chat-waits"]
    for name in [*kept, "old", "stopped"]:
        training(root, name, delivered=name != "undelivered", status="KILLED" if name == "stopped" else "FINISHED")
    write_json(root / ".foundry/register/abc/artifacts/export/proof.json", {"fingerprint": "waits"})
    write_json(root / "artifacts/model/config.json", {"fingerprint": "stored"})
    write_json(root / "artifacts/chat/sft/config.json", {"fingerprint": "tuned"})
    write_json(root / "artifacts/chat/rl/config.json", {"fingerprint": "rewarded"})
    write_json(root / ".foundry/register/abd/artifacts/chat/export/proof.json", {"fingerprint": "chat-waits"})
    from foundry.tracking.settings import connect

    client = connect(f"sqlite:///{root}/.foundry/mlflow.db")
    client.create_registered_model("tiny")
    client.create_model_version(
        "tiny", str(root), tags={"foundry.fingerprint": "registered", "prefect.flow_run_id": "0a1b2c3d-9"}
    )
    for name in ("0a1b2c3d", "11111111", "22222222", "33333333"):
        write_note(root / ".foundry/runs" / name, build_note("x"))
    write_json(root / ".foundry/runs/33333333/sweep.json", {})
    age(root)
    training(root, "young")
    with exclusive(root / ".foundry/train/running/lock"):
        free, stay, removed = collected(capsys)
        assert set(free) == {"train/old", "train/stopped", "runs/11111111", "runs/22222222"} and removed == 0
        assert {f"train/{n}" for n in kept} | {"train/young", "runs/0a1b2c3d", "runs/33333333"} <= set(stay)
        assert stay["train/running"] == "it runs" and "foundry sync" in stay["train/undelivered"]
        assert (root / ".foundry/train/old").exists()
        _, _, removed = collected(capsys, "--yes")
    assert removed > 10_000
    assert {p.name for p in (root / ".foundry/train").iterdir()} == {*kept, "young"}
    assert {p.name for p in (root / ".foundry/runs").iterdir()} == {"0a1b2c3d", "33333333"}
    main(["gc"])
    out = capsys.readouterr().out
    assert "would be removed: 0.0 MiB in 0 places" in out and "dvc gc" in out and "mlflow gc" in out


def test_the_worktree_of_a_dead_run_is_removed_and_that_of_a_living_one_is_kept(root, capsys):
    for name in ("dead", "living"):
        tree = root / f".foundry/runs/{name}/tree"
        tree.parent.mkdir(parents=True)
        (tree.parent / "lock").write_text("1")
        subprocess.run(["git", "worktree", "add", "-q", "--detach", str(tree)], check=True)
    with exclusive(root / ".foundry/runs/living/lock"):
        free, stay, _ = collected(capsys, "--yes")
    assert set(free) == {"runs/dead/tree"} and stay["runs/living/tree"] == "its run is active"
    trees = subprocess.run(["git", "worktree", "list"], capture_output=True, text=True, check=True).stdout
    assert "living/tree" in trees and "dead/tree" not in trees
    assert (root / ".foundry/runs/dead").exists()  # the rest of the run is young


def test_rotated_logs_and_temporary_files_are_removed_when_they_are_old(root, capsys):
    names = ["baselines/new.json", "baselines/.new.abc.tmp", "baselines/old.json"]
    names += ["ui/worker.log", "ui/worker.log.1", "train/x/checkpoints/.step-00000004.abc.tmp/tensors.safetensors"]
    for name in names:
        (root / ".foundry" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / ".foundry" / name).write_text("x")
    (root / "data").mkdir()
    (root / "data/.shards.abc.tmp").mkdir()
    assert collected(capsys)[0] == {}
    age(root)
    os.utime(root / "data/.shards.abc.tmp", (OLD, OLD))
    os.utime(root / ".foundry/baselines/new.json")
    free, _, _ = collected(capsys, "--yes")
    assert {"ui/worker.log.1", "data/.shards.abc.tmp", "train/x"} <= set(free)
    assert {"baselines/old.json", "baselines/.new.abc.tmp"} <= set(free) and "baselines/new.json" not in free
    assert (root / ".foundry/ui/worker.log").exists() and not (root / "data/.shards.abc.tmp").exists()


def test_a_compiled_step_is_removed_when_no_training_has_used_it_for_some_days(root, capsys):
    files = [root / ".foundry/compile" / name for name in ("a-1.so", "b-2.so", ".b-2.so.xyz.tmp", "lock")]
    files[0].parent.mkdir(parents=True)
    for file in files:
        file.write_bytes(b"x" * 1000)
    age(root)
    files[0].touch()
    free, stay, _ = collected(capsys, "--yes")
    assert set(free) == {"compile/b-2.so", "compile/.b-2.so.xyz.tmp"} and "compile/a-1.so" in stay
    assert {f.name for f in files[0].parent.iterdir()} == {"a-1.so", "lock"}


def test_nothing_is_removed_while_references_are_unknown(root, capsys):
    training(root, "old")
    age(root)
    (root / "artifacts/model").mkdir(parents=True)
    (root / "artifacts/model/config.json").write_text("{")
    for params, message in (
        ("", "config.json is not readable JSON"),
        ("runtime: {tracking_uri: 'http://127.0.0.1:9'}\n", "could not ask which versions"),
    ):
        with open("params.yaml", "a") as f:
            f.write(params)
        with pytest.raises(SystemExit):
            main(["gc", "--yes", "--days", "0"])
        assert message in capsys.readouterr().err
    assert (root / ".foundry/train/old").exists()


@pytest.mark.parametrize("days", ["-1", "nan", "inf"])
def test_impossible_numbers_of_days_are_refused(root, days, capsys):
    with pytest.raises(SystemExit):
        main(["gc", "--days", days])
    assert "give 0 to 36500 days" in capsys.readouterr().err
