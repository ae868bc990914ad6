"""DVC's commits and experiments beside MLflow's runs.

They are joined by the run's fingerprint, which every revision has in `reports/train.json`.

DVC is used through its command line: this package does not import it.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.config import ConfigError, DataError, TrackingError
from foundry.tracking.names import EXPERIMENT, FINGERPRINT, REVISION, TEST_SCORE, VALIDATION
from foundry.tracking.params import flatten
from foundry.tracking.search import every_run
from foundry.tracking.settings import connect, reason
from foundry.utils.dvc_record import LOCK, parse_lock, read_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FACTS, SCORES, PARAMS = "reports/train.json", "reports/evaluate.json", "params.yaml"


@dataclass(frozen=True)
class Row:
    """A revision of DVC, a run of MLflow, or both.

    A number is given only if it is of the model of this revision or run.

    Attributes:
        name: the branch, tag or experiment; `workspace` for the files in the folder.
        steps: steps that were done; for a run that is not finished, the last one that it logged.
        val_bits_per_byte: as DVC has it.
        run_val_bits_per_byte: as MLflow has it.
        changed: parameters of an experiment that differ from the commit that it started from.
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
        """Whether DVC and MLflow have the same number; None if one of them has none."""
        mine, theirs = self.val_bits_per_byte, self.run_val_bits_per_byte
        return None if mine is None or theirs is None else math.isclose(mine, theirs, rel_tol=1e-9)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {**asdict(self), "agree": self.agree}


@dataclass(frozen=True)
class _Revision:
    """What `dvc exp show` has of a revision: the content of three files."""

    rev: str
    params: dict[str, Any]
    facts: dict[str, Any]
    scores: dict[str, Any]

    @classmethod
    def parse(cls, entry: dict[str, Any]) -> _Revision:
        data = entry.get("data") or {}

        def content(kind: str, name: str) -> dict[str, Any]:
            return ((data.get(kind) or {}).get(name) or {}).get("data") or {}

        return cls(entry["rev"], content("params", PARAMS), content("metrics", FACTS), content("metrics", SCORES))


def dvc_rows(root: str | Path = ".", commits: int = 5) -> list[Row]:
    """The workspace, the newest commits, and every experiment that started from one of them.

    Raises:
        ConfigError: if DVC is not installed, or the folder is not one of its projects.
    """
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json", "--num", str(commits)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise ConfigError(f"`dvc exp show` failed: {lines[0].removeprefix('ERROR: ')}")
    rows = []
    for entry in json.loads(done.stdout):
        base = _Revision.parse(entry)
        rows.append(_row(entry.get("name") or base.rev, base, root))
        for group in entry.get("experiments") or []:
            revision = _Revision.parse(group["revs"][0])
            row = _row(group.get("name") or revision.rev[:7], revision, root)
            rows.append(replace(row, experiment=True, changed=_changed(base, revision)))
    return rows


def _row(name: str, of: _Revision, root: str | Path) -> Row:
    row = Row(name=name, revision="" if of.rev == "workspace" else of.rev)
    if not is_current(_lock(root, row.revision), of.params):
        return row  # its reports are of an earlier model
    fingerprint, test = of.facts.get("fingerprint", ""), None
    if of.scores.get("fingerprint") == fingerprint:
        test = ((of.scores.get("test") or {}).get("bits_per_byte") or {}).get("value")
    return replace(
        row,
        fingerprint=fingerprint,
        steps=of.facts.get("steps"),
        val_bits_per_byte=of.facts.get("val_bits_per_byte"),
        test_bits_per_byte=test,
    )


def _lock(root: str | Path, revision: str) -> dict[str, Any]:
    """The stages in `dvc.lock` of a revision, or of the folder; empty if the file is missing or damaged: it proves
    nothing then.
    """
    try:
        if not revision:
            return read_lock(Path(root) / LOCK)
        command = ["git", "show", f"{revision}:./{LOCK}"]
        shown = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        return parse_lock(shown.stdout, LOCK) if shown.returncode == 0 else {}
    except DataError:
        return {}


