"""A trained model on disk: `model.safetensors` and `config.json`, each provable.

`config.json` holds the architecture, the run's fingerprint, the hashes of the tokenizer and the data index, and the hash of the
weights; loading refuses a file that does not match it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors.torch import load

from foundry.config import DataError, ModelConfig
from foundry.models.transformer import MiniLLM
from foundry.utils.files import atomic_dir, read_json, sha256_file, write_json, write_tensors


def weights_sha256(model: MiniLLM) -> str:
    """Hash over the names, shapes and values of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_model(folder: str | Path, model: MiniLLM, facts: dict[str, Any]) -> None:
    """Writes the folder whole or not at all; `facts` (JSON values) join the architecture in `config.json`."""
    with atomic_dir(folder) as tmp:
        weights = tmp / "model.safetensors"
        tensors = {k: v.detach().float().cpu().contiguous() for k, v in model.state_dict().items()}
        write_tensors(weights, tensors, {"format": "pt"})
        sha256 = sha256_file(weights)
        write_json(tmp / "config.json", {"model": model.cfg.model_dump(), **facts, "weights_sha256": sha256})


def load_model(folder: str | Path) -> tuple[MiniLLM, dict[str, Any]]:
    """Reads (model in evaluation mode on the CPU, facts).

    Raises:
        DataError: if a file is missing or its hash is not the recorded one, or the folder is not one of the train stage's.
    """
    folder = Path(folder)
    facts = read_json(folder / "config.json", "a trained model's facts; run the train stage", DataError)
    if not isinstance(facts, dict) or not {"model", "weights_sha256"} <= facts.keys():
        raise DataError(
            f"{folder} is not a model as the train stage writes it: its config.json lacks the architecture (`model`) or the hash of the "
            "weights. Give artifacts/model; a Hugging Face export is read by transformers, a GGUF file by llama.cpp"
        )
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise DataError(f"{weights} is missing: run the train stage (`dvc repro train`) or `dvc checkout`")
    data = weights.read_bytes()
    seen = hashlib.sha256(data).hexdigest()  # of the bytes that are used: the file may change meanwhile
    if seen != facts["weights_sha256"]:
        raise DataError(
            f"{weights} was changed after training (sha256 {seen[:12]}…, expected {facts['weights_sha256'][:12]}…): "
            "`foundry verify --repair` restores it, or names the stage that builds it again"
        )
    try:
        model = MiniLLM(ModelConfig.model_validate(facts["model"]))
        model.load_state_dict(load(data))
    except (ValidationError, RuntimeError) as e:  # torch's word for other names or shapes
        raise DataError(f"{folder / 'config.json'} does not describe the architecture of these weights: {e}") from None
    return model.eval(), facts
