"""The GGUF file for llama.cpp, by the `gguf` package.

llama.cpp's llama architecture rotates neighbouring pairs; ours and Hugging Face's rotate halves. So rows of q and k are
permuted here (a file without the permutation loads and gives fluent nonsense). Its qwen3 architecture, for models with
qk_norm, rotates halves: nothing is permuted. Scores, token types and `add_space_prefix: false` decide the token ids;
all of them are written.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

import gguf
import numpy as np

from foundry.config import ExportError
from foundry.config.corpus import CHAT_MARKERS
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import CHAT_TEMPLATE
from foundry.tokenizers.tokenizer import BOS_ID, EOS_ID, UNK_ID
from foundry.utils.files import atomic_write, disk_errors, make_folder

TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
LAYER = {
    "attention_norm": "attn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "ffn.w_gate": "ffn_gate",
    "ffn.w_up": "ffn_up",
    "ffn.w_down": "ffn_down",
}
_QK_NORM = {"attention.q_norm": "attn_q_norm", "attention.k_norm": "attn_k_norm"}


def interleave(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k matrix (heads * D, C) from halves to neighbouring pairs, head by head."""
    rows, columns = w.shape
    return w.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def gguf_tensors(model: MiniLLM) -> dict[str, np.ndarray]:
    """{GGUF name: float32 array} in the order of the file."""
    cfg, state = model.cfg, {k: v.detach().float().cpu().numpy() for k, v in model.state_dict().items()}
    out = {"token_embd.weight": state["tok_embeddings.weight"]}
    for i in range(cfg.n_layers):
        for ours, theirs in (LAYER | (_QK_NORM if cfg.qk_norm else {})).items():
            w = state[f"layers.{i}.{ours}.weight"]
            if ours in ("attention.wq", "attention.wk") and not cfg.qk_norm:
                w = interleave(w, cfg.n_heads if ours == "attention.wq" else cfg.n_kv_heads)
            out[f"blk.{i}.{theirs}.weight"] = w
    out["output_norm.weight"] = state["norm.weight"]
    if not cfg.tie_embeddings:
        out["output.weight"] = state["output.weight"]
    return out


def check_vocabulary(tokenizer: Tokenizer) -> None:
    """Refuses two tokens with the same text: llama.cpp aborts the process that loads such a file.

    Raises:
        ExportError: naming the text and both ids.
    """
    seen: dict[str, int] = {}
    for i in range(tokenizer.vocab_size):
        text = tokenizer.piece(i)
        if text in seen:
            raise ExportError(f"tokens {seen[text]} and {i} have the same text {text!r}: train the tokenizer again")
        seen[text] = i


def number_type(w: np.ndarray, kind: str) -> gguf.GGMLQuantizationType:
    """The number format of a tensor in a file of this kind: norms stay float32."""
    return TYPES[kind][0] if w.ndim == 2 else gguf.GGMLQuantizationType.F32


def encoded(name: str, w: np.ndarray, kind: str) -> np.ndarray:
    """The bytes of the tensor in the file.

    Raises:
        ExportError: if the number format cannot represent the tensor.
    """
    check_rows(name, w, kind)
    w = np.ascontiguousarray(w, np.float32)
    largest = float(np.abs(w).max())
    if not largest <= (65504 if kind == "f16" and w.ndim == 2 else np.finfo(np.float32).max):
        raise ExportError(
            f"{name} has a value of {largest:g}, which {kind} cannot represent: leave {kind} out of export.gguf_types"
        )
    return gguf.quants.quantize(w, number_type(w, kind))


def check_rows(name: str, w: np.ndarray, kind: str) -> None:
    """Refuses rows whose length is not a multiple of the block size.

    Raises:
        ExportError: naming the tensor.
    """
    block, _ = gguf.GGML_QUANT_SIZES[number_type(w, kind)]
    if w.shape[-1] % block:
        raise ExportError(
            f"{name} has rows of {w.shape[-1]} numbers, but {kind} needs multiples of {block}: "
            f"leave {kind} out of export.gguf_types"
        )


