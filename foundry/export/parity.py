"""The proof of an export: the written files are read back and compared with the source model, in float32 on the CPU.

    weights      every tensor of the Hugging Face folder, read back into a MiniLLM, equals the source bit for bit
    token ids    transformers' tokenizer on hostile strings and real text, and its way back to text
    logits       transformers' own class, offline, on random tokens and real text in full contexts
    greedy text  the same continuations of given prompts
    gguf         every tensor and key, read back, equals the source in the file's number format

Any difference is an `ExportError` that says which and by how much; the caller gives nothing a final name before all
of it holds. Costs the import of transformers (some seconds) and about twenty forward passes of a full context.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from foundry.config import ExportError
from foundry.export.gguf_parity import prove_gguf
from foundry.export.hostile import HOSTILE
from foundry.export.huggingface import import_huggingface
from foundry.inference import Generator
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.tokenizer import EOS_ID

ROWS = 4  # contexts of random tokens, and as many of real text
NEW_TOKENS = 32


def prove(
    folder: str | Path,
    gguf_path: str | Path,
    gguf_type: str,
    model: MiniLLM,
    tokenizer: Tokenizer,
    texts: list[str],
    prompts: list[str],
    tolerance: float,
) -> dict[str, Any]:
    """Compares an export with its source; returns what was compared, for `parity.json`.

    Args:
        folder: the Hugging Face folder.
        texts: real text, for token ids and logits.
        prompts: for greedy continuations; a long one is cut to half of the context.
        tolerance: largest difference of logits.

    Raises:
        ExportError: at the first comparison that fails.
    """
    folder = Path(folder)
    model = model.float().cpu().eval()
    tensors = _prove_weights(folder, model)
    hf_model, hf_tokenizer = _load_transformers(folder)
    return {
        "weights": {"tensors": tensors, "different": 0},
        "token_ids": _prove_ids(hf_tokenizer, tokenizer, texts),
        "logits": _prove_logits(hf_model, model, tokenizer, texts, tolerance),
        "greedy": _prove_greedy(hf_model, model, tokenizer, prompts, tolerance),
        "gguf": prove_gguf(Path(gguf_path), gguf_type, model.cfg, tokenizer, folder / "model.safetensors"),
    }


def _load_transformers(folder: Path) -> tuple[Any, Any]:
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the library is imported
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        hf, info = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as e:
        raise ExportError(f"transformers cannot load {folder.name}: {e}") from e
    if odd := {k: sorted(map(str, v)) for k, v in info.items() if v}:
        raise ExportError(f"transformers loads {folder.name} with {odd}")
    return hf.eval(), tokenizer


def _prove_weights(folder: Path, model: MiniLLM) -> int:
    back, _ = import_huggingface(folder)
    state = back.state_dict()
    for name, value in model.state_dict().items():
        if not torch.equal(state[name], value):
            off = (state[name] - value).abs().max().item()
            raise ExportError(f"the exported tensor {name} differs from the source by {off:.3g}")
    # Dropout and the first weights are of training alone.
    if back.cfg != model.cfg.model_copy(update={"dropout": 0.0, "zero_init": True}):
        raise ExportError(f"the exported configuration reads back as {back.cfg!r}, the source is {model.cfg!r}")
    return len(state)


def _prove_ids(hf: Any, tokenizer: Tokenizer, texts: list[str]) -> dict[str, int]:
    tokens = 0
    for text in (*HOSTILE, *texts):
        ours = tokenizer.encode(text, bos=True)
        theirs = hf(text, split_special_tokens=True)["input_ids"]
        if ours != theirs:
            both = zip(ours, theirs, strict=False)
            at = next((i for i, (a, b) in enumerate(both) if a != b), min(len(ours), len(theirs)))
            raise ExportError(
                f"token ids differ from position {at} on for {text[:60]!r}: {ours[at : at + 5]} in SentencePiece, "
                f"{theirs[at : at + 5]} in transformers"
            )
        back = hf.decode(theirs, skip_special_tokens=True)
        if back != text:
            raise ExportError(f"transformers decodes the tokens of {text[:60]!r} to {back[:60]!r}")
        tokens += len(ours)
    return {"strings": len(HOSTILE) + len(texts), "hostile": len(HOSTILE), "tokens": tokens, "different": 0}


@torch.inference_mode()
def _prove_logits(
    hf: Any, model: MiniLLM, tokenizer: Tokenizer, texts: list[str], tolerance: float
) -> dict[str, float | int]:
    compared, worst = 0, 0.0
    for row in _contexts(model, tokenizer, texts):
        # One row at a time: logits of all rows of a large vocabulary would not fit the memory of a small machine.
        difference = (model(row)[0] - hf(row).logits).abs().max().item()
        if not difference <= tolerance:
            raise ExportError(f"logits differ by {difference:.3g}, allowed are {tolerance:g} (export.parity_tolerance)")
        worst, compared = max(worst, difference), compared + row.numel()
    return {"tokens": compared, "tolerance": tolerance, "largest_difference_below": _power_of_ten(worst)}


def _contexts(model: MiniLLM, tokenizer: Tokenizer, texts: list[str]) -> Iterator[torch.Tensor]:
    """int64 (1, T): random tokens, then real text, its documents joined and repeated until a context is full."""
    T, V = model.cfg.max_seq_len, model.cfg.vocab_size
    yield from torch.randint(V, (ROWS, T), generator=torch.Generator().manual_seed(0)).split(1)
    real: list[int] = []
    for text in texts:
        real += tokenizer.encode(text, bos=True, eos=True)
        if len(real) >= ROWS * T:
            break
    if real:
        rows = min(ROWS, -(-len(real) // T))
        yield from torch.tensor((real * -(-rows * T // len(real)))[: rows * T]).view(rows, T).split(1)


def _power_of_ten(x: float) -> float:
    """The next power of ten above: the machine's last bits stay out of a file that must be reproducible."""
    return float(f"1e{math.floor(math.log10(x)) + 1}") if x > 0 else 0.0


