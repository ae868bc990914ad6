"""The proof of a GGUF file: read back by the `gguf` package, it equals the source within its number format.

The expected numbers of f16 and bf16 are torch's roundings, not the package's. A block format must give exactly the
package's own round trip of the source, and stay within the error that the format's definition allows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from foundry.config import ExportError, ModelConfig
from foundry.config.corpus import CHAT_MARKERS
from foundry.export.gguf_read import read_gguf
from foundry.export.proof import GGUFProof
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import CHAT_TEMPLATE
from foundry.tokenizers.tokenizer import BOS_ID, EOS_ID, UNK_ID

FORMATS = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}  # llama.cpp's general.file_type
BLOCK = 32  # numbers of Q8_0 and Q4_0 that share a scale
_TYPE = gguf.GGMLQuantizationType
_BLOCKED = {"q8_0": _TYPE.Q8_0, "q4_0": _TYPE.Q4_0}
# What the package adds, and the name.
_UNCHECKED = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.name", "general.quantization_version")
_HALF = 2**-11  # largest relative rounding of float16; the tiniest lose 2^-25 absolute


def prove_gguf(path: Path, kind: str, cfg: ModelConfig, tokenizer: Tokenizer, weights: Path) -> GGUFProof:
    """Compares the file with the proved Hugging Face weights and the tokenizer.

    Args:
        weights: `model.safetensors` of the Hugging Face folder.

    Raises:
        ExportError: naming the key or the first tensor that differs, and by how much.
    """
    file = read_gguf(path, cfg)
    expected = _expected_fields(kind, cfg, tokenizer)
    for key, value in expected.items():
        if key not in file.fields:
            raise ExportError(f"{path.name}: {key} is missing, expected {str(value)[:80]}")
        if file.fields[key] != value:
            raise ExportError(f"{path.name}: {key} {_difference(file.fields[key], value)}")
    if extra := sorted(set(file.fields) - set(expected) - set(_UNCHECKED)):
        raise ExportError(f"{path.name}: {extra[0]} = {str(file.fields[extra[0]])[:80]} is not part of an export")
    worst = 0.0
    with safe_open(weights, "pt") as source:
        for hf_name, stored in file.tensors.items():
            w, value = source.get_tensor(hf_name), stored.value()
            _prove_tensor(f"{path.name}: tensor {stored.name}", value, w, kind if w.ndim == 2 else "f32")
            worst = max(worst, (value - w).abs().max().item())
    return GGUFProof(
        format=kind, tensors=len(file.tensors), tokens=cfg.vocab_size, largest_rounding=float(f"{worst:.1e}")
    )


def _prove_tensor(what: str, value: Tensor, w: Tensor, kind: str) -> None:
    nearest, slack = _rounded(w, kind)
    off = (value - nearest).abs()
    if not bool((off <= slack).all()):
        raise ExportError(f"{what} differs from the source by {off.max().item():.3g}, more than {kind} rounds")
    if kind in _BLOCKED:
        blocks = gguf.quants.quantize(w.numpy(), _BLOCKED[kind])
        again = torch.from_numpy(gguf.quants.dequantize(blocks, _BLOCKED[kind]).astype(np.float32).reshape(w.shape))
        if not torch.equal(value, again):
            off = (value - again).abs().max()
            raise ExportError(f"{what} differs by {off.item():.3g} from gguf's own {kind} of the source")


def _rounded(w: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """(the source in the number format, how far a correct file may be from it): only block formats have any slack."""
    none = torch.zeros(())
    if kind == "f16":
        return w.half().float(), none
    if kind == "bf16":
        return w.bfloat16().float(), none
    if kind == "f32":
        return w, none
    blocks = w.view(w.shape[0], -1, BLOCK)
    largest = blocks.abs().amax(-1, keepdim=True)
    if kind == "q8_0":  # a block's scale is its largest magnitude / 127, stored in float16
        slack = largest / 127 * (0.5 + 127 * _HALF + 1e-4) + 127 * 2**-25
        return w, slack.expand_as(blocks).reshape(w.shape)
    # Q4_0: integers from -8 to 7, and the largest magnitude becomes -8; what is beyond 7.5 on the other side is clipped
    # to 7.
    scale = largest / 8
    steps = torch.where(scale > 0, (blocks.abs() / scale.clamp_min(1e-45) - 7), torch.zeros(())).clamp_min(0.5)
    slack = scale * (steps + 8 * _HALF + 1e-4) + 8 * 2**-25
    return w, slack.reshape(w.shape)


def _expected_fields(kind: str, cfg: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    def single(x: float) -> float:
        return float(np.float32(x))

    ids = range(cfg.vocab_size)
    arch = "qwen3" if cfg.qk_norm else "llama"
    user = [i for i in ids if tokenizer.is_user_defined(i)]
    types = [2 if i == UNK_ID else 3 if tokenizer.is_control(i) else 6 if tokenizer.is_byte(i) else 1 for i in ids]
    texts = [tokenizer.piece(i) for i in ids]
    for i in user:
        types[i], texts[i] = 4, tokenizer.decode([i])
    return {
        "general.architecture": arch,
        "general.file_type": FORMATS[kind],
        f"{arch}.vocab_size": cfg.vocab_size,
        f"{arch}.context_length": cfg.max_seq_len,
        f"{arch}.embedding_length": cfg.dim,
        f"{arch}.block_count": cfg.n_layers,
        f"{arch}.feed_forward_length": cfg.ffn_dim,
        f"{arch}.attention.head_count": cfg.n_heads,
        f"{arch}.attention.head_count_kv": cfg.n_kv_heads,
        f"{arch}.attention.key_length": cfg.head_dim,
        f"{arch}.attention.value_length": cfg.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": single(cfg.norm_eps),
        f"{arch}.rope.dimension_count": cfg.head_dim,
        f"{arch}.rope.freq_base": single(cfg.rope_theta),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": [single(tokenizer.score(i)) for i in ids],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": BOS_ID,
        "tokenizer.ggml.eos_token_id": EOS_ID,
        "tokenizer.ggml.unknown_token_id": UNK_ID,
        "tokenizer.ggml.eot_token_id": tokenizer.id_of(CHAT_MARKERS[1]),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _difference(seen: Any, expected: Any) -> str:
    if isinstance(seen, list) and isinstance(expected, list) and len(seen) == len(expected):
        at = next(i for i, (a, b) in enumerate(zip(seen, expected, strict=True)) if a != b)
        return f"reads back as {seen[at]!r} at token {at}, expected {expected[at]!r}"
    return f"reads back as {str(seen)[:80]}, expected {str(expected)[:80]}"
