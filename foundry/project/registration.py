"""What the registrations of base models and of chat models have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from foundry.config import TrackingError
from foundry.export.proof import Proof
from foundry.tracking import DatasetRef
from foundry.tracking.lineage import lineage_tags
from foundry.tracking.names import LOCK_HASH
from foundry.tracking.registry import SCORES, fetch, stored
from foundry.tracking.settings import connect, reason
from foundry.utils.records import Record

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

WAITING = "waiting.json"
ANSWERS = "answers.parquet"
# By the stage that trained the exported model: its report, and the folder of the tables of answers.
EVALUATIONS = {
    "sft": ("reports/chat.json", "artifacts/chat/evaluation"),
    "dpo": ("reports/align.json", "artifacts/chat/aligned_evaluation"),
    "rl": ("reports/align.json", "artifacts/chat/aligned_evaluation"),
}
WHAT = {SCORES: "losses by document", ANSWERS: "answers by prompt"}


class Waiting(Record):
    """`waiting.json` of a registration that waits for MLflow.

    Attributes:
        tags: the tags of the version that come from the project's state when the registration was first tried.
    """

    tags: dict[str, str]


class CannotCompareError(Exception):
    """The champion has no losses that a version can be compared with; the message says why."""


def version_tags(root: Path) -> dict[str, str]:
    """The tags of a version that come from the project's state, or from the state in which its registration began."""
    waiting = root / WAITING
    tags = dict(Waiting.read(waiting, "a waiting registration").tags) if waiting.exists() else lineage_tags(root)
    tags.pop(LOCK_HASH, None)  # the file itself is kept with the run
    return tags


def part_of(champion: ModelVersion, uri: str, into: Path, part: str) -> Path:
    """Copies a part of the champion's files into a folder.

    Raises:
        CannotCompareError: if the files do not exist any more.
        TrackingError: if the store does not answer now.
    """
    try:
        client = connect(uri)
        found = stored(client, champion, uri)
        if part in found.parts:
            return fetch(client, champion, uri, into, part)
    except Exception as e:  # MLflow raises its own errors and those of every store
        raise TrackingError(
            f"the gate cannot decide now: the files of the champion (version {champion.version}) do not answer "
            f"({reason(e)}). `foundry sync` asks it again, as does `foundry promote`"
        ) from e
    if not found.parts:
        raise cannot_compare(champion, f"has no files any more at {found.where}")
    raise cannot_compare(champion, f"has no {WHAT.get(part, part)} to compare with")


def cannot_compare(champion: ModelVersion, why: str) -> CannotCompareError:
    return CannotCompareError(
        f"the champion (version {champion.version}) {why}; `foundry promote … --force --why …` decides"
    )


def proof_summary(proof: Proof) -> str:
    """What was proved, for a tag: the export exists only if the proof of transformers succeeded."""
    ours = "transformers: logits, ids and greedy text equal"
    return f"{ours}; llama.cpp: {'equal' if proof.llama_cpp.proved else 'not proved here'}"


def dataset(name: str, digest: str, path: str, context: str) -> DatasetRef:
    return DatasetRef(name=name, digest=digest[:36], path=path, context=context)  # MLflow's limit