@torch.inference_mode()
def _prove_greedy(
    hf: Any, model: MiniLLM, tokenizer: Tokenizer, prompts: list[str], tolerance: float
) -> dict[str, int]:
    """The same greedy tokens; where two logits tie within the tolerance, either is right and a comparison ends."""
    generator, total, ties = Generator(model, tokenizer, "cpu"), 0, 0
    T = model.cfg.max_seq_len
    for prompt in prompts:
        ids = tokenizer.encode(prompt, bos=True)[: T // 2]
        n = min(NEW_TOKENS, T - len(ids))
        ours = list(generator.generate_ids(ids, max_new_tokens=n, temperature=0))
        ours += [EOS_ID] * (len(ours) < n)
        prompt_ids = torch.tensor([ids])
        theirs = hf.generate(
            prompt_ids, attention_mask=torch.ones_like(prompt_ids), max_new_tokens=n, do_sample=False, temperature=None,
            top_k=None, top_p=None, suppress_tokens=generator.barred, eos_token_id=EOS_ID, pad_token_id=EOS_ID,
        )[0, len(ids) :].tolist()  # fmt: skip
        if ours == theirs:
            total += len(ours)
            continue
        at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
        logits = model(torch.tensor([ids + ours[:at]]))[0][0, -1]
        gap = abs(logits[ours[at]] - logits[theirs[at]]).item()
        if gap > 2 * tolerance:
            raise ExportError(
                f"greedy continuations of {prompt[:60]!r} differ at token {at}: {tokenizer.decode(ours)[:80]!r} here, "
                f"{tokenizer.decode(theirs)[:80]!r} in transformers (logits {gap:.3g} apart)"
            )
        total, ties = total + at, ties + 1
    return {"prompts": len(prompts), "tokens": total, "ties": ties, "different": 0}
