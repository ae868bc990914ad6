"""A run's own folder: a git worktree of one commit, with the project's DVC cache and the project's `.foundry/`.

A scheduled run therefore never reads half-edited files, and does not change the `dvc.lock` that somebody works with.
Results come back by DVC's run cache: `dvc repro` in the project restores what the run built from the same commit. The
run's note, parameters, lock and reports stay in `.foundry/runs/NAME/`.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configobj import ConfigObj  # by which DVC reads its settings

from flows.graph import reports_of
from flows.settings import environment
from foundry.config import ConfigError, DataError, read_yaml, yaml_text
from foundry.config.pipelines import LOCKS, read_stages
from foundry.config.profiles import with_values
from foundry.utils.dvc_files import repair_dvc
from foundry.utils.files import atomic_write
from foundry.utils.flow_runs import FILE, BuildNote, TrialNote, read_note, write_note
from foundry.utils.locks import exclusive, locked_if_free

KEPT = ("params.yaml", *LOCKS, "data.lock.json")
Log = Callable[[str], None]


@dataclass
class Workspace:
    """Where a run works.

    Attributes:
        home: the project.
        root: the folder with params.yaml and dvc.yaml that is built; `home` itself if the run is not isolated.
        folder: `.foundry/runs/NAME/` of the project, which is kept.
        lost: {stage: an output that the commit's locks name and the cache does not have}.
    """

    home: Path
    root: Path
    folder: Path
    commit: str = ""
    lost: dict[str, str] = field(default_factory=dict)

    @property
    def isolated(self) -> bool:
        return self.root != self.home

    def set(self, values: dict[str, Any]) -> None:
        """Writes parameters into the run's params.yaml.

        Raises:
            ConfigError: if they are not valid; the message lists every problem, and nothing is written.
        """
        if values:
            text = with_values(self.root / "params.yaml", values, "params.yaml with the overrides")
            (self.root / "params.yaml").write_text(text, encoding="utf-8")

    def keep(self, note: BuildNote | TrialNote, built: list[str]) -> None:
        """Copies parameters, locks and the reports of the stages in `built` beside the worktree, and writes the note.

        The other reports are the commit's, of another model.
        """
        shutil.rmtree(self.folder / "reports", ignore_errors=True)  # of an earlier attempt
        for name in (*KEPT, *reports_of(self.root, built)):
            if (self.root / name).is_file():
                with atomic_write(self.folder / name) as file:
                    file.write((self.root / name).read_bytes())
        write_note(self.folder, note)


@contextmanager
def workspace(home: Path, name: str, revision: str, log: Log, *, isolated: bool = True) -> Iterator[Workspace]:
    """A worktree of a revision, removed at the end. The same name gets the same folder: a run that died resumes in it.

    Raises:
        ConfigError: if the project is not a git repository, or has no such revision.
    """
    folder = home / ".foundry" / "runs" / name
    if not isolated:
        folder.mkdir(parents=True, exist_ok=True)
        yield Workspace(home, home, folder, commit_of(home, "HEAD"))
        return
    commit = commit_named(home, revision)
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / "lock", f"run {name}", wait=10.0):
        prune(home, but=folder)
        inside = _git(home, "rev-parse", "--show-prefix")  # a project may be a folder of a larger repository
        ws = Workspace(home, folder / "tree" / inside, folder, commit)
        if revision == "HEAD":
            log_uncommitted(home, commit, log)
        try:
            _make(ws, folder / "tree")
            log(f"building in {ws.root} at {commit[:9]}")
            yield ws
        finally:
            _remove(home, folder / "tree")


def log_uncommitted(home: Path, commit: str, log: Log) -> None:
    """Logs how many tracked files have changes that the run will not contain."""
    # `git diff` always refreshes git's index; one that is killed while it does so leaves `index.lock`.
    listed = _git(home, "status", "--porcelain", "--untracked-files=no").splitlines()
    changed = [line.split(maxsplit=1)[1] for line in listed]
    if changed:
        files = ", ".join(changed[:4])
        log(f"{len(changed)} files of {home} are not committed ({files}): this run builds {commit[:9]} without them")


def commit_named(home: Path, revision: str) -> str:
    """The hash of a revision's commit.

    Raises:
        ConfigError: if there is no such revision.
    """
    commit = commit_of(home, revision)
    if not commit:
        raise ConfigError(
            f"{home} has no revision {revision!r}: an isolated run needs a git repository with that commit. "
            "Commit your work, name another revision, or switch `isolated` off"
        )
    return commit


def commit_of(home: Path, revision: str) -> str:
    """The hash of a revision's commit; empty if there is no such revision."""
    return _git(home, "rev-parse", "--verify", "-q", f"{revision}^{{commit}}", may_fail=True)


def file_at(home: Path, commit: str, path: str) -> str:
    """The text of a file of the project in a commit; empty if the commit does not have it."""
    return _git(home, "show", f"{commit}:./{path}", may_fail=True)


_SAVING = threading.Lock()


def save_experiment(ws: Workspace, name: str, stages: list[str]) -> None:
    """Saves the stages that were built as a DVC experiment of the worktree's commit.

    Reports of other stages are removed first: they are of another model. One experiment is saved at a time, because git
    worktrees share DVC's refs.
    """
    known = read_stages(ws.root)
    for report in reports_of(ws.root, [s for s in known if s not in stages]):
        (ws.root / report).unlink(missing_ok=True)
    with _SAVING:
        addresses = [known[s].address for s in stages]
        dvc(ws.root, "exp", "save", "--force", "--name", name, "--message", name, *addresses)


def prune(home: Path, but: Path | None = None) -> None:
    """Removes the worktrees of runs that died."""
    for tree in (home / ".foundry" / "runs").glob("*/tree"):
        if tree.parent != but:
            with locked_if_free(tree.parent / "lock") as free:
                if free:
                    _remove(home, tree)


def _make(ws: Workspace, tree: Path) -> None:
    link = ws.root / ".foundry"
    # A worktree that was copied together with the project belongs to the original: its git folder and state are there.
    foreign = link.is_symlink() and link.resolve() != (ws.home / ".foundry").resolve()
    if foreign or not (tree / ".git").exists() or _git(tree, "rev-parse", "HEAD", may_fail=True) != ws.commit:
        _remove(ws.home, tree)
        # Without hooks: DVC's hook would check out before it knows the cache.
        no_hooks = ("-c", f"core.hooksPath={os.devnull}")
        _git(ws.home, *no_hooks, "worktree", "add", "--detach", "--force", str(tree), ws.commit)
    if not link.is_symlink():
        link.symlink_to(ws.home / ".foundry")
    config = ConfigObj(str(ws.home / ".dvc" / "config.local"), encoding="utf-8")  # it may contain a remote's secrets
    config.setdefault("cache", {})["dir"] = dvc(ws.home, "cache", "dir")
    config.filename = str(ws.root / ".dvc" / "config.local")
    config.write()
    _bring_untracked(ws)
    # With the outputs that the commit's dvc.lock names, a stage without changes is reported as such.
    dvc(ws.root, "checkout", "--quiet", may_fail=True)
    ws.lost = _forget_lost(ws.root)


def _forget_lost(root: Path) -> dict[str, str]:
    """Removes stages whose outputs are not in the cache from the worktree's locks; returns {stage: such an output}.

    If an entry of a lock fits, DVC does not look for another result in its run cache.
    """
    status = json.loads(dvc(root, "status", "--json", may_fail=True) or "{}")
    lost = {
        stage.rpartition(":")[2]: out  # of its address
        for stage, changes in status.items()
        for change in changes
        if isinstance(change, dict)
        for out, how in change.get("changed outs", {}).items()
        if how == "not in cache"
    }
    for path in (root / name for name in LOCKS if lost and (root / name).exists()):
        lock = read_yaml(path)
        lock["stages"] = {name: entry for name, entry in lock["stages"].items() if name not in lost}
        path.write_text(yaml_text(lock), encoding="utf-8")
    return lost


def _bring_untracked(ws: Workspace) -> None:
    """Copies the user's own texts in corpus/, which are not in git, and the hashes of downloads, which may not be.

    A linked folder inside corpus/ stays a link: the stages refuse it here as they do in the project.
    """
    source = ws.home / "corpus"

    def copy(source: str, target: str) -> None:
        if os.path.exists(source) and not os.path.exists(target):  # not a dangling link
            shutil.copy2(source, target)

    def linked(folder: str, names: list[str]) -> set[str]:
        found = {n for n in names if (path := Path(folder, n)).is_symlink() and path.is_dir()}
        for name in found:
            link = ws.root / "corpus" / Path(folder, name).relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(Path(folder, name).resolve())
        return found

    if source.is_dir():
        shutil.copytree(source, ws.root / "corpus", copy_function=copy, dirs_exist_ok=True, ignore=linked)
    copy(str(ws.home / "data.lock.json"), str(ws.root / "data.lock.json"))


def _remove(home: Path, tree: Path) -> None:
    if tree.exists():
        _git(home, "worktree", "remove", "--force", "--force", str(tree), may_fail=True)
        shutil.rmtree(tree, ignore_errors=True)
    _git(home, "worktree", "prune", may_fail=True)


def building(home: Path) -> Path:
    """The lock of the build: it contains the holder's process id and flow run."""
    return home / ".foundry" / "runs" / "building"


@contextmanager
def one_at_a_time(home: Path, log: Log) -> Iterator[None]:
    """Waits until no other build of the project runs, then excludes others until the block ends.

    The kernel frees the lock when its holder dies. The work pool's limit does the same for runs of one server, but not
    for a run that was started by hand.
    """
    run = os.environ.get("PREFECT__FLOW_RUN_ID", "")  # set by Prefect's worker; flows/recovery.py reads it in the lock
    with exclusive(
        building(home),
        wait=None,
        note=run,
        on_wait=lambda e: log(f"another run builds this project (pid {e.pid} {e.note}): waiting until it ends"),
    ):
        yield


def last_kept(home: Path, report: str, but: Path) -> dict[str, Any] | None:
    """A report of the newest build that kept it, apart from the run in the folder `but`; None if there is none.

    Trials of a sweep do not count.
    """
    notes = sorted((home / ".foundry/runs").glob(f"*/{FILE}"), key=_mtime, reverse=True)
    for folder in (n.parent for n in notes if n.parent != but):
        path = folder / "reports" / report
        try:
            trial = isinstance(read_note(folder), TrialNote)
        except DataError:  # of another version, which says nothing about this build
            continue
        if path.exists() and not trial:
            return json.loads(path.read_text(encoding="utf-8"))
    return None


def _mtime(path: Path) -> float:
    return path.stat().st_mtime


def _git(root: Path, *args: str, may_fail: bool = False) -> str:
    return _output(["git", "-C", str(root), *args], root, may_fail)


def dvc(root: Path, *args: str, may_fail: bool = False) -> str:
    repair_dvc(root)
    return _output([sys.executable, "-m", "dvc", *args], root, may_fail)


def _output(command: list[str], root: Path, may_fail: bool) -> str:
    """What a command prints; empty if it may fail and does."""
    done = subprocess.run(
        command, cwd=root if root.is_dir() else None, env=environment(root), capture_output=True, text=True
    )
    if done.returncode and not may_fail:
        raise ConfigError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return "" if done.returncode else done.stdout.strip()
