"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): small matrices that are trained beside frozen weights.

The update of a matrix is `alpha / rank * B @ A`, with A random and B zero at the beginning, so that an adapted model
begins as its base, bit for bit. All seven matrices of each layer have one. The embedding rows of some symbols can be
trained as well: those of the chat markers, which never occur in pre-training and would stay random otherwise.

The weight that a layer multiplies by is computed as a whole, in float32, from base and update: an adapted model and
the merged one are the same function, and what packs or compiles the layers need not know of adapters. The gradient of
that weight exists for one matrix at a time; what is saved are the moments and the checkpoints of the frozen weights.

Letters: r rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MATRICES = ("attention.wq", "attention.wk", "attention.wv", "attention.wo", "ffn.w_gate", "ffn.w_up", "ffn.w_down")


@dataclass(frozen=True)
class Adapter:
    """The shape of an adapter.

    Attributes:
        rank, alpha: of the updates, whose factor is alpha / rank.
        rows: ids whose rows of the embedding, and of an untied output head, are trained.
        base_weights: number format of the frozen matrices of the layers.
    """

    rank: int
    alpha: float
    rows: tuple[int, ...] = ()
    base_weights: Literal["float32", "int8"] = "float32"

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the adapted model besides its weights, as JSON values."""
        return {
            "adapter.rank": self.rank,
            "adapter.alpha": self.alpha,
            "adapter.rows": list(self.rows),
            "adapter.base_weights": self.base_weights,
        }


class AdaptedLinear(nn.Module):
    """A linear layer whose weight is that of a frozen matrix and its update.

    Args:
        base: float32 (out, in).
        generator: draws A.
    """

    def __init__(self, base: Tensor, adapter: Adapter, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = adapter.scale
        self.out_features, self.in_features = base.shape
        bound = 1 / math.sqrt(self.in_features)  # Kaiming uniform with a = sqrt(5), as PEFT draws it
        a = torch.empty(adapter.rank, self.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(a.to(base.device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, adapter.rank, device=base.device))
        self.base: Tensor | None = None
        if adapter.base_weights == "int8":
            codes, steps = rounded(base)
            self.register_buffer("codes", codes)
            self.register_buffer("steps", steps)
        else:
            self.base = nn.Parameter(base.detach().clone(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """float32 (out, in)."""
        base = self.codes.float() * self.steps if self.base is None else self.base
        with torch.autocast(base.device.type, enabled=False):
            return base + self.scale * (self.lora_B @ self.lora_A)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class AdaptedRows(nn.Module):
    """An embedding, or an output head, of which only some rows are trained.

    Args:
        base: float32 (V, C).
        ids: of the trained rows, which begin as those of the base.
    """

    def __init__(self, base: Tensor, ids: tuple[int, ...]) -> None:
        super().__init__()
        index = torch.tensor(ids, dtype=torch.int64, device=base.device)
        self.register_buffer("index", index, persistent=False)
        self.base = nn.Parameter(base.detach().clone(), requires_grad=False)
        self.rows = nn.Parameter(base.detach()[index].clone())

    @property
    def weight(self) -> Tensor:
        """float32 (V, C)."""
        return self.base.index_copy(0, self.index, self.rows)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight)


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (out, in) as int8 codes and one float32 step per row, (out, 1): the row's largest value is 127 steps."""
    weight = weight.detach().float()
    steps = (weight.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
    return (weight / steps).round().to(torch.int8), steps


def adapt(model: nn.Module, adapter: Adapter, seed: int) -> None:
    """Freezes a `MiniLLM` and puts an adapter on it, in place.

    Args:
        seed: of A.

    Raises:
        ValueError: if the model has an adapter.
    """
    if model.adapter is not None:
        raise ValueError("the model has an adapter already: merge it first")
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for block in model.layers:
        for path in MATRICES:
            room, _, name = path.partition(".")
            owner = getattr(block, room)
            setattr(owner, name, AdaptedLinear(getattr(owner, name).weight, adapter, generator))
    if adapter.rows:
        model.tok_embeddings = AdaptedRows(model.tok_embeddings.weight, adapter.rows)
        if model.output is not None:
            model.output = AdaptedRows(model.output.weight, adapter.rows)
    model.adapter = adapter


def merged(model: nn.Module) -> nn.Module:
    """A new model of the same class without an adapter that computes the same, in float32 and on the CPU."""
    whole = type(model)(model.cfg)
    weights = {f"{n}.weight": m.weight.detach() for n, m in model.named_modules() if hasattr(m, "weight")}
    whole.load_state_dict({name: value.float().cpu() for name, value in weights.items()})
    return whole.train(model.training)


def blank_like(model: nn.Module) -> nn.Module:
    """A new model of the same class, architecture and adapter, with other weights, on the CPU."""
    other = type(model)(model.cfg)
    if model.adapter is not None:
        adapt(other, model.adapter, 0)
    return other


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that an optimizer changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
