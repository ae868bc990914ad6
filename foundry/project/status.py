"""What the project does at this moment, what waits, and what its state takes on the disk. Behind `foundry status`.

Everything is read from files and from the system's list of processes: no server is needed, no lock is taken, nothing is written.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from foundry.config import ConfigError, FoundryError, read_yaml
from foundry.utils.files import read_json
from foundry.utils.locks import holder_of

STATE = Path(".foundry")
SIZED = ("train", "runs", "register", "downloads", "mlartifacts", "mlflow.db", "prefect", "ui")


def status(root: Path = Path(".")) -> dict[str, Any]:
    """running, stopped, waiting, ui, disk: see the functions below; JSON values."""
    trainings = list(_trainings(root))
    running = [t for t in trainings if "pid" in t]
    return {
        "running": [*running, *_stages(root), *_flows(root)],
        "stopped": [t for t in trainings if "pid" not in t and not t["finished"]],
        "waiting": [*_metrics(root), *_registrations(root)],
        "ui": _ui(root),
        "disk": _disk(root),
    }


def _trainings(root: Path) -> Iterator[dict[str, Any]]:
    """Every training with a state folder: run, step, steps, loss, logged_s_ago, finished; `pid` of one that runs."""
    for folder in sorted(p.parent for p in (root / STATE / "train").glob("*/identity.json")):
        try:
            steps = int(read_json(folder / "identity.json", "what a run is")["train.steps"])
        except (FoundryError, KeyError, TypeError, ValueError):
            continue  # it is no training's; `foundry gc` lists the folder
        saved = max((int(p.parent.name.removeprefix("step-")) for p in checkpoints(folder)), default=0)
        step, loss, when = last_point(folder / "metrics.jsonl")
        row = {"what": "training", "run": folder.name, "steps": steps, "saved_step": saved, "step": max(step, saved)}
        if loss is not None:
            row |= {"loss": loss, "logged_s_ago": round(time.time() - when, 1)}
        held = holder_of(folder / "lock")
        yield {**row, "finished": saved >= steps, **({"pid": held.pid} if held else {})}


def checkpoints(folder: Path) -> list[Path]:
    """The markers of the whole checkpoints of a training's state folder."""
    return sorted(folder.glob("checkpoints/step-*/checkpoint.json"))


def last_point(spool: Path, tail: int = 1 << 16) -> tuple[int, float | None, float]:
    """(step, loss, time in s) of the last training point of a spool, read from its end; (0, None, 0) without one."""
    try:
        with open(spool, "rb") as f:
            f.seek(max(0, os.path.getsize(spool) - tail))
            lines = f.read().split(b"\n")
    except OSError:
        return 0, None, 0.0
    for line in reversed(lines):
        try:
            point = json.loads(line)
            if "loss" in point["m"]:
                return int(point["s"]), float(point["m"]["loss"]), point["t"] / 1000
        except (ValueError, KeyError, TypeError):  # cut by a kill, or by where reading began
            continue
    return 0, None, 0.0


def _stages(root: Path) -> Iterator[dict[str, Any]]:
    """Stages that DVC builds now: `.dvc/tmp/rwlock` has who writes which out, in the project and in each flow's worktree."""
    for top in (root, *sorted((root / STATE / "runs").glob("*/tree"))):
        try:
            table = json.loads((top / ".dvc/tmp/rwlock").read_text(encoding="utf-8"))
            writers = {path: entry["write"] for path, entry in table.items() if entry.get("write")}
            stages = read_yaml(top / "dvc.yaml")["stages"]
        except (OSError, ValueError, AttributeError, TypeError, KeyError, ConfigError):
            continue  # DVC is not at work, or is just writing it
        seen = set()
        for path, writer in writers.items():
            for name in (n for n, s in stages.items() if any(path.endswith(o) for o in _outs(s))):
                if psutil.pid_exists(writer["pid"]) and name not in seen:
                    seen.add(name)
                    yield {"what": "stage", "stage": name, "pid": writer["pid"], "folder": str(top)}


def _outs(stage: dict[str, Any]) -> Iterator[str]:
    for kind in ("outs", "metrics", "plots"):
        yield from (o if isinstance(o, str) else next(iter(o)) for o in stage.get(kind, []))


def _flows(root: Path) -> Iterator[dict[str, Any]]:
    if held := holder_of(root / STATE / "runs" / "building"):
        yield {"what": "flow", "pid": held.pid, "note": held.note}


