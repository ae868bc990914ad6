"""Kills a real `make repro` at random moments for some time; then the same command must finish with equal bits."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml
from pipeline import STAGES, environment, run

# What `make repro` runs; $0 is the interpreter, whose path may have spaces in it.
COMMAND = '"$0" -m foundry.cli check && exec "$0" -m dvc --wait-for-lock repro'

# (signal, who gets it): all processes, as when a machine goes down or a user presses Ctrl-C in the terminal, or one of
# them, as by the OOM killer.
WAYS = [
    *((signal.SIGKILL, receiver) for receiver in ("all", "all", "dvc", "stage")),
    *((signal.SIGTERM, receiver) for receiver in ("all", "dvc", "stage")),
    *((signal.SIGINT, receiver) for receiver in ("all", "stage")),
]
PATIENCE = 120  # seconds for a stopped stage to save; what lives longer is killed


@dataclass
class Survived:
    """What was survived.

    Attributes:
        stages: number of kills by the running stage ("between" is DVC or the check).
        signals: number of kills by signal and receiver.
        builds: how often the pipeline was built from scratch.
    """

    stages: Counter = field(default_factory=Counter)
    signals: Counter = field(default_factory=Counter)
    builds: int = 0

    def __str__(self) -> str:
        def listed(counter: Counter, order: tuple[str, ...]) -> str:
            return ", ".join(f"{counter[k]} in {k}" for k in order if counter[k]) or "none"

        ways = ", ".join(f"{n} x {way}" for way, n in sorted(self.signals.items()))
        return (
            f"survived {self.stages.total()} kills in {self.builds} builds, each with equal bits at the end: "
            f"{listed(self.stages, (*STAGES, 'between'))} ({ways})"
        )


class Chaos:
    """Args:
    folder: a project of which something is to be built.
    rng: decides when, what and whom.
    """

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        self.lines: list[str] = []
        self.running = ""
        self.finished_stages = 0

    def attempt(self, limit: float | None) -> tuple[str, str] | None:
        """Runs the command and kills it within `limit` seconds (None: never): (stage, how); None if it finished before.

        Raises:
            AssertionError: if it failed without having been killed.
        """
        self.lines, self.running = [], ""
        p = subprocess.Popen(
            ["bash", "-c", COMMAND, sys.executable],
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        reader = threading.Thread(target=self._read, args=(p,))
        reader.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            p.wait(self.rng.uniform(0, limit) if limit is not None else 3600)
        if p.poll() is not None:
            self._end(p, reader)
            assert p.returncode == 0, "the command failed without having been killed:\n" + "".join(self.lines)
            return None
        assert limit is not None, "the command did not end in an hour:\n" + "".join(self.lines)
        stage = self.running or "between"
        how = self._kill(p)
        self._end(p, reader)
        return stage, how

    def _read(self, p: subprocess.Popen) -> None:
        for line in p.stdout:
            self.lines.append(line)
            if line.startswith("Running stage '"):
                self.running = line.split("'")[1]
                self.finished_stages += 1
            elif line.startswith("Updating lock file"):
                self.running = ""

    def _kill(self, p: subprocess.Popen) -> str:
        number, whom = self.rng.choice(WAYS)
        targets = _session(p.pid)
        if whom == "dvc":
            targets = [t for t in targets if t.pid == p.pid]
        elif whom == "stage":
            targets = [t for t in targets if "stages." in _line(t)] or targets
        for t in targets:
            try:
                t.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        return f"{signal.Signals(number).name} to {whom}"

    def _end(self, p: subprocess.Popen, reader: threading.Thread) -> None:
        """Waits until nothing of the command lives, saving included."""
        deadline = time.monotonic() + PATIENCE
        while (left := _session(p.pid)) and time.monotonic() < deadline:
            p.poll()
            time.sleep(0.05)
        for t in left:
            t.kill()
        p.wait()
        reader.join()


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _session(leader: int) -> list[psutil.Process]:
    """The living processes of a session."""
    found = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == leader and (process := psutil.Process(pid)).status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.Error):
            continue
    return found


def torment(intact: Path, base: Path, rng: random.Random, seconds: float, first: str = STAGES[0]) -> Survived:
    """Kills builds of copies of a project for some time.

    Each build is finished by the same command and compared with the undisturbed one.

    Args:
        intact: the undisturbed project, which was built.
        base: an empty folder.
        first: the stages before this one are taken from `intact`.

    Raises:
        AssertionError: if the command fails by itself, or ends with other bits.
    """
    survived, end = Survived(), time.monotonic() + seconds
    while survived.builds == 0 or time.monotonic() < end:
        folder = base / f"build-{survived.builds}"
        copy_unbuilt(intact, folder, first)
        chaos, limit, kills = Chaos(folder, rng), 8.0, Counter()
        while time.monotonic() < end:
            before = chaos.finished_stages
            killed = chaos.attempt(limit)
            if killed is None:
                break
            kills[killed] += 1
            print(f"{killed[1]} in {killed[0]}", flush=True)
            # Long enough that the build advances, short enough that every stage is met.
            limit = 8.0 if chaos.finished_stages - before > 1 else limit * 1.25
        if time.monotonic() >= end or not kills:
            chaos.attempt(None)
        check_equal(intact, folder)
        for (stage, how), n in kills.items():
            survived.stages[stage] += n
            survived.signals[how] += n
        survived.builds += 1
        print(f"build {survived.builds}: {kills.total()} kills, equal bits", flush=True)
        shutil.rmtree(folder)
    return survived


def copy_unbuilt(intact: Path, folder: Path, first: str) -> None:
    """Copies a built project without what is built from the stage `first` on.

    The copy has no outs of these stages, no run cache, no checkpoints and no MLflow store.
    """
    shutil.copytree(intact, folder, symlinks=True, ignore=shutil.ignore_patterns(".foundry"))
    shutil.rmtree(folder / ".dvc/cache/runs", ignore_errors=True)
    lock = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))
    kept = STAGES[: STAGES.index(first)]
    for name in STAGES[len(kept) :]:
        for out in lock["stages"].pop(name).get("outs", []):
            path = folder / out["path"]
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            cached = out["md5"].removesuffix(".dir")
            for file in (folder / ".dvc/cache/files/md5" / cached[:2]).glob(f"{cached[2:]}*"):
                file.unlink()
    if kept:
        (folder / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False), encoding="utf-8")
    else:
        (folder / "dvc.lock").unlink()


def check_equal(intact: Path, folder: Path) -> None:
    """The same hashes of everything, and nothing left to do."""
    locks = [yaml.safe_load((f / "dvc.lock").read_text(encoding="utf-8")) for f in (intact, folder)]
    assert locks[0] == locks[1], "the killed build ended with other bits"
    assert "up to date" in run(folder, "dvc", "status", "dvc.yaml")[1]
    left = [p for top in ("artifacts", "data") for p in (folder / top).rglob("*.old")]
    assert not left, left
