"""The tags of a run about its commit: only changes of what the stages read make it dirty."""

import subprocess

import pytest

from foundry.tracking.lineage import lineage_tags

GRAPH = """
stages:
  train:
    cmd: train
    deps: [code/train.py, tasks, data]
    outs: [model]
    metrics: [reports/train.json: {cache: false}]
  shard:
    cmd: shard
    deps: [code/shard.py]
    outs: [data]
"""


@pytest.fixture
def root(tmp_path):
    files = {
        "dvc.yaml": GRAPH,
        "code/train.py": "1",
        "code/shard.py": "1",
        "tasks/one.jsonl": "1",
        "params.yaml": "a: 1",
    }
    for name, text in {**files, "dvc.lock": "x", "reports/train.json": "{}", "README.md": "x"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert lineage_tags(tmp_path)["git.dirty"] == "false"
    return tmp_path


UNREAD = ["params.yaml", "dvc.lock", "reports/train.json", "README.md", "notes.txt"]
READ = ["code/train.py", "dvc.yaml", "tasks/one.jsonl", "tasks/new.jsonl"]


@pytest.mark.parametrize(("name", "dirty"), [*((n, "false") for n in UNREAD), *((n, "true") for n in READ)])
def test_only_what_a_stage_reads_makes_a_run_dirty(root, name, dirty):
    text = (root / name).read_text() if (root / name).exists() else ""
    (root / name).write_text(text + "\n# changed\n")
    assert lineage_tags(root)["git.dirty"] == dirty


def test_without_a_graph_every_file_that_git_tracks_counts(root):
    (root / "dvc.yaml").unlink()
    assert lineage_tags(root)["git.dirty"] == "true"