def is_current(stages: dict[str, Any], params: dict[str, Any], stage: str = "train") -> bool:
    """Whether a stage and every stage before it were built with these parameters, and each from the current outs of the
    others.

    `dvc exp run TARGET` and an edited params.yaml leave the reports of later stages as they were: of another model.

    Args:
        stages: the stages in `dvc.lock`.
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


def _changed(base: _Revision, experiment: _Revision) -> dict[str, str]:
    old, new = flatten(base.params), flatten(experiment.params)
    return {k: v for k, v in new.items() if old.get(k) != v}


def mlflow_rows(uri: str, experiment: str) -> list[Row]:
    """Every training of an MLflow experiment, newest first.

    Raises:
        TrackingError: if MLflow cannot be reached.
    """
    try:
        client = connect(uri)
        found = client.get_experiment_by_name(experiment)
        runs = [r for r in every_run(client, found.experiment_id) if FINGERPRINT in r.data.tags] if found else []
        rows = [_run_row(client, run) for run in runs]
    except Exception as e:  # MLflow raises its own errors, SQLAlchemy's and those of the network
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
        test_bits_per_byte=metrics.get(TEST_SCORE),
        run_id=run.info.run_id,
        run_name=run.info.run_name,
        status=run.info.status,
        exp_name=tags.get(EXPERIMENT, ""),
        run_val_bits_per_byte=metrics.get(VALIDATION),
    )


def side_by_side(dvc: list[Row], mlflow: list[Row]) -> list[Row]:
    """DVC's rows in their order, each with its run; then the runs that belong to none of them.

    A revision with a result belongs to the newest finished run of its fingerprint. An experiment without a result
    belongs to the run with its name, and gets the steps and numbers of that run. A run that was killed has a row of its
    own beside the result of a later one.
    """
    by_fingerprint: dict[str, Row] = {}
    by_name: dict[str, Row] = {}
    for run in mlflow:
        if run.status == "FINISHED":
            by_fingerprint.setdefault(run.fingerprint, run)
        if run.exp_name:
            by_name.setdefault(run.exp_name, run)
    rows, used = [], set()
    for row in dvc:
        named = by_name.get(row.name) if row.experiment else None
        finished = named is not None and named.status == "FINISHED"
        same = named if finished and named.fingerprint == row.fingerprint else by_fingerprint.get(row.fingerprint)
        run = same or (named if not row.fingerprint else None)
        if run:
            used.add(run.run_id)
            row = _joined(row, run)
        rows.append(row)
    return rows + [run for run in mlflow if run.run_id not in used]


def _joined(row: Row, run: Row) -> Row:
    return replace(
        row,
        steps=run.steps if row.steps is None else row.steps,
        test_bits_per_byte=run.test_bits_per_byte if row.test_bits_per_byte is None else row.test_bits_per_byte,
        run_id=run.run_id,
        run_name=run.run_name,
        status=run.status,
        exp_name=run.exp_name,
        run_val_bits_per_byte=run.run_val_bits_per_byte,
    )


def tag_revisions(uri: str, rows: list[Row]) -> int:
    """Writes the revision of each finished experiment on its run; returns how many.

    It can be done only afterwards: DVC creates the revision long after the training has ended.

    Raises:
        TrackingError: if MLflow cannot be reached.
    """
    finished = [r for r in rows if r.experiment and r.run_id and r.revision and r.exp_name in ("", r.name)]
    try:
        client = connect(uri)
        for row in finished:
            client.set_tag(row.run_id, EXPERIMENT, row.name)
            client.set_tag(row.run_id, REVISION, row.revision)
    except Exception as e:
        raise TrackingError(f"MLflow at {uri} did not take the revisions: {reason(e)}") from e
    return len(finished)
