"""Reading a GGUF file back, by the `gguf` package, with Hugging Face's names and row order.

Independent of the writer: names come from the package's own table of llama's tensors, and the rows of q and k are put
back by another formula.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from foundry.config import ExportError, ModelConfig
from foundry.models import MiniLLM
from foundry.models.names import tensor_names


@dataclass(frozen=True)
class Stored:
    """One tensor of the file: its GGUF name, its number format, and a function that reads its values."""

    name: str
    kind: gguf.GGMLQuantizationType
    load: Callable[[], Tensor]

    def value(self) -> Tensor:
        """The values as float32 in Hugging Face's row order.

        They are read from the file at each call, so that a model does not have to fit into memory twice.
        """
        return self.load()


@dataclass(frozen=True)
class GGUFFile:
    """The keys, and the tensors by Hugging Face's names."""

    fields: dict[str, Any]
    tensors: dict[str, Stored]


def read_gguf(path: Path, cfg: ModelConfig) -> GGUFFile:
    """Reads the keys of a file and the positions of its tensors; values are read on demand.

    Raises:
        ExportError: if it cannot be read, or has other tensors or shapes than the model.
    """
    with torch.device("meta"):
        source = MiniLLM(cfg).state_dict()
    shapes = {theirs: tuple(source[ours].shape) for ours, theirs in tensor_names(cfg).items()}
    arch = gguf.MODEL_ARCH.QWEN3 if cfg.qk_norm else gguf.MODEL_ARCH.LLAMA
    table = gguf.get_tensor_name_map(arch, cfg.n_layers)
    names = {table.get_name(name, try_suffixes=(".weight",)): name for name in shapes}
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        read = {tensor.name: tensor for tensor in reader.tensors}
        if set(read) != set(names):
            odd = sorted(map(str, set(read) ^ set(names)))[:3]
            raise ExportError(f"{path.name} has other tensors than the model: {odd}")
        for n, t in read.items():
            if (seen := tuple(int(x) for x in reversed(t.shape))) != shapes[names[n]]:
                raise ExportError(f"{path.name}: tensor {n} is {list(seen)}, expected {list(shapes[names[n]])}")
        tensors = {names[n]: _stored(t, names[n], shapes[names[n]], cfg) for n, t in read.items()}
    except (ValueError, OSError, IndexError, KeyError) as e:
        raise ExportError(f"{path.name} cannot be read back: {e}") from e
    return GGUFFile(fields, tensors)


def load_gguf(path: Path, cfg: ModelConfig) -> MiniLLM:
    """The model in the file: every matrix dequantised to float32, in evaluation mode on the CPU.

    Raises:
        ExportError: if the file cannot be read, or has other tensors or shapes than the model.
    """
    tensors = read_gguf(path, cfg).tensors
    model = MiniLLM(cfg)
    state = model.state_dict()
    for ours, theirs in tensor_names(cfg).items():
        state[ours].copy_(tensors[theirs].value())
    return model.eval()


def _stored(tensor: Any, name: str, shape: tuple[int, ...], cfg: ModelConfig) -> Stored:
    def load() -> Tensor:
        flat = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        value = torch.from_numpy(flat.astype(np.float32).reshape(shape))
        if name.endswith(("q_proj.weight", "k_proj.weight")) and not cfg.qk_norm:
            value = _halves(value, cfg.n_heads if "q_proj" in name else cfg.n_kv_heads)
        return value

    return Stored(tensor.name, tensor.tensor_type, load)


def _halves(w: Tensor, heads: int) -> Tensor:
    """Rows of q or k from neighbouring pairs back to halves: even rows of a head first, odd rows after them."""
    per_head = w.view(heads, -1, w.shape[1])
    return torch.cat((per_head[:, 0::2], per_head[:, 1::2]), dim=1).reshape(w.shape)
