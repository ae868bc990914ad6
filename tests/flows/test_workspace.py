"""A run's worktree: what it contains, what is kept of it, and that a dead run leaves nothing."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from flow_notes import build_note
from toy import ROOT, git

from flows.deploy import version
from flows.workspace import last_kept, log_uncommitted, one_at_a_time, prune, workspace
from foundry.config import ConfigError
from foundry.tracking.lineage import lineage_tags
from foundry.utils.inputs import find_inputs


def quiet(line):
    pass


def test_a_worktree_has_the_commit_the_cache_the_state_and_the_corpus(toy):
    (toy / ".foundry").mkdir()
    (toy / ".foundry/mark").write_text("state")
    (toy / "corpus/deep").mkdir(parents=True)
    (toy / "corpus/deep/mine.txt").write_text("my text")
    (toy / "in-one").write_text("half edited")
    logged = []
    with workspace(toy, "a", "HEAD", logged.append) as ws:
        assert (ws.root / "in-one").read_text() == "one" and ws.commit == git(toy, "rev-parse", "HEAD")
        assert (ws.root / ".foundry/mark").read_text() == "state"
        assert (ws.root / "corpus/deep/mine.txt").read_text() == "my text"
        assert str(toy / ".dvc/cache") in (ws.root / ".dvc/config.local").read_text()
        assert git(ws.root, "status", "--porcelain") == ""
        ws.set({"train.lr": 0.5})
        ws.keep(build_note(ws.commit), built=[])
    assert any("in-one" in line and "not committed" in line for line in logged)
    assert not ws.root.exists() and "lr: 0.5" in (ws.folder / "params.yaml").read_text()
    assert (toy / ".foundry/mark").exists() and (toy / "corpus/deep/mine.txt").exists()
    assert git(toy, "worktree", "list").count("\n") == 0
    assert (toy / "in-one").read_text() == "half edited"


def test_reading_git_does_not_change_its_index(toy, monkeypatch):
    """A process that is killed while git refreshes the index leaves `index.lock`, and the user's next commit fails."""
    monkeypatch.delenv("GIT_OPTIONAL_LOCKS", raising=False)  # the flows set it for their process when they are imported
    index = toy / ".git/index"
    for read in (
        lambda: log_uncommitted(toy, "x", quiet),
        lambda: version(toy),
        lambda: lineage_tags(toy),
    ):
        stamp = time.time() - 1000 * (1 + index.stat().st_size)
        os.utime(toy / "in-one", (stamp, stamp))  # git reads the file, and would record the new time
        before = index.read_bytes()
        read()
        assert index.read_bytes() == before
    git(toy, "status")
    assert index.read_bytes() != before


def test_what_is_not_in_git_is_copied(toy, tmp_path):
    (tmp_path / "books").mkdir()
    (tmp_path / "books/a.txt").write_text("far away")
    (toy / "corpus").mkdir()
    (toy / "corpus/books").symlink_to(tmp_path / "books")
    (toy / "corpus/rel.txt").symlink_to("../in-one")
    (toy / "corpus/nowhere.txt").symlink_to("gone")
    (toy / "corpus/plain.txt").write_text("mine")
    (toy / "data.lock.json").write_text("{}")
    with workspace(toy, "a", "HEAD", quiet) as ws:
        with open(toy / "corpus/plain.txt", "a") as f:
            f.write(", half edited")
        texts = {n: (ws.root / "corpus" / n).read_text() for n in ("books/a.txt", "rel.txt", "plain.txt")}
        assert texts == {"books/a.txt": "far away", "rel.txt": "one", "plain.txt": "mine"}
        assert (ws.root / "data.lock.json").read_text() == "{}"
        with pytest.raises(ConfigError, match="DVC does not look into a linked folder"):  # as in the project itself
            find_inputs("corpus/**/*.txt", ws.root, "download")


def test_a_project_in_a_folder_of_a_larger_repository_and_with_dvcs_hooks(tmp_path):
    git(tmp_path, "init", "-q")
    sub = tmp_path / "deep/project"
    (sub / ".dvc").mkdir(parents=True)
    (sub / "in-one").write_text("one")
    dvc = [sys.executable, "-m", "dvc"]
    shutil.rmtree(sub / ".dvc")
    subprocess.run([*dvc, "init", "-q", "--subdir"], cwd=sub, check=True)
    (tmp_path / ".git/hooks/post-checkout").write_text("#!/bin/sh\necho the hook >&2; exit 1\n")
    (tmp_path / ".git/hooks/post-checkout").chmod(0o755)
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "all")
    with workspace(sub, "a", "HEAD", quiet) as ws:
        assert ws.root.parts[-3:] == ("tree", "deep", "project") and (ws.root / "in-one").read_text() == "one"
        assert (ws.root / ".foundry").resolve() == (sub / ".foundry").resolve()
    assert git(tmp_path, "worktree", "list").count("\n") == 0 and not (ws.folder / "tree").exists()


