"""One MLflow run a training, never in its way.

`Tracker.log` appends to a file. A daemon thread connects, makes the run or finds it again, and copies the points; when MLflow is away it tries again,
more and more seldom. What could not be delivered in time waits for `foundry sync`. `run.json` holds all that is needed to make the run later.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from foundry.tracking.lineage import lineage_tags
from foundry.tracking.settings import connect, experiment_id
from foundry.tracking.spool import Spool
from foundry.utils.files import read_json, write_json, write_text
from foundry.utils.log import get_logger

if TYPE_CHECKING:
    from mlflow import MlflowClient

PERIOD, LONGEST_PAUSE, CLOSE_TIMEOUT = 2.0, 60.0, 20.0  # seconds


@dataclass(frozen=True)
class DatasetRef:
    """A data set that a run read: its digest is what proves it (at most 36 characters)."""

    name: str
    digest: str
    path: str
    context: str = "train"


@dataclass(frozen=True)
class RunSpec:
    """Everything that makes the run in MLflow; kept in `run.json`."""

    uri: str
    experiment: str
    run_name: str
    fingerprint: str
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    datasets: list[dict[str, str]] = field(default_factory=list)


class Delivery:
    """The copying side: from one state folder to one MLflow store. Used by the thread and by `foundry sync`."""

    def __init__(self, folder: Path, spec: RunSpec) -> None:
        self.folder, self.spec, self.spool = folder, spec, Spool(folder)
        self.client: MlflowClient | None = None
        self.run_id = ""

    def connect(self) -> MlflowClient:
        """Connects and finds the run, or makes it with its parameters, tags and data sets."""
        client = connect(self.spec.uri)
        self.run_id = self._known_run(client) or self._make_run(client)
        self.client = client
        return client

    def _known_run(self, client: MlflowClient) -> str | None:
        path = self.folder / "run_id.json"
        if not path.exists():
            return None
        known = read_json(path, "the run's id in MLflow")
        return known["run_id"] if known["uri"] == self.spec.uri else None

    def _make_run(self, client: MlflowClient) -> str:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        where = experiment_id(client, self.spec.uri, self.spec.experiment)
        tags = {**self.spec.tags, "foundry.fingerprint": self.spec.fingerprint}
        run_id = client.create_run(where, run_name=self.spec.run_name, tags=tags).info.run_id
        client.log_batch(run_id, params=[Param(k, v) for k, v in self.spec.params.items()])
        client.log_inputs(
            run_id,
            datasets=[
                DatasetInput(
                    Dataset(name=d["name"], digest=d["digest"], source_type="dvc", source=_source(d)),
                    [InputTag("mlflow.data.context", d["context"])],
                )
                for d in self.spec.datasets
            ],
        )
        write_json(self.folder / "run_id.json", {"uri": self.spec.uri, "run_id": run_id})
        (self.folder / "uploaded.offset").unlink(missing_ok=True)  # a new store has none of the points
        return run_id

    def deliver(self) -> int:
        """Copies what is pending; returns the number of points. Raises what MLflow raises."""
        from mlflow.entities import Metric

        client, n = self.client or self.connect(), 0
        while True:
            rows, offset = self.spool.pending()
            if not rows:
                return n
            client.log_batch(self.run_id, metrics=[Metric(*row) for row in rows])
            self.spool.delivered(offset)
            n += len(rows)

    def end(self, status: str) -> None:
        (self.client or self.connect()).set_terminated(self.run_id, status)


def _source(d: dict[str, str]) -> str:
    import json

    return json.dumps({"path": d["path"], "digest": d["digest"]})


class Tracker:
    """A context manager around a training; `log` inside it never raises and never waits for MLflow.

    Args:
        state: the run's state folder; the same folder is the same MLflow run.
        enabled: False makes everything a no-op (other ranks, tracking off).
    """

    def __init__(
        self, state: Path, *, uri: str, experiment: str, run_name: str, fingerprint: str, params: dict[str, str] | None = None,
        tags: dict[str, str] | None = None, datasets: list[DatasetRef] | None = None, enabled: bool = True,
    ) -> None:  # fmt: skip
        self.folder, self.enabled = state, enabled
        self.spec = RunSpec(
            uri,
            experiment,
            run_name,
            fingerprint,
            params or {},
            {**lineage_tags(), **(tags or {})},
            [asdict(d) for d in datasets or []],
        )
        self._stop = threading.Event()
        self._error: Exception | None = None

    def __enter__(self) -> Tracker:
        if self.enabled:
            write_json(self.folder / "run.json", asdict(self.spec))
            (self.folder / "status").unlink(missing_ok=True)
            self._delivery = Delivery(self.folder, self.spec)
            self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow-uploader")
            self._thread.start()
        return self

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if self.enabled:
            self._delivery.spool.log(step, metrics)

    def _work(self) -> None:
        pause = 0.0
        started = False
        while True:
            last = self._stop.wait(pause)
            try:
                if not started:
                    self._delivery.connect().update_run(self._delivery.run_id, status="RUNNING")
                    started = True
                self._delivery.deliver()
                pause, self._error = PERIOD, None
            except (
                Exception
            ) as e:  # whatever MLflow or the network raises must not reach the training; it is told at the end
                pause, self._error = min(max(2 * pause, PERIOD), LONGEST_PAUSE), e
            if last:
                return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.enabled:
            return
        killed = isinstance(error, KeyboardInterrupt) or (
            isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128
        )
        status = "FINISHED" if error is None else "KILLED" if killed else "FAILED"
        write_text(self.folder / "status", status)
        self._stop.set()
        self._thread.join(CLOSE_TIMEOUT)
        if not self._thread.is_alive() and self._error is None:
            try:
                self._delivery.end(status)
                write_text(self.folder / "delivered", status)
            except Exception as e:
                self._error = e
        if self._thread.is_alive() or self._error is not None:
            why = str(self._error).splitlines()[0][:200] if self._error else f"no answer in {CLOSE_TIMEOUT:.0f} s"
            get_logger().warning(
                "MLflow at %s did not take everything (%s). Nothing is lost: the metrics are in %s; deliver them later with `foundry sync`",
                self.spec.uri, why, self._delivery.spool.path,
            )  # fmt: skip
        self._delivery.spool.close()
