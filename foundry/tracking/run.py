"""One MLflow run a training, never in its way.

`Tracker.log` appends to a file. A daemon thread connects, makes the run or finds it again, and copies the points; when MLflow is away it tries again,
more and more seldom. What could not be delivered in time waits for the next run or for `foundry sync`. Another thread samples the machine.
"""

from __future__ import annotations

import threading
import time
import uuid
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from foundry.tracking.address import resolve
from foundry.tracking.delivery import Delivery, RunSpec, deliver_folder, leftovers, tracked
from foundry.tracking.description import NOTE, run_description, shown_name
from foundry.tracking.experiment import experiment_name, experiment_tags
from foundry.tracking.lineage import lineage_tags
from foundry.tracking.params import flatten, used
from foundry.tracking.settings import reason
from foundry.tracking.source import source_tags
from foundry.tracking.system import SystemMetrics
from foundry.utils.events import MetricsCallback
from foundry.utils.files import write_text
from foundry.utils.log import get_logger

PERIOD, LONGEST_PAUSE, CLOSE_TIMEOUT = 2.0, 60.0, 20.0  # seconds


@dataclass(frozen=True)
class DatasetRef:
    """A data set that a run read: its digest is what proves it (at most 36 characters)."""

    name: str
    digest: str
    path: str
    context: str = "train"


class Tracker(MetricsCallback):
    """A context manager around a training; `log` inside it never raises and never waits for MLflow.

    Args:
        state: the run's state folder; the same folder is the same MLflow run.
        run_name: of the run's page; under `dvc exp run` the experiment's name follows it.
        params: sections of params.yaml, nested as there.
        enabled: False makes everything a no-op (other ranks, tracking off). So does another process that tracks the same folder.
        system: sample CPU, memory, disk and GPUs.
    """

    def __init__(
        self, state: Path, *, uri: str, experiment: str, run_name: str, fingerprint: str, params: dict[str, Any] | None = None,
        tags: dict[str, str] | None = None, datasets: list[DatasetRef] | None = None, enabled: bool = True, system: bool = True,
    ) -> None:  # fmt: skip
        self.folder, self.enabled, self._system = state, enabled, system
        name = experiment_name()
        note = {NOTE: run_description(fingerprint, params or {})}
        self.spec = RunSpec(
            resolve(uri),
            experiment,
            f"{run_name} {name}" if name else run_name,
            fingerprint,
            flatten(used(params or {})),
            {**lineage_tags(), **source_tags(), **experiment_tags(), **note, **(tags or {})} if enabled else {},
            [asdict(d) for d in datasets or []],
            uuid.uuid4().hex,
        )
        self._stop = threading.Event()
        self._error: Exception | None = None

    def __enter__(self) -> Tracker:
        with ExitStack() as stack:
            self.enabled = self.enabled and self._begin(stack)
            self._held = stack.pop_all()
        return self

    def _begin(self, stack: ExitStack) -> bool:
        """Starts the threads; False when another process tracks this run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not stack.enter_context(tracked(self.folder, wait=2.0)):
            return False
        if (self.folder / "run.json").exists() and (key := RunSpec.read(self.folder).key):
            self.spec = replace(self.spec, key=key)
        self.spec = replace(self.spec, home=str(self.folder.resolve()))
        self.spec.write(self.folder)
        for name in ("status", "delivered"):
            (self.folder / name).unlink(missing_ok=True)
        self._delivery = Delivery(self.folder, self.spec)
        self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow-uploader")
        self._others = threading.Thread(target=self._deliver_others, daemon=True, name="mlflow-leftovers")
        self._sampler = SystemMetrics(self._delivery.spool, self.folder) if self._system else None
        for thread in (self._thread, self._sampler):
            if thread:
                thread.start()
        return True

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if self.enabled:
            self._delivery.spool.log(step, {shown_name(k): v for k, v in metrics.items()})

    def back_to(self, step: int) -> None:
        """Training returned to this step: what was logged of later steps no longer counts."""
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
            except (
                Exception
            ) as e:  # whatever MLflow or the network raises must not reach the training; it is told at the end
                pause, self._error = min(max(2 * pause, PERIOD), LONGEST_PAUSE), e
            if last:
                return

    def _deliver_others(self) -> None:
        """What former runs could not deliver. Where their address still does not answer they wait on."""
        for folder in leftovers(self.folder.parent, but=self.folder):
            try:
                n, _ = deliver_folder(folder)
            except Exception:  # it is their address, not this run's; `foundry sync` tells what is wrong with it
                continue
            get_logger().info("delivered %d points of the former run %s to MLflow", n, folder.name)

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
        except Exception as e:  # a full disk; the training's own error says so
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
                "MLflow at %s did not take everything (%s). Nothing is lost: the metrics are in %s; the next run delivers them, or `foundry sync`",
                self.spec.uri, why, spool.path,
            )  # fmt: skip
        spool.close()
        if spool.unwritten.strip():
            get_logger().warning("the disk of %s took no more: its last metrics are lost", spool.path)


def _status_of(error: BaseException | None) -> str:
    """MLflow's name for the end of a training."""
    stopped = isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128
    if stopped or isinstance(error, KeyboardInterrupt):
        return "KILLED"
    return "FINISHED" if error is None else "FAILED"