def undelivered_runs(root: Path) -> Iterator[Path]:
    """State folders of trainings that were tracked, are over, and that MLflow does not have whole."""
    for folder in sorted(p.parent for p in (root / STATE / "train").glob("*/run.json")):
        over = holder_of(folder / "tracker.lock") is None and holder_of(folder / "lock") is None
        if over and not (
            _text(folder / "delivered") == (_text(folder / "status") or "KILLED") and not undelivered(folder)
        ):
            yield folder


def _metrics(root: Path) -> Iterator[dict[str, Any]]:
    for folder in undelivered_runs(root):
        try:
            uri = read_json(folder / "run.json", "a run that was tracked")["uri"]
        except (FoundryError, KeyError, TypeError):
            uri = "an unknown address (its run.json is damaged)"
        why = f"MLflow at {uri} did not take them; `foundry sync` delivers them"
        yield {"what": "metrics", "run": folder.name, "points": undelivered(folder), "why": why}


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def undelivered(folder: Path) -> int:
    """Lines of a spool that MLflow has not."""
    try:
        offset = int((folder / "uploaded.offset").read_text())
    except (OSError, ValueError):
        offset = 0
    try:
        with open(folder / "metrics.jsonl", "rb") as f:
            f.seek(offset)
            return sum(line.endswith(b"\n") for line in f)
    except OSError:
        return 0


def _registrations(root: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((root / STATE / "register").glob("*/waiting.json")):
        why = "MLflow was away when it was built; `foundry sync` registers it"
        yield {"what": "registration", "export": path.parent.name, "why": why}


def _ui(root: Path) -> dict[str, dict[str, Any]]:
    """{server: {url, answers}} of `make ui`, as it wrote them down."""
    path = root / STATE / "ui" / "addresses.json"
    try:
        known = read_json(path, "the addresses of make ui")
        return {name: {"url": url, "answers": _answers(url)} for name, url in known.items()}
    except (FoundryError, AttributeError):
        return {}


def _answers(url: str) -> bool:
    at = urllib.parse.urlsplit(str(url))
    try:
        with socket.create_connection((at.hostname or "", at.port or 80), timeout=1):
            return True
    except (OSError, ValueError):
        return False


def _disk(root: Path) -> dict[str, Any]:
    parts = {f".foundry/{name}": size(root / STATE / name) for name in SIZED}
    parts |= {name: size(root / name) for name in ("data", "artifacts", ".dvc/cache")}
    return {"free_bytes": shutil.disk_usage(root).free, "used_bytes": {k: v for k, v in parts.items() if v}}


def size(path: Path) -> int:
    """Bytes of a file or of all files of a folder; each only once, links are not followed."""
    if path.is_file():
        return path.stat().st_size
    seen: dict[tuple[int, int], int] = {}
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                s = os.lstat(os.path.join(folder, name))
            except OSError:  # removed meanwhile
                continue
            seen[s.st_dev, s.st_ino] = s.st_size
    return sum(seen.values())


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The status for a person."""
    if not found["running"]:
        yield "nothing runs"
    for row in found["running"]:
        if row["what"] == "training":
            loss = f", loss {row['loss']:.3f}, logged {row['logged_s_ago']:.0f} s ago" if "loss" in row else ""
            yield f"runs: training {row['run']}, step {row['step']:,} of {row['steps']:,}{loss} (pid {row['pid']})"
        elif row["what"] == "stage":
            yield f"runs: stage {row['stage']} in {row['folder']} (dvc, pid {row['pid']})"
        else:
            yield f"runs: a flow builds this project (pid {row['pid']}) {row['note']}".rstrip()
    for row in found["stopped"]:
        yield (
            f"stopped: training {row['run']} at step {row['saved_step']:,} of {row['steps']:,}; with its parameters "
            "`dvc repro` resumes it"
        )
    for row in found["waiting"]:
        what = (
            f"{row['points']:,} points of run {row['run']}"
            if row["what"] == "metrics"
            else f"export {row['export'][:12]}"
        )
        yield f"waits: {what}: {row['why']}"
    for name, ui in found["ui"].items():
        yield f"{name}: {ui['url']}" + ("" if ui["answers"] else " (does not answer: `make ui` starts it)")
    if not found["ui"]:
        yield "no web pages: `make ui` starts them"
    used = sorted(found["disk"]["used_bytes"].items(), key=lambda kv: -kv[1])
    yield "; ".join([f"disk: {mib(found['disk']['free_bytes'])} free", *(f"{k} {mib(v)}" for k, v in used)])


def mib(n: int) -> str:
    return f"{n / 2**20:,.1f} MiB"
