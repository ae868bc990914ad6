"""An adapter on disk, in the form of PEFT.

    adapter_model.safetensors   A and B of each matrix and the trained rows, under PEFT's names
    adapter_config.json         PEFT's LoraConfig
    foundry_adapter.json        what PEFT does not record: the hash of the base, the template, the number format

PEFT reads the folder as it is, onto the Hugging Face export of the base. Its scale is alpha / r (`use_rslora: false`),
and its trained rows replace those of the base, in a tied output head as well.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from foundry.config import DataError
from foundry.models.adapter import MATRICES, Adapter, adapt
from foundry.models.facts import ModelFacts, TrainingFacts
from foundry.models.files import load_trained_model
from foundry.models.names import tensor_names
from foundry.models.transformer import MiniLLM
from foundry.utils.files import atomic_dir, sha256_file, write_json, write_tensors
from foundry.utils.records import Record

WEIGHTS, PEFT_CONFIG, RECORD = "adapter_model.safetensors", "adapter_config.json", "foundry_adapter.json"
_PREFIX, _ROWS = "base_model.model.", ".token_adapter.trainable_tokens_delta"


class AdapterRecord(Record):
    """`foundry_adapter.json`.

    Attributes:
        base_sha256: of `model.safetensors` of the base, which no other model may replace.
        weights_sha256: of `adapter_model.safetensors`.
        base_weights: int8: the adapter was trained beside the rounded matrices and is merged into them.
        facts: of the training.
    """

    base_sha256: str
    weights_sha256: str
    rank: int
    alpha: float
    rows: list[int]
    base_weights: Literal["float32", "int8"]
    facts: TrainingFacts

    @property
    def adapter(self) -> Adapter:
        return Adapter(self.rank, self.alpha, tuple(self.rows), self.base_weights)


def _names(model: MiniLLM) -> dict[str, str]:
    """{our name: PEFT's name} of every trained tensor."""
    theirs = {
        ours.removesuffix(".weight"): _PREFIX + name.removesuffix(".weight")
        for ours, name in tensor_names(model.cfg).items()
    }
    matrices = [f"layers.{i}.{m}" for i in range(model.cfg.n_layers) for m in MATRICES]
    names = {f"{m}.lora_{x}": f"{theirs[m]}.lora_{x}.weight" for m in matrices for x in "AB"}
    tables = [t for t in ("tok_embeddings", "output") if t in theirs and model.adapter.rows]
    return names | {f"{t}.rows": theirs[t] + _ROWS for t in tables}


def save_adapter(folder: str | Path, model: MiniLLM, base_sha256: str, facts: TrainingFacts) -> None:
    """Writes the adapter of a model, completely or not at all.

    Args:
        base_sha256: `weights_sha256` of the base's facts.
        facts: of the training.
    """
    adapter, tensors = model.adapter, dict(model.named_parameters())
    names = _names(model)
    rows = {name: list(adapter.rows) for name in ("embed_tokens", *(("lm_head",) if model.output is not None else ()))}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "use_rslora": False,
        "use_dora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted({name.split(".")[-3] for name in names.values() if ".lora_" in name}),
        "trainable_token_indices": rows if adapter.rows else None,
    }
    with atomic_dir(folder) as tmp:
        written = {theirs: tensors[ours].detach().float().cpu().contiguous() for ours, theirs in names.items()}
        write_tensors(tmp / WEIGHTS, written, {"format": "pt"})
        write_json(tmp / PEFT_CONFIG, config)
        record = AdapterRecord(
            base_sha256=base_sha256,
            weights_sha256=sha256_file(tmp / WEIGHTS),
            rank=adapter.rank,
            alpha=adapter.alpha,
            rows=list(adapter.rows),
            base_weights=adapter.base_weights,
            facts=facts,
        )
        write_json(tmp / RECORD, record.model_dump(exclude_none=True))


def read_adapter(folder: str | Path) -> tuple[AdapterRecord, dict[str, Tensor]]:
    """(what is known of an adapter, its tensors by PEFT's names).

    Raises:
        DataError: if a file is missing, is damaged, or was not written by `save_adapter`.
    """
    folder = Path(folder)
    record = AdapterRecord.read(folder / RECORD, "the record of an adapter of Foundry", DataError)
    try:
        data = (folder / WEIGHTS).read_bytes()
    except OSError as e:
        raise DataError(f"{folder / WEIGHTS} cannot be read: {e.strerror}") from None
    seen = hashlib.sha256(data).hexdigest()
    if seen != record.weights_sha256:
        raise DataError(
            f"{folder / WEIGHTS} was changed after training (sha256 {seen[:12]}…, expected "
            f"{record.weights_sha256[:12]}…): restore it with `dvc checkout`, or train the adapter again"
        )
    try:
        return record, load(data)
    except SafetensorError as e:
        raise DataError(f"{folder / WEIGHTS} is no safetensors file: {e}") from None


def load_adapted(adapter: str | Path, base: str | Path) -> tuple[MiniLLM, AdapterRecord, ModelFacts]:
    """Puts an adapter on its base: (the adapted model, in evaluation mode; the adapter's record; the base's facts).

    An adapter that was trained beside int8 matrices gets the base's matrices rounded, which it was trained for.

    Raises:
        DataError: if a file is missing or damaged, or the adapter belongs to another base.
    """
    record, tensors = read_adapter(adapter)
    model, facts = load_trained_model(base)
    if facts.weights_sha256 != record.base_sha256:
        raise DataError(
            f"the adapter {adapter} was trained on the model with sha256 {record.base_sha256[:12]}…, and {base} has "
            f"{facts.weights_sha256[:12]}…: give the base that it was trained on. On another model an adapter "
            "adds noise"
        )
    adapt(model, record.adapter, 0)
    names, own = _names(model), dict(model.named_parameters())
    if set(tensors) != set(names.values()) or any(tensors[t].shape != own[o].shape for o, t in names.items()):
        raise DataError(f"the tensors of {adapter} are not those of an adapter of {base} with rank {record.rank}")
    with torch.no_grad():
        for ours, theirs in names.items():
            own[ours].copy_(tensors[theirs])
    return model.eval(), record, facts
