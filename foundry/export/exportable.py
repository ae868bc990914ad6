"""What parameters alone decide about an export: everything that would be refused after training, as reasons beforehand.

An export is one model in two formats: a Hugging Face folder (Llama or Qwen3) and GGUF files for llama.cpp. What either
cannot carry exactly is refused, so that the same model never answers differently in another engine. The rules about
symbols follow llama.cpp's `llama-vocab.cpp` (version of 2026-10) and the `tokenizers` library; `tests/export/test_symbols.py`
runs all three engines on both sides of each rule.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable

from foundry.config import Config, ExportError, ModelConfig
from foundry.config.corpus import CONTROL_SYMBOLS

BLOCK = 32  # numbers of a row that share a scale in the block formats
BLOCK_FORMATS = ("q8_0", "q4_0")
# Texts that llama.cpp takes for control tokens, whatever type the file says: ends of a generation, parts of fill-in-the-middle.
LLAMA_CPP_TEXTS = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>",
    "[EOT]", "<end_of_utterance>", "<|eom_id|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "[EOS]",
    "<eos>", "<turn|>", "<|tool_response>", "[e~[", "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<PRE>",
    "<|code_prefix|>", "<|prefix|>", "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<SUF>", "<|code_suffix|>",
    "<|suffix|>", "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<MID>", "<|code_middle|>", "<|middle|>",
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>",
    "<REPO>", "<reponame>", "<|file_sep|>",
))  # fmt: skip
# llama.cpp changes the special tokens of models with these in their name, and refuses those that lack Phi-3's.
LLAMA_CPP_NAMES = ("phi-3", "phi3")


def export_problems(cfg: Config) -> list[str]:
    """Why the model of these parameters cannot be exported; empty if nothing that parameters decide stands in the way.

    A pure function; each reason names its parameter and what to change.
    """
    return [
        *model_problems(cfg.model),
        *format_problems(cfg.model, cfg.export.gguf_types),
        *tokenizer_problems(cfg.tokenizer.kind, cfg.tokenizer.byte_fallback, cfg.tokenizer.user_symbols),
        *name_problems(cfg.export.model_name),
    ]


def refuse(problems: list[str]) -> None:
    """Raises the problems, if there are any, as one error.

    Raises:
        ExportError: with all of them.
    """
    if problems:
        raise ExportError("the model cannot be exported: " + "; ".join(problems))


def model_problems(cfg: ModelConfig) -> list[str]:
    """Architectures that no class of transformers and llama.cpp that this project exports can compute."""
    problems = [
        f"model.{key} is {getattr(cfg, key):g}, and Llama and Qwen3 in transformers and llama.cpp have no such thing: train with 0"
        for key in ("logit_softcap", "sliding_window")
        if getattr(cfg, key)
    ]
    if not struct.unpack("<f", struct.pack("<f", cfg.norm_eps))[0]:
        problems.append(f"model.norm_eps is {cfg.norm_eps:g}, which is 0 in llama.cpp's 32-bit numbers")
    return problems


def format_problems(cfg: ModelConfig, kinds: Iterable[str]) -> list[str]:
    """Number formats that cannot hold the model's rows.

    Q8_0 and Q4_0 keep 32 numbers of a row as one block. A file that held some matrices in another format would bear a
    name that is not true of it, so there is no fallback.
    """
    odd = [f"model.{key} is {n}" for key, n in (("dim", cfg.dim), ("ffn_dim", cfg.ffn_dim)) if n % BLOCK]
    blocked = [k for k in kinds if k in BLOCK_FORMATS]
    if not odd or not blocked:
        return []
    one = len(blocked) == 1
    return [
        f"{' and '.join(odd)}: {' and '.join(blocked)} need{'s' if one else ''} multiples of {BLOCK}; leave "
        f"{'it' if one else 'them'} out of export.gguf_types, or train with such widths"
    ]


def tokenizer_problems(kind: str, byte_fallback: bool, symbols: Iterable[str]) -> list[str]:
    """Tokenizers whose ids transformers or llama.cpp would not give.

    Args:
        kind: `tokenizer.kind`.
        symbols: `tokenizer.user_symbols`.
    """
    problems = []
    if kind != "bpe":
        problems.append(
            f"tokenizer.kind is {kind}: llama.cpp does not give the token ids of such a model; train with bpe to export"
        )
    if not byte_fallback:
        problems.append(
            "tokenizer.byte_fallback is false: llama.cpp aborts on such a vocabulary; train with true to export"
        )
    symbols = list(symbols)
    for s in symbols:
        if reason := _symbol_problem(s, [other for other in symbols if other != s]):
            problems.append(f"tokenizer.user_symbols has {_short(s)}, {reason}")
    return problems


def name_problems(name: str) -> list[str]:
    """Model names to which llama.cpp gives a meaning."""
    found = [part for part in LLAMA_CPP_NAMES if part in name.lower()]
    if not found:
        return []
    return [
        f"export.model_name is {name}: llama.cpp takes a name with {found[0]!r} for Microsoft's Phi-3; use another one"
    ]


def interpreter_problems() -> list[str]:
    """What stops this interpreter from loading an export for the proof: transformers builds its classes from docstrings."""
    if sys.flags.optimize < 2:
        return []
    return [
        f"Python runs with optimisation level {sys.flags.optimize} (PYTHONOPTIMIZE or -OO), which removes the docstrings that "
        "transformers reads: unset PYTHONOPTIMIZE or set it to 1"
    ]


def overlap(first: str, second: str) -> str:
    """The longest text that ends `first` and begins `second`, shorter than both; empty if there is none."""
    for size in range(min(len(first), len(second)) - 1, 0, -1):
        if first.endswith(second[:size]):
            return second[:size]
    return ""


def _symbol_problem(symbol: str, others: list[str]) -> str | None:
    if symbol in LLAMA_CPP_TEXTS:
        return "to which llama.cpp gives a meaning of its own (an end of the text, or a marker): use another spelling"
    for control in CONTROL_SYMBOLS:
        # transformers looks for both at once: the first in the text wins, a typed control symbol hides a user symbol, and a
        # user symbol swallows the marker after a message.
        if symbol in control or control in symbol or overlap(control, symbol) or overlap(symbol, control):
            return f"which overlaps the control symbol {control}: use another spelling"
    for other in others:
        # SentencePiece and transformers take the first in the text, llama.cpp the one with the most bytes.
        if (both := overlap(symbol, other)) and len(symbol.encode()) <= len(other.encode()):
            return (
                f"whose end {_short(both)} begins {_short(other)}: where they overlap in a text, the engines cut "
                "differently; use other spellings, or leave one out"
            )
    return None


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}…")
