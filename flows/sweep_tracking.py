"""A sweep's run in MLflow, with its trials nested in it.

A tracker that is away fails no trial: what it missed is delivered at the end, if it is back by then.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import get_run_logger

from flows.search import Sweep, Trial, best
from foundry.config import load_params
from foundry.tracking.address import RunRef
from foundry.tracking.nested import begin_parent, end_parent, nest
from foundry.tracking.settings import reason, tracking_uri


class SweepTracking:
    """A context manager around the trials.

    Attributes:
        trials: those that were trained to their end.
        run_id: of the sweep's run in MLflow; None while MLflow has not made it.
    """

    def __init__(self, home: Path, name: str, options: Sweep) -> None:
        self.home, self.name, self.options = home, name, options
        self.trials: list[Trial] = []
        self.run_id: str | None = None
        self.file = sweep_file(home, name)
        runtime = load_params(home / "params.yaml").runtime
        given = {k.removeprefix("runtime."): v for k, v in options.values().items() if k.startswith("runtime.")}
        runtime = runtime.model_copy(update=given)
        self.experiment, self.tracking = runtime.experiment, runtime.tracking
        self.uri = tracking_uri(runtime, home)

    def __enter__(self) -> "SweepTracking":
        self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self.run_id is None:
            self._begin()
            for trial in self.trials:
                self.nest(trial)
        if self.run_id is None:
            return
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        metrics, tags = {"trials": len(self.trials)}, {}
        if found := best(self.trials):
            metrics[f"best_{self.options.metric.rpartition('.')[2]}"] = found.metric
            tags = {f"best.{k}": str(v) for k, v in found.parameters.items()} | {"best.experiment": found.name}
        with _warned("the sweep's run in MLflow stays open"):
            end_parent(self.uri, self.run_id, metrics, tags, status)
            self.file.unlink()

    def _begin(self) -> None:
        if not self.tracking:
            return
        o = self.options
        note = (
            f"A {o.method} search over {', '.join(o.space)}. Its trials are nested below; the tags that begin with "
            "`best` say which was the best."
        )
        params = {"method": o.method, "space": {k: a.model_dump(exclude_none=True) for k, a in o.space.items()}}
        with _warned("this sweep has no run in MLflow yet"):
            self.run_id = begin_parent(self.uri, self.experiment, self.name, params, note)
            RunRef(uri=self.uri, run_id=self.run_id).save(self.file, self.home)

    def nest(self, trial: Trial) -> None:
        """Nests a trial's training in the sweep's run; nothing for a trial without a training."""
        if self.run_id and trial.fingerprint:
            with _warned("the trial's run is not nested in MLflow"):
                nest(self.uri, self.experiment, trial.fingerprint, self.run_id, trial.name)


def close_sweep(home: Path, name: str) -> None:
    """Ends the MLflow run of a sweep that was killed; nothing if none is open."""
    file = sweep_file(home, name)
    if file.exists():
        known = RunRef.load(file, home)
        end_parent(known.uri, known.run_id, {}, {}, "KILLED")
        file.unlink()


def sweep_file(home: Path, name: str) -> Path:
    """The file that names the MLflow run of a sweep that has not ended."""
    return home / ".foundry" / "runs" / name / "sweep.json"


@contextmanager
def _warned(what: str) -> Iterator[None]:
    """Turns an error of the tracker into a warning."""
    try:
        yield
    except Exception as e:  # MLflow raises its own errors, SQLAlchemy's and every network error
        get_run_logger().warning("%s: %s", what, reason(e))
