"""What an export cannot carry, decided from the parameters: the reasons are known before anything is trained.

An export is one model in two formats: a Hugging Face folder (Llama or Qwen3) and GGUF files for llama.cpp. What either
cannot represent exactly is refused, so that the same model never answers differently in another engine. The rules about
symbols follow llama.cpp's `llama-vocab.cpp` (version of 2026-10) and the `tokenizers` library;
`tests/export/test_symbols.py` runs all three engines on both sides of each rule.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable

from foundry.config import Config, ExportError, ModelConfig
from foundry.config.corpus import CONTROL_SYMBOLS

BLOCK = 32  # numbers of a row that share a scale in the block formats
BLOCK_FORMATS = ("q8_0", "q4_0")
# Texts that llama.cpp takes for control tokens, whatever type the file gives them: they end a generation, or are parts
# of fill-in-the-middle.
_CONTROL_TEXTS = """
    <|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> <|end_of_text|> <EOT> _<EOT> [EOT] <end_of_utterance>
    <|eom_id|> <|return|> <|call|> <|calls|> <|flush|> [EOS] <eos> <turn|> <|tool_response> [e~[
    <|fim_prefix|> <fim-prefix> <fim_prefix> <PRE> <|code_prefix|> <|prefix|>
    <|fim_suffix|> <fim-suffix> <fim_suffix> <SUF> <|code_suffix|> <|suffix|>
    <|fim_middle|> <fim-middle> <fim_middle> <MID> <|code_middle|> <|middle|>
    <|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|>
"""
LLAMA_CPP_TEXTS = frozenset(_CONTROL_TEXTS.split())
# llama.cpp changes the special tokens of models with these in their name, and refuses those that lack Phi-3's.
LLAMA_CPP_NAMES = ("phi-3", "phi3")


def export_problems(cfg: Config) -> list[str]:
    """Why a model with these parameters cannot be exported; empty if the parameters allow it.

    A pure function. Each reason names its parameter and says what to change.
    """
    return [
        *model_problems(cfg.model),
        *format_problems(cfg.model, cfg.export.gguf_types),
        *tokenizer_problems(cfg.tokenizer.kind, cfg.tokenizer.byte_fallback, cfg.tokenizer.user_symbols),
        *name_problems(cfg.export.model_name),
    ]


def chat_export_problems(cfg: Config) -> list[str]:
    """Why the export of the chat model would be refused beyond the reasons of `export_problems`."""
    formats = format_problems(cfg.model, cfg.chat_export.gguf_types)
    reasons = [*formats, *name_problems(cfg.chat_export.model_name)]
    return [reason.replace("export.", "chat_export.") for reason in reasons]


def refuse(problems: list[str]) -> None:
    """Raises the problems, if there are any, as one error.

    Raises:
        ExportError: with all of them.
    """
    if problems:
        raise ExportError("the model cannot be exported: " + "; ".join(problems))


def model_problems(cfg: ModelConfig) -> list[str]:
    """Why the exported classes of transformers and llama.cpp cannot compute the architecture."""
    problems = [
        f"model.{key} is {getattr(cfg, key):g}, which Llama and Qwen3 in transformers and llama.cpp do not have: "
        "train with 0"
        for key in ("logit_softcap", "sliding_window")
        if getattr(cfg, key)
    ]
    if not struct.unpack("<f", struct.pack("<f", cfg.norm_eps))[0]:
        problems.append(
            f"model.norm_eps is {cfg.norm_eps:g}, which is 0 in llama.cpp's 32-bit numbers: train with a larger one"
        )
    return problems


def format_problems(cfg: ModelConfig, kinds: Iterable[str]) -> list[str]:
    """Why number formats cannot represent the model's rows.

    Q8_0 and Q4_0 store 32 numbers of a row as one block. The name of a file with some matrices in another format would
    be wrong, so there is no fallback.
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
    """Why transformers or llama.cpp would give other token ids than the tokenizer.

    Args:
        kind: `tokenizer.kind`.
        symbols: `tokenizer.user_symbols`.
    """
    problems = []
    if kind != "bpe":
        problems.append(
            f"tokenizer.kind is {kind}: llama.cpp gives other token ids for such a tokenizer; to export, train with bpe"
        )
    if not byte_fallback:
        problems.append(
            "tokenizer.byte_fallback is false: llama.cpp aborts on such a vocabulary; to export, train with true"
        )
    symbols = list(symbols)
    for s in symbols:
        if reason := _symbol_problem(s, [other for other in symbols if other != s]):
            problems.append(f"tokenizer.user_symbols has {_short(s)}, {reason}")
    return problems


def name_problems(name: str) -> list[str]:
    """Why llama.cpp would misread a model because of its name."""
    found = [part for part in LLAMA_CPP_NAMES if part in name.lower()]
    if not found:
        return []
    return [
        f"export.model_name is {name}: llama.cpp takes a model with {found[0]!r} in its name for Microsoft's Phi-3; "
        "use another name"
    ]


def interpreter_problems() -> list[str]:
    """Why this interpreter cannot load an export for the proof: transformers builds its classes from docstrings."""
    if sys.flags.optimize < 2:
        return []
    return [
        f"Python runs with optimisation level {sys.flags.optimize} (PYTHONOPTIMIZE or -OO), which removes the "
        "docstrings that transformers reads: unset PYTHONOPTIMIZE or set it to 1"
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
        # transformers looks for both at once and takes the first in the text: a typed control symbol hides a user
        # symbol, and a user symbol swallows the marker after a message.
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
