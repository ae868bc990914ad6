"""A sweep's run in MLflow, its trials nested in it. A tracker that is away fails no trial: what it did not hear of is told at the end, if it is back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import get_run_logger

from flows.search import Sweep
from foundry.config import load_params
from foundry.tracking.address import portable, resolve
from foundry.tracking.nested import begin_parent, end_parent, nest
from foundry.tracking.settings import reason, tracking_uri
from foundry.utils.files import read_json, write_json


class Record:
    """A context manager around the trials.

    Attributes:
        rows: of the trials that ended: metric, parameters, name, rung, fingerprint.
        run_id: None while MLflow has not made it.
    """

    def __init__(self, home: Path, name: str, options: Sweep) -> None:
        self.home, self.name, self.options, self.rows = home, name, options, []
        self.run_id: str | None = None
        self.open = _path(home, name)
        runtime = load_params(home / "params.yaml").runtime
        given = {k.removeprefix("runtime."): v for k, v in options.values().items() if k.startswith("runtime.")}
        runtime = runtime.model_copy(update=given)
        self.experiment, self.tracking = runtime.experiment, runtime.tracking
        self.uri = tracking_uri(runtime, home)

    def __enter__(self) -> "Record":
        self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self.run_id is None:
            self._begin()
            for row in self.rows:
                self.nest(row)
        if self.run_id is None:
            return
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        metrics, tags = {"trials": len(self.rows)}, {}
        if found := best(self.rows):
            metrics[f"best_{self.options.metric.rpartition('.')[2]}"] = found["metric"]
            tags = {f"best.{k}": str(v) for k, v in found["parameters"].items()} | {"best.experiment": found["trial"]}
        with _tolerant("the sweep's run in MLflow stays open"):
            end_parent(self.uri, self.run_id, metrics, tags, status)
            self.open.unlink()

    def _begin(self) -> None:
        if not self.tracking:
            return
        o = self.options
        note = (
            f"A {o.method} search over {', '.join(o.space)}. Its trials are nested below; the tags that begin with "
            "`best` say which was the best."
        )
        params = {"method": o.method, "space": {k: a.model_dump(exclude_none=True) for k, a in o.space.items()}}
        with _tolerant("no run in MLflow for this sweep yet"):
            self.run_id = begin_parent(self.uri, self.experiment, self.name, params, note)
            write_json(self.open, {"uri": portable(self.uri, self.home), "run_id": self.run_id})

    def nest(self, row: dict[str, Any]) -> None:
        """Puts a trial's training under the sweep; one that had none stays out."""
        if self.run_id and row["fingerprint"]:
            with _tolerant("the trial's run is not nested in MLflow"):
                nest(self.uri, self.experiment, row["fingerprint"], self.run_id, row["trial"])


def close_record(home: Path, name: str) -> None:
    """Ends the run of a sweep that was killed, if it has one that is open."""
    path = _path(home, name)
    if path.exists():
        known = read_json(path, "the sweep's run in MLflow")
        end_parent(resolve(known["uri"], home), known["run_id"], {}, {}, "KILLED")
        path.unlink()


def best(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The one with the smallest metric of the last rung that has any."""
    done = [r for r in rows if r["metric"] is not None]
    return min(done, key=lambda r: (-r["rung"], r["metric"])) if done else None


def _path(home: Path, name: str) -> Path:
    return home / ".foundry" / "runs" / name / "sweep.json"


@contextmanager
def _tolerant(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as e:  # MLflow raises its own, SQLAlchemy's and every network error
        get_run_logger().warning("%s: %s", what, reason(e))
