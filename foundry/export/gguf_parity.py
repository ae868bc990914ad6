"""The proof of the GGUF file: read back by the `gguf` package, it equals the source within its number format.

Independent of the writer: names come from the package's own table of llama's tensors, q and k are turned back by a
formula of their own, and the expected numbers are torch's roundings, not the package's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from foundry.config import ExportError, ModelConfig
from foundry.export.huggingface import CHAT_TEMPLATE
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.tokenizer import BOS_ID, CHAT_MARKERS, EOS_ID, UNK_ID

FORMATS = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}  # llama.cpp's general.file_type
BLOCK = 32  # numbers of Q8_0 that share a scale


def prove_gguf(path: Path, kind: str, cfg: ModelConfig, tokenizer: Tokenizer, weights: Path) -> dict[str, Any]:
    """Compares the file with the proved Hugging Face weights and the tokenizer.

    Args:
        weights: `model.safetensors` of the Hugging Face folder.

    Raises:
        ExportError: naming the key or tensor that differs, and by how much.
    """
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, OSError, IndexError) as e:
        raise ExportError(f"{path.name} cannot be read back: {e}") from e
    for key, value in _expected_fields(kind, cfg, tokenizer).items():
        if key not in fields:
            raise ExportError(f"{path.name}: {key} is missing, expected {str(value)[:80]}")
        if fields[key] != value:
            raise ExportError(f"{path.name}: {key} {_difference(fields[key], value)}")
    arch = gguf.MODEL_ARCH.QWEN3 if cfg.qk_norm else gguf.MODEL_ARCH.LLAMA
    names = gguf.get_tensor_name_map(arch, cfg.n_layers)
    source = {names.get_name(k, try_suffixes=(".weight",)): (k, v) for k, v in load_file(weights).items()}
    read = {tensor.name: tensor for tensor in reader.tensors}
    if set(read) != set(source):
        raise ExportError(
            f"{path.name} has other tensors than the model: {sorted(map(str, set(read) ^ set(source)))[:3]}"
        )
    worst = 0.0
    for name, (hf_name, w) in source.items():
        tensor = read[name]
        value = torch.from_numpy(
            gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(w.shape)
        )
        if hf_name.endswith(("q_proj.weight", "k_proj.weight")) and not cfg.qk_norm:
            value = _halves(value, cfg.n_heads if "q_proj" in hf_name else cfg.n_kv_heads)
        nearest, slack = _rounded(w, kind if w.ndim == 2 else "f32")
        if not bool(((value - nearest).abs() <= slack).all()):
            off = (value - nearest).abs().max().item()
            raise ExportError(
                f"{path.name}: tensor {name} differs from the source by {off:.3g}, more than {kind} rounds"
            )
        worst = max(worst, (value - w).abs().max().item())
    return {"format": kind, "tensors": len(source), "tokens": cfg.vocab_size, "largest_rounding": float(f"{worst:.1e}")}


def _halves(w: Tensor, heads: int) -> Tensor:
    """Rows of q or k from neighbouring pairs back to halves: even rows of a head first, odd rows after them."""
    per_head = w.view(heads, -1, w.shape[1])
    return torch.cat((per_head[:, 0::2], per_head[:, 1::2]), dim=1).reshape(w.shape)


def _rounded(w: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """(the source in the number format, how far a right file may be from that): only Q8_0 has any slack."""
    none = torch.zeros(())
    if kind == "f16":
        return w.half().float(), none
    if kind == "bf16":
        return w.bfloat16().float(), none
    if kind == "f32":
        return w, none
    # Q8_0: a block's scale is its largest magnitude / 127, kept in float16 (2^-11 relative, 2^-25 absolute for the
    # tiniest).
    scale = w.view(w.shape[0], -1, BLOCK).abs().amax(-1, keepdim=True) / 127
    slack = scale * (0.5 + 127 / 2048 + 1e-4) + 127 * 2**-25
    return w, slack.expand(-1, -1, BLOCK).reshape(w.shape)


def _expected_fields(kind: str, cfg: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    def single(x: float) -> float:
        return float(np.float32(x))

    ids = range(cfg.vocab_size)
    arch = "qwen3" if cfg.qk_norm else "llama"
    types = [2 if i == UNK_ID else 3 if tokenizer.is_control(i) else 6 if tokenizer.is_byte(i) else 1 for i in ids]
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
        "tokenizer.ggml.tokens": [tokenizer.piece(i) for i in ids],
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
