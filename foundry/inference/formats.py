"""Number formats of the matrices in inference: float32, bfloat16, int8 and int4.

The matrices of every product are kept in the format, the output head included. Activations, the cache, norms and the
embedding, from which rows are only copied, are float32 for float32 and bfloat16 for all others.

`int8` has one scale per output: the largest weight of a row becomes 127 (as LLM.int8, Dettmers et al. 2022,
arXiv:2208.07339, for weights only). `int4` has a scale and an offset for every `GROUP` weights of a row, between whose
smallest and largest value the 16 steps are spread: 5 bits per weight. PyTorch's kernels multiply them by bfloat16
activations and compute each row for itself, so in these formats, too, a row does not depend on the others.

Letters: N rows, C inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from foundry.config import ConfigError, ModelConfig
from foundry.inference.products import Product, pack
from foundry.models import MiniLLM

GROUP = 32  # weights of a row that share a scale and an offset in int4
LARGEST = 127


@dataclass(frozen=True)
class Format:
    """A number format.

    Args:
        activations: the type of everything but the matrices.
        bits: per weight of a matrix, scales of int4 included.
        pack: prepares a matrix (O, C) of type `activations` or float32 for products.
        inputs, outputs: C and O must be multiples of them.
        cpu_only: whether PyTorch's kernel for it exists only for CPUs, or is tried out only there.
    """

    activations: torch.dtype
    bits: float
    pack: Callable[[Tensor], Product]
    inputs: int = 1
    outputs: int = 1
    cpu_only: bool = False


def quantise_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds a matrix (O, C) to int8 (O, C) times bfloat16 (O,)."""
    weight = weight.float()
    scale = (weight.abs().amax(1) / LARGEST).clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16()
    return (weight / scale[:, None]).round_().clamp_(-LARGEST, LARGEST).to(torch.int8), scale


def quantise_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds a matrix (O, C) to integers in [0, 15], int32 (O, C), with bfloat16 (C / GROUP, O, 2).

    A weight is `(integer - 8) * scale + offset`.
    """
    groups = weight.float().unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((high - low) / 15).clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16()
    offset = (low + 8 * scale).bfloat16()
    integers = ((groups - offset) / scale + 8).round_().clamp_(0, 15).to(torch.int32).flatten(1)
    return integers, torch.cat((scale, offset), -1).transpose(0, 1).contiguous()


def _pack_int8(weight: Tensor) -> Product:
    integers, scale = quantise_int8(weight.detach())
    return lambda x: torch._weight_int8pack_mm(x, integers, scale)


def _pack_int4(weight: Tensor) -> Product:
    integers, scales = quantise_int4(weight.detach())
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers, 1)
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP, scales)


FORMATS = {
    "float32": Format(torch.float32, 32, pack),
    "bfloat16": Format(torch.bfloat16, 16, pack),
    "int8": Format(torch.bfloat16, 8, _pack_int8, inputs=32, cpu_only=True),
    "int4": Format(torch.bfloat16, 4 + 32 / GROUP, _pack_int4, inputs=GROUP, outputs=16, cpu_only=True),
}


def number_format(name: str, cfg: ModelConfig, device: torch.device) -> Format:
    """The format of this name, if a model of this shape can be run in it on this device.

    Raises:
        ConfigError: with what is missing.
    """
    if name not in FORMATS:
        raise ConfigError(f"unknown number format {name[:80]!r} of weights: use {', '.join(FORMATS)}")
    chosen = FORMATS[name]
    if chosen.cpu_only and device.type != "cpu":
        raise ConfigError(f"weights in {name} run on CPUs only, not on {device.type}: use bfloat16 there")
    if name == "bfloat16" and device.type == "cpu" and not _cpu_has_bfloat16():
        raise ConfigError(
            "weights in bfloat16 need a processor with AVX-512 or AVX-NE-CONVERT, where oneDNN has kernels for it: "
            "use float32 or int8 here"
        )
    for what, outputs, inputs in _matrices(cfg):
        if outputs % chosen.outputs or inputs % chosen.inputs:
            raise ConfigError(
                f"weights in {name} need matrices whose inputs are a multiple of {chosen.inputs} and whose outputs are "
                f"one of {chosen.outputs}; {what} has {inputs} inputs and {outputs} outputs: use bfloat16"
            )
    return chosen


def _cpu_has_bfloat16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _matrices(cfg: ModelConfig) -> list[tuple[str, int, int]]:
    """(what it is, O, C) of every matrix of a layer as it is packed, and of the output head."""
    heads, kv = cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
    return [
        ("the input of attention", heads + 2 * kv, cfg.dim),
        ("the output of attention", cfg.dim, heads),
        ("the input of the feed-forward layer", 2 * cfg.ffn_dim, cfg.dim),
        ("the output of the feed-forward layer", cfg.dim, cfg.ffn_dim),
        ("the output head", cfg.vocab_size, cfg.dim),
    ]


def in_format(model: MiniLLM, name: str) -> tuple[MiniLLM, Callable[[Tensor], Product]]:
    """What `foundry.inference.runner.Runner` takes: the model in the type of its activations, and how to pack.

    The model is changed in place.

    Raises:
        ConfigError: as `number_format`.
    """
    chosen = number_format(name, model.cfg, model.tok_embeddings.weight.device)
    return model.to(chosen.activations), chosen.pack
