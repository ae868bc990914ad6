"""MLflow: runs through a local spool, registry, promotion, lineage. Importing this package does not import mlflow."""

from foundry.tracking.datasets import DatasetRef
from foundry.tracking.lineage import lineage_tags
from foundry.tracking.registry import Candidate, Registration, load_registered, register
from foundry.tracking.run import Tracker
from foundry.tracking.settings import tracking_uri
from foundry.tracking.sync import sync

__all__ = [
    "Candidate",
    "DatasetRef",
    "Registration",
    "Tracker",
    "lineage_tags",
    "load_registered",
    "register",
    "sync",
    "tracking_uri",
]
