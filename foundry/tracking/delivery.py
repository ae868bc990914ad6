"""Delivery: copies a run from its state folder to a store of MLflow.

The thread of a training, the next run and `foundry sync` use it.

`run.json` contains all that is needed to create the run in MLflow, `run_id.json` the id that it got. The run carries a
random key of the folder as a tag: when the answer to its creation was lost, the run is found by this key and not
created twice. A copied folder gets a key of its own. Every step can be repeated.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.config import FoundryError
from foundry.tracking.address import RunRef, portable, resolve
from foundry.tracking.datasets import DatasetRef, dataset_inputs
from foundry.tracking.names import FINGERPRINT, KEY, RESTORED
from foundry.tracking.params import PARAMS_PER_REQUEST
from foundry.tracking.search import first_run
from foundry.tracking.settings import connect, experiment_id, serialized
from foundry.tracking.spool import OFFSET, Spool
from foundry.utils.files import write_json, write_text
from foundry.utils.locks import locked_if_free
from foundry.utils.records import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN, RUN_ID = "run.json", "run_id.json"


class RunSpec(Record):
    """Everything that is needed to create the run in MLflow; kept in `run.json`.

    Attributes:
        uri: absolute; in the file it is relative to the project if the store is inside the project.
        key: random, one per state folder; a tag of the run.
        home: the state folder that the key belongs to.
    """

    uri: str
    experiment: str
    run_name: str
    fingerprint: str
    params: dict[str, str]
    tags: dict[str, str]
    datasets: list[DatasetRef]
    key: str = ""
    home: str = ""

    @classmethod
    def load(cls, folder: Path) -> RunSpec:
        """Reads the folder's `run.json`.

        If the folder is a copy, it gets a new key first and forgets the run of the original.

        Raises:
            FoundryError: if the file is missing or damaged.
        """
        spec = cls._as_written(folder)
        here = str(folder.resolve())
        if spec.home and spec.home != here:
            if _key_of(Path(spec.home)) == spec.key:
                for name in (RUN_ID, OFFSET, "delivered"):
                    (folder / name).unlink(missing_ok=True)
                shutil.rmtree(folder / "elsewhere", ignore_errors=True)
                spec = spec.model_copy(update={"key": uuid.uuid4().hex})
            spec = spec.model_copy(update={"home": here})
            spec.save(folder)
        return spec

    @classmethod
    def _as_written(cls, folder: Path) -> RunSpec:
        spec = cls.read(folder / RUN, "the record of a tracked run")
        return spec.model_copy(update={"uri": resolve(spec.uri)})

    def save(self, folder: Path) -> None:
        """Writes the folder's `run.json`."""
        write_json(folder / RUN, {**self.model_dump(), "uri": portable(self.uri)})


def _key_of(folder: Path) -> str | None:
    """The key in the `run.json` of another folder; None if that cannot be read."""
    try:
        return RunSpec._as_written(folder).key
    except (FoundryError, OSError):
        return None


