"""DVC's commits and experiments beside MLflow's runs. What joins them is the run's fingerprint, which `reports/train.json` holds in every revision.

DVC is asked by its command line: this package does not import it.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.config import ConfigError, DataError, TrackingError
from foundry.tracking.description import VALIDATION
from foundry.tracking.experiment import NAME
from foundry.tracking.names import FINGERPRINT
from foundry.tracking.params import flatten
from foundry.tracking.search import every_run
from foundry.tracking.settings import connect, reason
from foundry.utils.dvc_record import LOCK, parse_lock, read_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

REV = "dvc.exp_rev"
FACTS, SCORES, PARAMS = "reports/train.json", "reports/evaluate.json", "params.yaml"


@dataclass
class Row:
    """A revision of DVC, a run of MLflow, or both. A number is there only if it is of this revision's or run's own model.

    Attributes:
        steps: that were done; of a run that is not finished, the last one that it logged.
        name: the branch, tag or experiment; `workspace` for what lies in the folder.
        changed: parameters of an experiment that differ from the commit that it began from.
        val_bits_per_byte, run_val_bits_per_byte: as DVC and as MLflow have it.
    """

    name: str = ""
    revision: str = ""
    experiment: bool = False
    fingerprint: str = ""
    steps: int | None = None
    val_bits_per_byte: float | None = None
    test_bits_per_byte: float | None = None
    changed: dict[str, str] = field(default_factory=dict)
    run_id: str = ""
    run_name: str = ""
    status: str = ""
    exp_name: str = ""
    run_val_bits_per_byte: float | None = None

    @property
    def agree(self) -> bool | None:
        """Whether both sides hold the same number; None when one of them has none."""
        mine, theirs = self.val_bits_per_byte, self.run_val_bits_per_byte
        return None if mine is None or theirs is None else math.isclose(mine, theirs, rel_tol=1e-9)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "agree": self.agree}


def dvc_rows(root: str | Path = ".", commits: int = 5) -> list[Row]:
    """The workspace, the newest commits, and every experiment that began from one of them.

    Raises:
        ConfigError: if DVC is not there, or the folder is none of its projects.
    """
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json", "--num", str(commits)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise ConfigError(f"`dvc exp show` failed: {lines[0].removeprefix('ERROR: ')}")
    rows = []
    for entry in json.loads(done.stdout):
        base = _data(entry)
        rows.append(_row(entry.get("name") or entry["rev"], base, root))
        for group in entry.get("experiments") or []:
            data = _data(group["revs"][0])
            row = _row(group.get("name") or group["revs"][0]["rev"][:7], data, root)
            row.experiment, row.changed = True, _changed(base, data)
            rows.append(row)
    return rows


def _data(entry: dict[str, Any]) -> dict[str, Any]:
    return {"rev": entry["rev"], **(entry.get("data") or {})}


def _file(data: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    return ((data.get(kind) or {}).get(name) or {}).get("data") or {}


def _row(name: str, data: dict[str, Any], root: str | Path) -> Row:
    row = Row(name=name, revision="" if data["rev"] == "workspace" else data["rev"])
    facts, scores = _file(data, "metrics", FACTS), _file(data, "metrics", SCORES)
    if not is_current(_lock(root, row.revision), _file(data, "params", PARAMS)):
        return row  # its reports are of an earlier model
    row.fingerprint, row.steps = facts.get("fingerprint", ""), facts.get("steps")
    row.val_bits_per_byte = facts.get("val_bits_per_byte")
    if scores.get("fingerprint") == row.fingerprint:
        row.test_bits_per_byte = ((scores.get("test") or {}).get("bits_per_byte") or {}).get("value")
    return row


def _lock(root: str | Path, revision: str) -> dict[str, Any]:
    """The stages in `dvc.lock` of a revision, or of the folder; none if it has no such file, or a damaged one, which proves nothing."""
    try:
        if not revision:
            return read_lock(Path(root) / LOCK)
        command = ["git", "show", f"{revision}:./{LOCK}"]
        shown = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        return parse_lock(shown.stdout, LOCK) if shown.returncode == 0 else {}
    except DataError:
        return {}


def is_current(stages: dict[str, Any], params: dict[str, Any], stage: str = "train") -> bool:
    """Whether what `dvc.lock` has of a stage, and of every stage before it, was built with these parameters and from each other's outs.

    `dvc exp run TARGET` and an edited params.yaml leave the reports of later stages as they were, of another model.

    Args:
        params: sections of params.yaml.
    """
    entry = stages.get(stage)
    if entry is None:
        return False
    for key, value in (entry.get("params") or {}).get(PARAMS, {}).items():
        if _at(params, key) != value:
            return False
    makers = {out["path"]: (name, out["md5"]) for name, s in stages.items() for out in s.get("outs", [])}
    for dep in entry.get("deps", []):
        if dep["path"] in makers:
            maker, md5 = makers[dep["path"]]
            if md5 != dep["md5"] or not is_current(stages, params, maker):
                return False
    return True


def _at(params: dict[str, Any], key: str) -> Any:
    value: Any = params
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _changed(base: dict[str, Any], data: dict[str, Any]) -> dict[str, str]:
    old, new = (flatten(_file(d, "params", PARAMS)) for d in (base, data))
    return {k: v for k, v in new.items() if old.get(k) != v}


def mlflow_rows(uri: str, experiment: str) -> list[Row]:
    """Every training of an MLflow experiment, the newest first.

    Raises:
        TrackingError: if MLflow cannot be reached.
    """
    try:
        client = connect(uri)
        found = client.get_experiment_by_name(experiment)
        runs = [r for r in every_run(client, found.experiment_id) if FINGERPRINT in r.data.tags] if found else []
        rows = [_run_row(client, run) for run in runs]
    except Exception as e:  # MLflow raises its own, SQLAlchemy's and every network error
        raise TrackingError(f"MLflow at {uri} did not answer: {reason(e)}") from e
    return rows


def _run_row(client: MlflowClient, run: Run) -> Row:
    tags, metrics = run.data.tags, run.data.metrics
    planned = run.data.params.get("train.steps", "")
    steps = int(planned) if planned.isdigit() else None
    if run.info.status != "FINISHED":
        logged = client.get_metric_history(run.info.run_id, "loss") if "loss" in metrics else []
        steps = max((m.step for m in logged), default=None)
    return Row(
        fingerprint=tags[FINGERPRINT],
        steps=steps,
        test_bits_per_byte=metrics.get("test_bits_per_byte"),
        run_id=run.info.run_id,
        run_name=run.info.run_name,
        status=run.info.status,
        exp_name=tags.get(NAME, ""),
        run_val_bits_per_byte=metrics.get(VALIDATION),
    )


def side_by_side(dvc: list[Row], mlflow: list[Row]) -> list[Row]:
    """DVC's rows in their order, each with its run; then the runs that belong to none of them.

    A revision with a result belongs to the newest finished run of its fingerprint; an experiment that has none yet to the run that carries its name,
    whose steps and numbers it has then. A run that was killed has a row of its own beside the result of a later one.
    """
    by_print: dict[str, Row] = {}
    by_name: dict[str, Row] = {}
    for run in mlflow:
        if run.status == "FINISHED":
            by_print.setdefault(run.fingerprint, run)
        if run.exp_name:
            by_name.setdefault(run.exp_name, run)
    rows, used = [], set()
    for row in dvc:
        named = by_name.get(row.name) if row.experiment else None
        finished = named is not None and named.status == "FINISHED"
        same = named if finished and named.fingerprint == row.fingerprint else by_print.get(row.fingerprint)
        run = same or (named if not row.fingerprint else None)
        if run:
            used.add(run.run_id)
            row.run_id, row.run_name, row.status = run.run_id, run.run_name, run.status
            row.exp_name, row.run_val_bits_per_byte = run.exp_name, run.run_val_bits_per_byte
            row.steps = run.steps if row.steps is None else row.steps
            if row.test_bits_per_byte is None:
                row.test_bits_per_byte = run.test_bits_per_byte
        rows.append(row)
    return rows + [run for run in mlflow if run.run_id not in used]


def tag_revisions(uri: str, rows: list[Row]) -> int:
    """Writes each finished experiment's revision on its run; returns how many. DVC knows it only when the training is long over.

    Raises:
        TrackingError: if MLflow cannot be reached.
    """
    wanted = [r for r in rows if r.experiment and r.run_id and r.revision and r.exp_name in ("", r.name)]
    try:
        client = connect(uri)
        for row in wanted:
            client.set_tag(row.run_id, NAME, row.name)
            client.set_tag(row.run_id, REV, row.revision)
    except Exception as e:
        raise TrackingError(f"MLflow at {uri} did not take the revisions: {reason(e)}") from e
    return len(wanted)