def test_secrets_and_settings_of_the_projects_own_configuration_are_copied(toy):
    (toy / ".dvc/config.local").write_text(
        "['remote \"store\"']\n    secret_access_key = abc\n[cache]\n    type = copy\n"
    )
    with workspace(toy, "a", "HEAD", quiet) as ws:
        text = (ws.root / ".dvc/config.local").read_text()
    assert "secret_access_key = abc" in text and "type = copy" in text and "dir = " in text
    assert "dir" not in (toy / ".dvc/config.local").read_text()


def test_another_revision_than_the_newest(toy):
    first = git(toy, "rev-parse", "HEAD")
    (toy / "in-one").write_text("newer")
    git(toy, "commit", "-qam", "newer")
    with workspace(toy, "a", first, quiet) as ws:
        assert (ws.root / "in-one").read_text() == "one"


def test_without_a_repository_or_the_revision_the_error_says_what_to_do(toy, tmp_path):
    with (
        pytest.raises(ConfigError, match=r"no revision 'nosuch'.*Commit your work"),
        workspace(toy, "a", "nosuch", quiet),
    ):
        pass
    with pytest.raises(ConfigError, match="git repository"), workspace(tmp_path, "a", "HEAD", quiet):
        pass


def test_a_worktree_that_was_copied_with_the_project_is_not_used_by_the_copy(toy):
    """Its git folder and its state are the original's."""
    copy = toy.with_name(f"{toy.name}-copy")
    with workspace(toy, "a", "HEAD", quiet) as theirs:
        shutil.copytree(toy, copy, symlinks=True)
        with workspace(copy, "a", "HEAD", quiet) as ws:
            assert (ws.root / ".foundry").resolve() == copy / ".foundry"
            assert Path(git(ws.root, "rev-parse", "--path-format=absolute", "--git-common-dir")) == copy / ".git"
            (ws.root / ".foundry/mark").write_text("of the copy")
        assert not (toy / ".foundry/mark").exists() and git(theirs.root, "status", "--porcelain") == ""


HOLD = """
import sys, time
from pathlib import Path
from flows.workspace import workspace, one_at_a_time
toy = Path(sys.argv[1])
with one_at_a_time(toy, print), workspace(toy, "dead", "HEAD", print) as ws:
    (ws.root / "half").write_text("x")
    print("ready", flush=True)
    time.sleep(100)
"""


def test_what_a_killed_run_left_is_removed_by_the_next_and_a_living_ones_stays(toy):
    p = subprocess.Popen([sys.executable, "-c", HOLD, str(toy)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while "ready" not in p.stdout.readline():
        pass
    tree = toy / ".foundry/runs/dead/tree"
    prune(toy)
    assert (tree / "half").exists()
    waited, held = [], threading.Event()

    def second():
        with one_at_a_time(toy, waited.append):
            held.set()

    other = threading.Thread(target=second)
    other.start()
    assert not held.wait(1.0) and f"pid {p.pid}" in waited[0]
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    assert held.wait(20)
    other.join()
    prune(toy)
    assert not tree.exists() and git(toy, "worktree", "list").count("\n") == 0


def test_the_last_kept_report_is_the_newest_ones(toy):
    assert last_kept(toy, "train.json", but=Path()) is None
    for i, name in enumerate(("a", "b")):
        with workspace(toy, name, "HEAD", quiet) as ws:
            (ws.root / "reports").mkdir()
            (ws.root / "reports/train.json").write_text(f'{{"n": {i}}}')
            ws.keep(build_note(ws.commit), built=["three"])
        time.sleep(0.02)
    assert last_kept(toy, "train.json", but=Path()) == {"n": 1}
    assert last_kept(toy, "train.json", but=toy / ".foundry/runs/b") == {"n": 0}
    with workspace(toy, "c", "HEAD", quiet) as ws:  # its report is the commit's, of another model
        (ws.root / "reports").mkdir()
        (ws.root / "reports/train.json").write_text('{"n": 9}')
        ws.keep(build_note(ws.commit), built=["one", "two"])
    assert (ws.folder / "run.json").exists() and last_kept(toy, "train.json", but=Path()) == {"n": 1}