class Delivery:
    """Copies one state folder to one store of MLflow.

    Args:
        marks: folder of the files that say what this store has received; the state folder itself for the run's own
            store.
    """

    def __init__(self, folder: Path, spec: RunSpec, marks: Path | None = None) -> None:
        self.spec, self.marks = spec, marks or folder
        self.spool = Spool(folder, self.marks)
        self.client: MlflowClient | None = None
        self.run_id = ""

    def connect(self) -> MlflowClient:
        """Connects and finds the run, or creates it with its parameters, tags and data sets."""
        client = connect(self.spec.uri)
        with serialized("run"):
            self.run_id = self._known_run(client) or self._create_run(client)
        self.client = client
        return client

    def begin(self) -> None:
        """Connects, and sets the run to RUNNING with the tags of this start."""
        from mlflow.entities import RunTag

        client = self.connect()
        client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in self.spec.tags.items()])
        client.update_run(self.run_id, status="RUNNING")

    def _known_run(self, client: MlflowClient) -> str | None:
        """The run that `run_id.json` names, if it is a run of this store and still exists."""
        from mlflow.exceptions import MlflowException

        path = self.marks / RUN_ID
        if not path.exists():
            return None
        known = RunRef.load(path)
        if known.uri != self.spec.uri:
            return None
        try:
            run = client.get_run(known.run_id)
        except MlflowException as e:
            if e.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        if run.info.lifecycle_stage == "deleted":  # it is trained again, so it is wanted again
            client.restore_run(known.run_id)
        return known.run_id

    def _create_run(self, client: MlflowClient) -> str:
        from mlflow.entities import Param

        where = experiment_id(client, self.spec.uri, self.spec.experiment)
        run_id = self._created_before(client, where) or self._restored(client, where)
        if run_id is None:
            tags = {**self.spec.tags, FINGERPRINT: self.spec.fingerprint, KEY: self.spec.key}
            run_id = client.create_run(where, run_name=self.spec.run_name, tags=tags).info.run_id
        params = [Param(k, v) for k, v in self.spec.params.items()]
        for i in range(0, len(params), PARAMS_PER_REQUEST):
            client.log_batch(run_id, params=params[i : i + PARAMS_PER_REQUEST])
        client.log_inputs(run_id, datasets=dataset_inputs(self.spec.datasets))
        (self.marks / OFFSET).unlink(missing_ok=True)  # it was of another store; this one may lack the points
        RunRef(uri=self.spec.uri, run_id=run_id).save(self.marks / RUN_ID)
        return run_id

    def _created_before(self, client: MlflowClient, where: str) -> str | None:
        """The run whose creation was not answered."""
        found = first_run(client, where, KEY, self.spec.key) if self.spec.key else None
        return found.info.run_id if found else None

    def _restored(self, client: MlflowClient, where: str) -> str | None:
        """The run that a registration created before MLflow heard of the training; it becomes the training's run."""
        query = f"tags.`{FINGERPRINT}` = '{self.spec.fingerprint}' and tags.`{RESTORED}` = 'true'"
        found = client.search_runs([where], query, max_results=1)
        if not found:
            return None
        run_id = found[0].info.run_id
        for key, value in {**self.spec.tags, KEY: self.spec.key}.items():
            client.set_tag(run_id, key, value)
        client.update_run(run_id, name=self.spec.run_name)
        client.delete_tag(run_id, RESTORED)
        return run_id

    def deliver(self) -> int:
        """Copies what is pending, in the order of the spool; returns the number of points.

        Raises what MLflow raises.
        """
        from mlflow.entities import Metric

        client, n = self.client or self.connect(), 0
        while (pending := self.spool.pending()).points:
            client.log_batch(self.run_id, metrics=[Metric(*point) for point in pending.points])
            self.spool.delivered(pending.offset)
            n += len(pending.points)
        return n

    def end(self, status: str) -> None:
        """Ends the run in MLflow, and records that everything is there."""
        (self.client or self.connect()).set_terminated(self.run_id, status)
        write_text(self.marks / "delivered", status)


@dataclass(frozen=True)
class Delivered:
    """What a delivery did.

    Attributes:
        points: number of points that were copied.
        status: how the run ended, by MLflow's names; None while its trainer is alive.
    """

    points: int
    status: str | None


def deliver_folder(folder: Path, uri: str | None = None) -> Delivered:
    """Delivers the run of one state folder.

    Args:
        uri: deliver there instead of to the run's own address.

    Raises:
        Exception: MLflow's own errors and those of the network.
    """
    spec, status = RunSpec.load(folder), _status(folder)
    marks = folder
    if uri and (uri := resolve(uri)) != spec.uri:  # a copy elsewhere: the run's own store still gets everything
        mark = hashlib.sha256(portable(uri).encode()).hexdigest()[:16]
        marks, spec = folder / "elsewhere" / mark, spec.model_copy(update={"uri": uri})
        marks.mkdir(parents=True, exist_ok=True)
    if status and _is_delivered(folder, marks, status):
        return Delivered(0, status)
    delivery = Delivery(folder, spec, marks)
    delivery.connect()
    n = delivery.deliver()
    if status:
        delivery.end(status)
    return Delivered(n, status)


def undelivered(runs: Path, other_than: Path) -> Iterator[Path]:
    """State folders whose trainer is dead and of which MLflow lacks something."""
    for path in sorted(runs.glob(f"*/{RUN}")):
        folder = path.parent
        if folder != other_than and (status := _status(folder)) and not _is_delivered(folder, folder, status):
            yield folder


def _is_delivered(folder: Path, marks: Path, status: str) -> bool:
    done = marks / "delivered"
    known = done.exists() and done.read_text() == status and (marks / RUN_ID).exists()
    return known and not Spool(folder, marks).pending(1).points


def _status(folder: Path) -> str | None:
    """How the run ended: as its trainer wrote, KILLED if it wrote nothing; None while the trainer is alive."""
    with tracked(folder, wait=0.0) as free:
        if not free:
            return None
    status = folder / "status"
    return status.read_text() if status.exists() else "KILLED"


def tracked(folder: Path, wait: float) -> AbstractContextManager[bool]:
    """Holds the lock of the process that tracks a run; yields False if another process still holds it after `wait`
    seconds.

    It is not the trainer's own lock. A reader must not take that one even for a moment: a trainer that starts then
    would be refused.
    """
    return locked_if_free(folder / "tracker.lock", wait=wait)
