"""`foundry check` repairs what a kill leaves of DVC's files; complete files, and those a living DVC uses, stay."""

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy import ROOT, git, make_toy

from foundry.config import ConfigError
from foundry.utils.dvc_files import is_complete, repair_dvc

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
LOCK = (ROOT / "dvc.lock").read_bytes()
ONE_STAGE = """
stages:
  a:
    cmd: mkdir -p out reports && cp in out/x && cp in reports/a.json && cp in model
    deps: [in]
    outs: [out, model]
    metrics: [reports/a.json: {cache: false}]
"""


@pytest.fixture
def root(tmp_path):
    """A folder with DVC's own folders, in git, with the project's dvc.lock committed."""
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    git(tmp_path, "init", "-q")
    (tmp_path / "dvc.lock").write_bytes(LOCK)
    git(tmp_path, "add", "dvc.lock")
    git(tmp_path, "commit", "-qm", "lock")
    return tmp_path


@pytest.fixture
def rwlock(root):
    return root / ".dvc/tmp/rwlock"


@pytest.mark.parametrize("left", [b"", b"\0" * 4096, LOCK[:9000], LOCK[: LOCK.index(b"size: ") + 7]])
def test_a_cut_lock_is_replaced_by_gits_version_and_what_was_left_is_kept(root, left):
    (root / "dvc.lock").write_bytes(left)
    (line,) = repair_dvc(root)
    assert "by git's version" in line and (root / "dvc.lock").read_bytes() == LOCK
    kept = root / ".foundry/dvc.lock.damaged"
    assert kept.read_bytes() == left if left.strip(b"\0") else not kept.exists()
    assert repair_dvc(root) == []


def test_without_a_version_in_git_a_cut_lock_is_removed(root):
    git(root, "rm", "-q", "--cached", "dvc.lock")
    git(root, "commit", "-qm", "none")
    (root / "dvc.lock").write_bytes(b"")
    (line,) = repair_dvc(root)
    assert line.startswith("removed dvc.lock") and not (root / "dvc.lock").exists()


def test_git_conflicts_are_not_taken_for_a_cut(root):
    text = b"<<<<<<< HEAD\n" + LOCK + b"=======\n" + LOCK + b">>>>>>> other\n"
    (root / "dvc.lock").write_bytes(text)
    with pytest.raises(ConfigError, match="conflict markers"):
        repair_dvc(root)
    assert (root / "dvc.lock").read_bytes() == text


def test_every_cut_that_dvc_refuses_is_recognised_and_no_whole_lock_is_touched(root):
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import parse_yaml
    from dvc.utils.strictyaml import YAMLValidationError, validate

    part = LOCK[: LOCK.index(b"\n  ", LOCK.index(b"params:")) + 1]  # a stage with all its kinds of entries
    refused = 0
    for end in (
        i + 1 for i, byte in enumerate(part) if byte == 10
    ):  # every other cut has no newline at the end, which is enough to recognise it
        try:
            validate(parse_yaml(part[:end].decode(), "dvc.lock"), COMPILED_LOCKFILE_SCHEMA)
        except YAMLValidationError:
            refused += 1
            assert not is_complete(part[:end]), part[:end][-200:]
    assert refused > 2 and is_complete(LOCK) and not is_complete(LOCK[:-1])
    assert repair_dvc(root) == [] and (root / "dvc.lock").read_bytes() == LOCK


@pytest.mark.parametrize("cut", ["", '{"read": {"/a": [{"pid": 1'])
def test_a_list_of_readers_that_is_cut_off_is_removed(rwlock, root, cut):
    assert repair_dvc(root) == []
    rwlock.write_text(cut)
    assert "cut off" in repair_dvc(root)[0] and not rwlock.exists()


def test_what_a_living_dvc_is_writing_stays(rwlock, root):
    rwlock.write_text("{}")
    assert repair_dvc(root) == [] and rwlock.read_text() == "{}"
    for name, path in (("rwlock.lock", rwlock), ("lock", root / "dvc.lock")):
        path.write_bytes(b"")
        with open(root / ".dvc/tmp" / name, "w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            repair_dvc(root)
            assert path.read_bytes() == b""
        assert len(repair_dvc(root)) == 1 and (not path.exists() or path.read_bytes() == LOCK)


def test_entries_of_dead_processes_of_zombies_and_of_a_number_given_again_are_removed(rwlock, root):
    """The last as after a restart of the machine: the process is younger than the list."""
    mine = {"pid": os.getpid(), "cmd": "dvc repro"}
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    rows = [{"pid": p.pid, "cmd": "dvc repro"} for p in (zombie, dead)]
    rwlock.write_text(json.dumps({"read": {"/a": [mine, *rows], "/b": rows}, "write": {"/c": rows[0], "/d": mine}}))
    assert "processes that have ended" in repair_dvc(root)[0]
    assert json.loads(rwlock.read_text()) == {"read": {"/a": [mine]}, "write": {"/d": mine}}
    assert repair_dvc(root) == []
    os.utime(rwlock, (time.time() - 10**6,) * 2)
    repair_dvc(root)
    assert json.loads(rwlock.read_text()) == {"read": {}, "write": {}}
    zombie.wait()


def test_dvc_works_again_after_the_check(tmp_path):
    toy = make_toy(tmp_path / "toy")
    (toy / ".dvc/tmp").mkdir(exist_ok=True)

    def repro():
        command = [sys.executable, "-m", "dvc", "repro", "one"]
        return subprocess.run(command, cwd=toy, capture_output=True, text=True)

    assert repro().returncode == 0
    (toy / ".dvc/tmp/rwlock").write_text("")
    (toy / "dvc.lock").write_text("")
    (toy / "out-one").unlink()
    assert "'./dvc.lock' validation failed" in repro().stderr  # docs/*/faults.md says what to do then
    done = subprocess.run([sys.executable, "-m", "foundry.cli", "check"], cwd=toy, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("which a killed DVC left cut off") == 2
    again = repro()
    assert again.returncode == 0 and "is cached - skipping run" in again.stdout and "Running" not in again.stdout


@pytest.mark.slow
def test_dvc_killed_at_each_of_its_writes_ends_with_equal_bytes_by_the_same_command(tmp_path):
    project, scratch = tmp_path / "project", tmp_path / "scratch"
    scratch.mkdir()
    project.mkdir()
    (project / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (project / "tasks").symlink_to(ROOT / "tasks")  # which the parameters name
    (project / "dvc.yaml").write_text(ONE_STAGE)
    git(project, "init", "-q")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(tmp_path / "site")}
    for value, command in ((1, "init"), (1, "repro"), (2, None)):
        (project / "in").write_text(f'{{"a": {value}}}')
        if command:
            subprocess.run([sys.executable, "-m", "dvc", command, "-q"], cwd=project, env=env, check=True)
            git(project, "add", "-A")
            git(project, "commit", "-qm", command)
    command = [sys.executable, str(HELPERS / "killed_dvc.py"), str(project), str(scratch)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row in rows:
        assert (row["killed"], row["check"], row["repro"]) == (-9, 0, 0), row
        assert not row["differing"] and not row["damaged"], row
    places = {(row["at"][1], row["at"][-1]) for row in rows}
    for place in (("/dvc.lock", "empty"), ("/dvc.lock", "half"), ("/.dvc/tmp/rwlock", "half"), ("/model", "before")):
        assert place in places, places
    repaired = "".join(row["repaired"] for row in rows)
    for words in ("dvc.lock, which", "rwlock, which", "beside its outs", "in its run cache"):
        assert words in repaired, words
