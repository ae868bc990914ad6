"""The data sets that a run read, as MLflow lists them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from foundry.utils.records import Record

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput


class DatasetRef(Record):
    """A data set that a run read.

    Attributes:
        digest: hash of the content; MLflow accepts at most 36 characters.
        context: what it was used for, such as `train` or `test`.
    """

    name: str
    digest: str
    path: str
    context: str = "train"


def dataset_inputs(datasets: Iterable[DatasetRef]) -> list[DatasetInput]:
    """The same as MLflow's entities."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    def dataset(d: DatasetRef) -> Dataset:
        source = json.dumps({"path": d.path, "digest": d.digest})
        return Dataset(name=d.name, digest=d.digest, source_type="dvc", source=source)

    return [DatasetInput(dataset(d), [InputTag("mlflow.data.context", d.context)]) for d in datasets]
