"""The proof of an export: the written files are read back and compared with the source model, in float32 on the CPU.

    weights      every tensor of the Hugging Face folder, read back into a MiniLLM, equals the source bit for bit
    logits       transformers' LlamaForCausalLM, offline, on random tokens and real text in full contexts
    token ids    transformers' tokenizer on hostile strings and real text
    greedy text  the same continuations of fixed prompts
    gguf         every tensor, read back, equals the source in the file's number format; vocabulary, scores and types too

Any difference is an `ExportError` that says which and by how much; the caller writes nothing under a final name before all of it holds.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foundry.config import ExportError
from foundry.export.gguf_file import encoded, gguf_tensors, token_type
from foundry.export.huggingface import import_huggingface
from foundry.inference import Generator
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer

HOSTILE = [
    "", " ", "  ", "a", " leading", "trailing ", "two  spaces", "\ttab\tand\ttab", "\n", "\n\n\nlines\n", "\r\n", "mixed \t\n \r end",
    "日本語のテキスト", "简体中文，标点。", "繁體中文「引號」", "한국어 텍스트", "مرحبا بالعالم", "שלום עולם", "Привет, мир", "ไทย",
    "🙂", "👩‍👩‍👧‍👦", "🇩🇪🇨🇳", "e\u0301 combining", "é composed", "\u200bzero\u200dwidth", "\ufeffbom", "\u00a0no-break", "½ ﬁ Ａ①ﷺ",
    "a\x00b\x01\x1b[0m", "<s>", "</s><unk>", "<|im_start|>user\nhi<|im_end|>", "<|reserved_0|>", "<0x41>", "1234567890 3.14159 1,000", "x" * 400,
    "don't can't won't", "https://example.org/a?b=c#d", "def f(x):\n    return x ** 2\n", "\U0010ffff\U0001f9ff", "\u2028\u2029\x85",
]  # fmt: skip


def prove(
    folder: str | Path, gguf_path: str | Path, gguf_type: str, model: MiniLLM, tokenizer: Tokenizer, texts: list[str], prompts: list[str], tolerance: float
) -> dict[str, Any]:
    """Compares an export with its source; returns what was compared, for `parity.json`.

    Args:
        texts: real text, for token ids and logits.
        prompts: for greedy continuations.
        tolerance: largest difference of logits.

    Raises:
        ExportError: at the first kind of comparison that fails.
    """
    folder = Path(folder)
    model = model.float().cpu().eval()
    _prove_weights(folder, model)
    hf_model, hf_tokenizer = _load_transformers(folder)
    ids = _prove_ids(hf_tokenizer, tokenizer, [*HOSTILE, *texts])
    logits = _prove_logits(hf_model, model, tokenizer, texts, tolerance)
    greedy = _prove_greedy(hf_model, model, tokenizer, prompts)
    tensors = _prove_gguf(Path(gguf_path), gguf_type, model, tokenizer)
    return {
        "weights": {"tensors": len(model.state_dict()), "equal": "bit for bit"},
        "logits": logits,
        "token_ids": {"strings": ids, "different": 0},
        "greedy": {"prompts": len(prompts), "tokens": greedy, "different": 0},
        "gguf": {"tensors": tensors, "format": gguf_type, "different": 0},
    }


def _load_transformers(folder: Path) -> tuple[Any, Any]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        hf, info = LlamaForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32, output_loading_info=True)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as e:
        raise ExportError(f"transformers cannot load {folder}: {e}") from e
    if odd := {k: sorted(v) for k, v in info.items() if k in ("missing_keys", "unexpected_keys", "mismatched_keys") and v}:
        raise ExportError(f"transformers loads {folder} with {odd}")
    return hf.eval(), tokenizer


def _prove_weights(folder: Path, model: MiniLLM) -> None:
    back, _ = import_huggingface(folder)
    for name, value in model.state_dict().items():
        if not torch.equal(back.state_dict()[name], value):
            raise ExportError(f"the exported tensor {name} differs from the source")
    if back.cfg != model.cfg.model_copy(update={"dropout": 0.0}):
        raise ExportError(f"the exported configuration reads back as {back.cfg}, the source is {model.cfg}")


def _prove_ids(hf: Any, tokenizer: Tokenizer, strings: list[str]) -> int:
    for s in strings:
        ours = tokenizer.encode(s, bos=True)
        theirs = hf(s, split_special_tokens=True)["input_ids"]
        if ours != theirs:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
            raise ExportError(f"token ids differ from position {at} on for {s[:60]!r}: {ours[at : at + 5]} in SentencePiece, {theirs[at : at + 5]} in transformers")
        if hf.decode(theirs, skip_special_tokens=True) != s:
            raise ExportError(f"transformers decodes {s[:60]!r} to {hf.decode(theirs, skip_special_tokens=True)[:60]!r}")
    return len(strings)


@torch.inference_mode()
def _prove_logits(hf: Any, model: MiniLLM, tokenizer: Tokenizer, texts: list[str], tolerance: float) -> dict[str, Any]:
    T, V = model.cfg.max_seq_len, model.cfg.vocab_size
    random = torch.randint(V, (4, T), generator=torch.Generator().manual_seed(0))
    real = [i for text in texts for i in tokenizer.encode(text, bos=True, eos=True)]
    rows = max(1, min(8, len(real) // T))
    batches = [random, torch.tensor((real * (T // max(1, len(real)) + 1))[: rows * T]).view(rows, T)]
    worst = 0.0
    for tokens in batches:
        worst = max(worst, (model(tokens)[0] - hf(tokens).logits).abs().max().item())
    if not worst <= tolerance:
        raise ExportError(f"logits differ by {worst:.3g}, allowed are {tolerance:g} (export.parity_tolerance)")
    return {"tokens": sum(b.numel() for b in batches), "tolerance": tolerance, "within_tolerance": True}


@torch.inference_mode()
def _prove_greedy(hf: Any, model: MiniLLM, tokenizer: Tokenizer, prompts: list[str]) -> int:
    generator, total = Generator(model, tokenizer, "cpu"), 0
    for prompt in prompts:
        ids = tokenizer.encode(prompt, bos=True)
        n = min(32, model.cfg.max_seq_len - len(ids))
        if n < 1:
            continue
        ours = list(generator.generate_ids(list(ids), max_new_tokens=n, temperature=0))
        barred = generator._barred.tolist()
        theirs = hf.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=n, do_sample=False, temperature=None, top_p=None,
            suppress_tokens=barred, eos_token_id=tokenizer.eos_id, pad_token_id=0,
        )[0, len(ids) :].tolist()  # fmt: skip
        theirs = theirs[: theirs.index(tokenizer.eos_id)] if tokenizer.eos_id in theirs else theirs
        if ours != theirs:
            raise ExportError(f"greedy continuations of {prompt!r} differ: {tokenizer.decode(ours)[:80]!r} here, {tokenizer.decode(theirs)[:80]!r} in transformers")
        total += len(ours)
    return total


def _prove_gguf(path: Path, kind: str, model: MiniLLM, tokenizer: Tokenizer) -> int:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    n = model.cfg.vocab_size
    expected = {
        "general.architecture": "llama", "llama.context_length": model.cfg.max_seq_len, "llama.attention.head_count_kv": model.cfg.n_kv_heads,
        "llama.attention.head_count": model.cfg.n_heads, "llama.block_count": model.cfg.n_layers, "llama.feed_forward_length": model.cfg.ffn_dim,
        "llama.rope.freq_base": float(np.float32(model.cfg.rope_theta)), "llama.attention.layer_norm_rms_epsilon": float(np.float32(model.cfg.norm_eps)),
        "tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.tokens": [tokenizer.piece(i) for i in range(n)],
        "tokenizer.ggml.scores": [float(np.float32(tokenizer.score(i))) for i in range(n)],
        "tokenizer.ggml.token_type": [int(token_type(tokenizer, i)) for i in range(n)],
    }  # fmt: skip
    for key, value in expected.items():
        if fields.get(key) != value:
            raise ExportError(f"{path.name}: {key} reads back as {str(fields.get(key))[:80]}, expected {str(value)[:80]}")
    read = {t.name: t for t in reader.tensors}
    source = gguf_tensors(model)
    if set(read) != set(source):
        raise ExportError(f"{path.name} has other tensors than the model: {sorted(set(read) ^ set(source))[:3]}")
    for name, value in source.items():
        data, qtype = encoded(name, value, kind)
        if read[name].tensor_type != qtype or not np.array_equal(read[name].data.view(np.uint8).ravel(), data.view(np.uint8).ravel()):
            raise ExportError(f"{path.name}: tensor {name} differs from the source in {kind}")
    return len(source)
