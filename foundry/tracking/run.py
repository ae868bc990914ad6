"""One MLflow run per training, which never delays or fails the training.

`Tracker.log` appends to a file. A daemon thread connects, creates the run or finds it again, and copies the points;
while MLflow is away it retries at growing intervals. What could not be delivered in time waits for the next run or for
`foundry sync`. Another thread samples the machine.
"""

from __future__ import annotations

import threading
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from foundry.tracking.address import resolve
from foundry.tracking.datasets import DatasetRef
from foundry.tracking.delivery import RUN, Delivery, RunSpec, deliver_folder, tracked, undelivered
from foundry.tracking.description import mlflow_name, run_description
from foundry.tracking.experiment import experiment_name, experiment_tags
from foundry.tracking.lineage import lineage_tags
from foundry.tracking.names import NOTE
from foundry.tracking.params import flatten, used
from foundry.tracking.settings import reason
from foundry.tracking.source import source_tags
from foundry.tracking.system import SystemMetrics
from foundry.utils.events import MetricsCallback
from foundry.utils.files import write_text
from foundry.utils.log import get_logger

PERIOD, LONGEST_PAUSE, CLOSE_TIMEOUT = 2.0, 60.0, 20.0  # seconds


class Tracker(MetricsCallback):
    """A context manager around a training; `log` inside it never raises and never waits for MLflow.

    Args:
        state: the run's state folder; the same folder is the same MLflow run.
        run_name: name of the run; under `dvc exp run` the experiment's name is appended.
        params: sections of params.yaml, nested as there.
        enabled: False disables everything (other ranks; tracking is off). So does another process that tracks the same
            folder.
        system: whether to sample CPU, memory, disk and GPUs.
    """

    def __init__(
        self,
        state: Path,
        *,
        uri: str,
        experiment: str,
        run_name: str,
        fingerprint: str,
        params: dict[str, Any] | None = None,
        tags: dict[str, str] | None = None,
        datasets: list[DatasetRef] | None = None,
        enabled: bool = True,
        system: bool = True,
    ) -> None:
        self.folder, self.enabled, self._system = state, enabled, system
        name = experiment_name()
        note = {NOTE: run_description(fingerprint, params or {})}
        self.spec = RunSpec(
            uri=resolve(uri),
            experiment=experiment,
            run_name=f"{run_name} {name}" if name else run_name,
            fingerprint=fingerprint,
            params=flatten(used(params or {})),
            tags={**lineage_tags(), **source_tags(), **experiment_tags(), **note, **(tags or {})} if enabled else {},
            datasets=list(datasets or []),
            key=uuid.uuid4().hex,
        )
        self._stop = threading.Event()
        self._error: Exception | None = None

    def __enter__(self) -> Tracker:
        with ExitStack() as stack:
            self.enabled = self.enabled and self._begin(stack)
            self._held = stack.pop_all()
        return self

    def _begin(self, stack: ExitStack) -> bool:
        """Starts the threads; returns False if another process tracks this run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not stack.enter_context(tracked(self.folder, wait=2.0)):
            return False
        if (self.folder / RUN).exists() and (key := RunSpec.load(self.folder).key):
            self.spec = self.spec.model_copy(update={"key": key})
        self.spec = self.spec.model_copy(update={"home": str(self.folder.resolve())})
        self.spec.save(self.folder)
        for name in ("status", "delivered"):
            (self.folder / name).unlink(missing_ok=True)
        self._delivery = Delivery(self.folder, self.spec)
        self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow-uploader")
        self._others = threading.Thread(target=self._deliver_others, daemon=True, name="mlflow-former-runs")
        self._sampler = SystemMetrics(self._delivery.spool, self.folder) if self._system else None
        for thread in (self._thread, self._sampler):
            if thread:
                thread.start()
        return True

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if self.enabled:
            self._delivery.spool.log(step, {mlflow_name(k): v for k, v in metrics.items()})

    def back_to(self, step: int) -> None:
        """Records that training returned to this step: what was logged of later steps no longer counts."""
        if self.enabled:
            self._delivery.spool.back_to(step)

    def _work(self) -> None:
        pause = 0.0
        started = False
        while True:
            last = self._stop.wait(pause)
            try:
                self._delivery.spool.sync()
                if not started:
                    self._delivery.begin()
                    self._others.start()
                    started = True
                self._delivery.deliver()
                pause, self._error = PERIOD, None
            except Exception as e:  # MLflow's and the network's errors must not stop the training; reported at the end
                pause, self._error = min(max(2 * pause, PERIOD), LONGEST_PAUSE), e
            if last:
                return

    def _deliver_others(self) -> None:
        """Delivers what former runs could not deliver. Those whose address still does not answer keep waiting."""
        for folder in undelivered(self.folder.parent, other_than=self.folder):
            try:
                done = deliver_folder(folder)
            except Exception:  # it is their address, not this run's; `foundry sync` reports what is wrong with it
                continue
            get_logger().info("delivered %d points of the former run %s to MLflow", done.points, folder.name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._held:
            if self.enabled:
                self._finish(_status_of(error))

    def _finish(self, status: str) -> None:
        if self._sampler:
            self._sampler.stop()
        spool, end = self._delivery.spool, time.monotonic() + CLOSE_TIMEOUT
        try:
            write_text(self.folder / "status", status)
        except Exception as e:  # a full disk, which the training's own error reports
            self._error = e
        self._stop.set()
        self._thread.join(CLOSE_TIMEOUT)
        if not self._thread.is_alive() and self._error is None:
            try:
                self._delivery.end(status)
            except Exception as e:
                self._error = e
        if self._others.is_alive():
            self._others.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive() or self._error is not None:
            why = reason(self._error) if self._error else f"no answer in {CLOSE_TIMEOUT:.0f} s"
            get_logger().warning(
                "MLflow at %s did not take everything (%s). Nothing is lost: the metrics are in %s; the next run "
                "delivers them, or `foundry sync`",
                self.spec.uri,
                why,
                spool.path,
            )
        spool.close()
        if spool.unwritten.strip():
            get_logger().warning("the disk of %s is full: the last metrics of this run are lost", spool.path)


def _status_of(error: BaseException | None) -> str:
    """MLflow's name for the end of a training."""
    stopped = isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128
    if stopped or isinstance(error, KeyboardInterrupt):
        return "KILLED"
    return "FINISHED" if error is None else "FAILED"
