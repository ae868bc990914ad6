"""A trained model on disk: `model.safetensors` and `config.json`.

`config.json` contains the architecture (`model`), the facts of the training (`foundry.models.facts`) and the hash of
the weights; loading refuses a file that does not match it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors.torch import load
from torch.overrides import TorchFunctionMode

from foundry.config import DataError, ModelConfig
from foundry.models.facts import ModelFacts, TrainingFacts
from foundry.models.transformer import MiniLLM
from foundry.utils.files import atomic_dir, read_json, sha256_file, write_json, write_tensors


class without_initialisation(TorchFunctionMode):
    """Leaves new weights as they are in memory: for a model whose tensors are all read from a file."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def weights_sha256(model: MiniLLM) -> str:
    """Hash over the names, shapes and values of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_model(folder: str | Path, model: MiniLLM, facts: TrainingFacts | None = None) -> None:
    """Writes the folder completely or not at all.

    Args:
        facts: of the training; without them `load_model` reads the folder, and evaluation and export refuse it.
    """
    with atomic_dir(folder) as tmp:
        weights = tmp / "model.safetensors"
        tensors = {k: v.detach().float().cpu().contiguous() for k, v in model.state_dict().items()}
        write_tensors(weights, tensors, {"format": "pt"})
        known = facts.to_json() if facts else {}
        sha256 = sha256_file(weights)
        write_json(tmp / "config.json", {"model": model.cfg.model_dump(), **known, "weights_sha256": sha256})


def load_model(folder: str | Path) -> MiniLLM:
    """Reads a model, in evaluation mode and on the CPU. Its architecture and the hash of its weights are enough.

    Raises:
        DataError: if a file is missing or its hash is not the recorded one, or the folder is not one of the train
            stage's.
    """
    return _load(Path(folder))[0]


def load_trained_model(folder: str | Path) -> tuple[MiniLLM, ModelFacts]:
    """Reads a model as `load_model` does, and the facts of its training.

    Raises:
        DataError: as `load_model`, and if `config.json` lacks a fact.
    """
    model, config = _load(Path(folder))
    return model, ModelFacts.parse(config, Path(folder) / "config.json")


def _load(folder: Path) -> tuple[MiniLLM, dict[str, Any]]:
    config = read_json(folder / "config.json", "a trained model's facts; run the train stage", DataError)
    if not isinstance(config, dict) or not {"model", "weights_sha256"} <= config.keys():
        raise DataError(
            f"{folder} is not a model as the train stage writes it: its config.json lacks the architecture (`model`) "
            "or the hash of the weights. Give artifacts/model; transformers reads a Hugging Face export, llama.cpp a "
            "GGUF file"
        )
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise DataError(f"{weights} is missing: run the train stage (`dvc repro train`) or `dvc checkout`")
    data = weights.read_bytes()
    seen = hashlib.sha256(data).hexdigest()  # of the bytes that are used: the file may change meanwhile
    if seen != config["weights_sha256"]:
        raise DataError(
            f"{weights} was changed after training (sha256 {seen[:12]}…, expected {config['weights_sha256'][:12]}…): "
            "`foundry verify --repair` restores it, or names the stage that builds it again"
        )
    try:
        model = MiniLLM(ModelConfig.model_validate(config["model"]))
        model.load_state_dict(load(data))
    except (ValidationError, RuntimeError) as e:  # RuntimeError: torch found other names or shapes
        raise DataError(f"{folder / 'config.json'} does not describe the architecture of these weights: {e}") from None
    return model.eval(), config