def export_gguf(model: MiniLLM, tokenizer: Tokenizer, path: str | Path, kind: str, name: str) -> None:
    """Writes the file atomically; the same bytes for the same model.

    Args:
        kind: number format of the matrices: f32, f16, bf16, q8_0 or q4_0.
        name: `general.name`.

    Raises:
        ValueError: for an unknown format.
        ExportError: if the format cannot represent a tensor, or two tokens have the same text.
    """
    if kind not in TYPES:
        raise ValueError(f"kind must be one of {', '.join(TYPES)}, got {kind!r}")
    check_vocabulary(tokenizer)
    path = Path(path)
    make_folder(path.parent)
    # The package opens the path itself, so it gets a temporary one; the copy gives the file its final name atomically.
    with (
        disk_errors(path.parent),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder,
    ):
        try:
            _write(Path(folder) / "complete.gguf", model, tokenizer, kind, name)
        except OSError as e:
            if e.errno is None:  # NumPy's `tofile`, which the package calls, reports a short write without its errno
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from e
            raise
        with atomic_write(path) as out, open(Path(folder) / "complete.gguf", "rb") as f:
            shutil.copyfileobj(f, out, 1 << 20)


def _write(path: Path, model: MiniLLM, tokenizer: Tokenizer, kind: str, name: str) -> None:
    cfg = model.cfg
    tensors = gguf_tensors(model)
    w = gguf.GGUFWriter(path, "qwen3" if cfg.qk_norm else "llama")
    w.add_name(name)
    w.add_file_type(TYPES[kind][1])
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    w.add_vocab_size(cfg.vocab_size)
    w.add_context_length(cfg.max_seq_len)
    w.add_embedding_length(cfg.dim)
    w.add_block_count(cfg.n_layers)
    w.add_feed_forward_length(cfg.ffn_dim)
    w.add_head_count(cfg.n_heads)
    w.add_head_count_kv(cfg.n_kv_heads)
    w.add_key_length(cfg.head_dim)
    w.add_value_length(cfg.head_dim)
    w.add_rope_dimension_count(cfg.head_dim)
    w.add_rope_freq_base(cfg.rope_theta)
    w.add_layer_norm_rms_eps(cfg.norm_eps)
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list([token_text(tokenizer, i).encode() for i in range(cfg.vocab_size)])
    w.add_token_scores([tokenizer.score(i) for i in range(cfg.vocab_size)])
    w.add_token_types([token_type(tokenizer, i) for i in range(cfg.vocab_size)])
    w.add_bos_token_id(BOS_ID)
    w.add_eos_token_id(EOS_ID)
    w.add_unk_token_id(UNK_ID)
    w.add_eot_token_id(tokenizer.id_of(CHAT_MARKERS[1]))
    w.add_add_bos_token(True)
    w.add_add_eos_token(False)
    w.add_add_space_prefix(False)
    w.add_chat_template(CHAT_TEMPLATE)
    for tensor, value in tensors.items():
        check_rows(tensor, value, kind)
        qtype = number_type(value, kind)
        dtype = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}.get(qtype)
        shape = value.shape if dtype else gguf.quant_shape_to_byte_shape(value.shape, qtype)
        dtype = np.dtype(dtype or np.uint8)
        w.add_tensor_info(tensor, shape, dtype, int(np.prod(shape)) * dtype.itemsize, raw_dtype=qtype)
    try:
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_ti_data_to_file()
        for tensor in list(tensors):  # one encoded tensor in memory at a time
            w.write_tensor_data(encoded(tensor, tensors.pop(tensor), kind))
    finally:
        w.close()


def token_text(tokenizer: Tokenizer, i: int) -> str:
    """A token's text in the file; a user symbol is written as it is typed, since llama.cpp searches the text for it."""
    return tokenizer.text_of(i) if tokenizer.is_user_defined(i) else tokenizer.piece(i)


def token_type(tokenizer: Tokenizer, i: int) -> gguf.TokenType:
    """llama.cpp's type of a token: text never becomes a control token, and always becomes a user symbol."""
    if i == UNK_ID:
        return gguf.TokenType.UNKNOWN
    if tokenizer.is_control(i):
        return gguf.TokenType.CONTROL
    if tokenizer.is_user_defined(i):
        return gguf.TokenType.USER_DEFINED
    return gguf.TokenType.BYTE if tokenizer.is_byte(i) else gguf.TokenType.NORMAL
