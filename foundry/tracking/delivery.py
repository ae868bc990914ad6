"""The copying side: from a run's state folder to one MLflow store. Used by the thread of a training, by the next run, and by `foundry sync`.

`run.json` holds all that is needed to make the run in MLflow, `run_id.json` which one it became. The run carries a random key of the folder as a tag: when an
answer was lost on its way the run is found by it, not made twice. A copied folder gets a key of its own. Every step can be repeated.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.config import FoundryError
from foundry.tracking.address import portable, resolve
from foundry.tracking.names import FINGERPRINT, KEY, RESTORED
from foundry.tracking.settings import connect, experiment_id, serialized
from foundry.tracking.spool import Spool
from foundry.utils.files import read_json, write_json, write_text
from foundry.utils.locks import locked_if_free

if TYPE_CHECKING:
    from mlflow import MlflowClient

MOST_PARAMS = 100  # of one request, by MLflow's own limit


@dataclass(frozen=True)
class RunSpec:
    """Everything that makes the run in MLflow; kept in `run.json`.

    Attributes:
        uri: absolute here; in the file relative to the project, if the store is inside it.
        key: random, of the state folder; tagged on the run.
        home: the state folder that the key belongs to.
    """

    uri: str
    experiment: str
    run_name: str
    fingerprint: str
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    datasets: list[dict[str, str]] = field(default_factory=list)
    key: str = ""
    home: str = ""

    @classmethod
    def read(cls, folder: Path) -> RunSpec:
        """What the folder's `run.json` holds. A folder that was copied gets a new key first, and forgets the run of the original.

        Raises:
            FoundryError: if the file is missing or is not what Foundry wrote.
        """
        spec = cls._as_written(folder)
        here = str(folder.resolve())
        if spec.home and spec.home != here:
            if _key_of(Path(spec.home)) == spec.key:
                for name in ("run_id.json", "uploaded.offset", "delivered"):
                    (folder / name).unlink(missing_ok=True)
                shutil.rmtree(folder / "elsewhere", ignore_errors=True)
                spec = replace(spec, key=uuid.uuid4().hex)
            spec = replace(spec, home=here)
            spec.write(folder)
        return spec

    @classmethod
    def _as_written(cls, folder: Path) -> RunSpec:
        found = read_json(folder / "run.json", "a run that was tracked")
        return cls(**{**found, "uri": resolve(found["uri"])})

    def write(self, folder: Path) -> None:
        write_json(folder / "run.json", {**asdict(self), "uri": portable(self.uri)})


def _key_of(folder: Path) -> str | None:
    """The key in another folder's `run.json`; None if there is none that can be read."""
    try:
        return read_json(folder / "run.json", "the run that this one may be a copy of").get("key")
    except (FoundryError, OSError, AttributeError):
        return None


