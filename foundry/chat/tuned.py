"""A model that was trained to answer, as evaluation and export read it from the folder of its stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foundry.config import DataError
from foundry.models import MiniLLM, ModelFacts, load_trained_model

Stage = Literal["sft", "dpo", "rl"]
FOLDER = "artifacts/chat"
PARENTS: dict[Stage, str] = {"sft": "artifacts/model", "dpo": f"{FOLDER}/sft", "rl": f"{FOLDER}/sft"}


@dataclass(frozen=True)
class Tuned:
    """A model that was trained to answer.

    Attributes:
        model: with the adapter merged into it, if it has one.
        facts: of its training.
        base_sha256: the weights of the base model at the beginning of the chain.
        parent_sha256: the weights that this stage began with.
        adapter: folder of the adapter; None after full training.
    """

    stage: Stage
    model: MiniLLM
    facts: ModelFacts
    base_sha256: str
    parent_sha256: str
    template_sha256: str
    adapter: Path | None = None


def load_tuned(stage: Stage, root: str | Path = ".") -> Tuned:
    """Reads the model of a stage of post-training, which has its adapter merged.

    Raises:
        DataError: if a file is missing or damaged, or the model was not trained to answer.
    """
    folder = Path(root) / FOLDER / stage
    model, facts = load_trained_model(folder)
    adapter = folder / "adapter"
    template, parent, base = facts.template_sha256, facts.parent_sha256, facts.base_sha256
    if template is None or parent is None or base is None:
        raise DataError(f"{folder} is a model that was not trained to answer: run `dvc repro chat/dvc.yaml:{stage}`")
    return Tuned(stage, model.eval(), facts, base, parent, template, adapter if adapter.is_dir() else None)