class Delivery:
    """From one state folder to one MLflow store."""

    def __init__(self, folder: Path, spec: RunSpec, marks: Path | None = None) -> None:
        """marks: where it is noted what this store has; the state folder itself for the run's own store."""
        self.spec, self.marks = spec, marks or folder
        self.spool = Spool(folder, self.marks)
        self.client: MlflowClient | None = None
        self.run_id = ""

    def connect(self) -> MlflowClient:
        """Connects and finds the run, or makes it with its parameters, tags and data sets."""
        client = connect(self.spec.uri)
        with serialized("run"):
            self.run_id = self._known_run(client) or self._make_run(client)
        self.client = client
        return client

    def begin(self) -> None:
        """Connects, and marks the run as going on, with the tags of this start."""
        from mlflow.entities import RunTag

        client = self.connect()
        client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in self.spec.tags.items()])
        client.update_run(self.run_id, status="RUNNING")

    def _known_run(self, client: MlflowClient) -> str | None:
        """The run that `run_id.json` names, if it is at this address and still there."""
        from mlflow.exceptions import MlflowException

        path = self.marks / "run_id.json"
        if not path.exists():
            return None
        known = read_json(path, "the run's id in MLflow")
        if resolve(known["uri"]) != self.spec.uri:
            return None
        try:
            run = client.get_run(known["run_id"])
        except MlflowException as e:
            if e.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        if run.info.lifecycle_stage == "deleted":  # trained again, so it is wanted again
            client.restore_run(known["run_id"])
        return known["run_id"]

    def _make_run(self, client: MlflowClient) -> str:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        where = experiment_id(client, self.spec.uri, self.spec.experiment)
        run_id = self._made_before(client, where) or self._restored(client, where)
        if run_id is None:
            tags = {**self.spec.tags, FINGERPRINT: self.spec.fingerprint, KEY: self.spec.key}
            run_id = client.create_run(where, run_name=self.spec.run_name, tags=tags).info.run_id
        params = [Param(k, v) for k, v in self.spec.params.items()]
        for i in range(0, len(params), MOST_PARAMS):
            client.log_batch(run_id, params=params[i : i + MOST_PARAMS])
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
        (self.marks / "uploaded.offset").unlink(missing_ok=True)  # of another store; this one may lack the points
        write_json(self.marks / "run_id.json", {"uri": portable(self.spec.uri), "run_id": run_id})
        return run_id

    def _made_before(self, client: MlflowClient, where: str) -> str | None:
        """The run whose making was not answered."""
        if not self.spec.key:
            return None
        found = client.search_runs([where], f"tags.`{KEY}` = '{self.spec.key}'", max_results=1)
        return found[0].info.run_id if found else None

    def _restored(self, client: MlflowClient, where: str) -> str | None:
        """The run that a registration made in the place of this one, when MLflow had not yet heard of the training; it becomes this one."""
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
        """Copies what is pending, in the order of the spool; returns the number of points. Raises what MLflow raises."""
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
        """Ends the run in MLflow, and notes that all of it is there."""
        (self.client or self.connect()).set_terminated(self.run_id, status)
        write_text(self.marks / "delivered", status)


def deliver_folder(folder: Path, uri: str | None = None) -> tuple[int, str | None]:
    """Delivers the run of one state folder: (points copied, how the run ended, None while its trainer lives).

    Args:
        uri: deliver there instead of to the run's own address.

    Raises:
        Exception: MLflow's own and every network error.
    """
    spec, status = RunSpec.read(folder), _status(folder)
    marks = folder
    if uri and (uri := resolve(uri)) != spec.uri:  # a copy elsewhere: the run's own store still gets all
        mark = hashlib.sha256(portable(uri).encode()).hexdigest()[:16]
        marks, spec = folder / "elsewhere" / mark, replace(spec, uri=uri)
        marks.mkdir(parents=True, exist_ok=True)
    if status and _is_delivered(folder, marks, status):
        return 0, status
    delivery = Delivery(folder, spec, marks)
    delivery.connect()
    n = delivery.deliver()
    if status:
        delivery.end(status)
    return n, status


def leftovers(runs: Path, but: Path) -> Iterator[Path]:
    """State folders beside `but` whose trainer is dead and that MLflow does not have whole."""
    for path in sorted(runs.glob("*/run.json")):
        folder = path.parent
        if folder != but and (status := _status(folder)) and not _is_delivered(folder, folder, status):
            yield folder


def _is_delivered(folder: Path, marks: Path, status: str) -> bool:
    done = marks / "delivered"
    known = done.exists() and done.read_text() == status and (marks / "run_id.json").exists()
    return known and not Spool(folder, marks).pending(1)[0]


def _status(folder: Path) -> str | None:
    """How the run ended: as its trainer wrote, KILLED when it could not; None while it lives."""
    with tracked(folder, wait=0.0) as free:
        if not free:
            return None
    status = folder / "status"
    return status.read_text() if status.exists() else "KILLED"


def tracked(folder: Path, wait: float) -> AbstractContextManager[bool]:
    """Holds the lock of the process that tracks a run; gives False when another one holds it after `wait` seconds.

    It is not the trainer's own lock, which a reader may not touch for a moment: a trainer that starts then would be refused.
    """
    return locked_if_free(folder / "tracker.lock", wait=wait)


def _source(d: dict[str, str]) -> str:
    return json.dumps({"path": d["path"], "digest": d["digest"]})
