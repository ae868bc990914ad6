"""The proof that other engines hold the same conversation: the same token ids, and the same greedy answers.

A template that drifts between training and serving changes no weight and gives no error: the model is only asked in
another form than it was trained on (mistake 7 of the research page). So conversations go through the template of the
written files, in transformers and in llama.cpp, and their ids must be those of `encode_chat`, which training used.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from foundry.config import ExportError
from foundry.export.differences import first_difference
from foundry.export.gguf_file import export_gguf
from foundry.export.greedy import Continuation, prove_greedy
from foundry.export.llamacpp import ask
from foundry.export.llamacpp_child import Prompt, Request
from foundry.export.parity import load_transformers
from foundry.export.proof import ChatProof, GreedyProof
from foundry.export.settings_parity import CHAT
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import Message, encode_chat, end_of_turn
from foundry.tokenizers.tokenizer import UNK_ID


@dataclass(frozen=True)
class Conversations:
    """What is compared.

    Attributes:
        turns: conversations that wait for an answer; without chat markers in their texts, which a rendered template
            would turn into symbols.
        answers: greedy answers of the model; the symbol that ended one is its last token.
    """

    turns: Sequence[Sequence[Message]]
    answers: Sequence[Continuation]


def prove_chat(
    hf: Path, f32: Path | None, model: MiniLLM, tokenizer: Tokenizer, asked: Conversations, tolerance: float
) -> ChatProof:
    """Compares conversations in transformers and llama.cpp with Foundry's.

    Args:
        hf: the Hugging Face folder.
        f32: the float32 GGUF file; None makes one for the proof.
        tolerance: largest difference of logits: two tokens that are closer than twice that tie.

    Raises:
        ExportError: naming the conversation and the first token that differs.
    """
    ours = [encode_chat(tokenizer, turns) for turns in asked.turns]
    hf_model, hf_tokenizer = load_transformers(hf)
    for turns, ids in zip(asked.turns, ours, strict=True):
        rendered = hf_tokenizer.apply_chat_template(
            [m._asdict() for m in turns], add_generation_prompt=True, return_dict=True
        )
        _same_ids(turns, ids, list(rendered["input_ids"]), "transformers")
    greedy = _in_transformers(hf_model, model, tokenizer, asked.answers, tolerance)
    engines, theirs = ["transformers"], None
    if find_spec("xllamacpp") is not None:
        theirs = _in_llamacpp(f32, hf.parent, model, tokenizer, asked, ours, tolerance)
        engines.append("llama.cpp")
    return ChatProof(
        conversations=len(ours),
        tokens=sum(map(len, ours)),
        engines=engines,
        greedy=greedy,
        llama_cpp_greedy=theirs,
    )


def _same_ids(turns: Sequence[Message], ours: list[int], theirs: list[int], engine: str) -> None:
    if ours == theirs:
        return
    at = first_difference(ours, theirs)
    raise ExportError(
        f"{engine} reads the conversation {turns[-1].content[:60]!r} with other token ids than Foundry trains on, the "
        f"first at {at}: {theirs[at : at + 6]} where Foundry has {ours[at : at + 6]}. The chat template of the export "
        "is not that of the training"
    )


def _barred(tokenizer: Tokenizer) -> list[int]:
    """Symbols that no answer contains: every control symbol but the two that end one, and the unknown token."""
    ends = end_of_turn(tokenizer)
    every = range(tokenizer.vocab_size)
    return [i for i in every if i == UNK_ID or (tokenizer.is_control(i) and i not in ends)]


@torch.inference_mode()
def _in_transformers(
    hf: Any, model: MiniLLM, tokenizer: Tokenizer, answers: Sequence[Continuation], tolerance: float
) -> GreedyProof:
    """The end symbols come from the folder's generation_config.json."""
    theirs = []
    for c in answers:
        ids = torch.tensor([c.prompt])
        out = hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=c.limit,
            do_sample=False,
            temperature=None,
            top_k=None,
            top_p=None,
            suppress_tokens=_barred(tokenizer),
            pad_token_id=tokenizer.eos_id,
        )
        theirs.append(out[0, len(c.prompt) :].tolist())
    return prove_greedy(model, tokenizer, list(answers), theirs, tolerance, "transformers")


def _in_llamacpp(
    f32: Path | None,
    scratch: Path,
    model: MiniLLM,
    tokenizer: Tokenizer,
    asked: Conversations,
    ours: list[list[int]],
    tolerance: float,
) -> GreedyProof:
    """The end symbols and the template come from the GGUF file. The symbol that ends an answer is not reported."""
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".llamacpp-") as folder:
        path = f32 or Path(folder) / "f32.gguf"
        if f32 is None:
            export_gguf(model, tokenizer, path, "f32", "proof")
        request = Request(
            model=str(path.resolve()),
            context=model.cfg.max_seq_len,
            vocab_size=model.cfg.vocab_size,
            threads=max(1, torch.get_num_threads() - 1),
            texts=[],
            contexts=[],
            prompts=[Prompt(c.prompt, c.limit) for c in asked.answers],
            barred=_barred(tokenizer),
            chat=list(CHAT),
            conversations=[[m._asdict() for m in turns] for turns in asked.turns],
            pieces=[],
            possible_ends=[],
            plain=0,
        )
        answer = ask(request, Path(folder))
    for turns, ids, seen in zip(asked.turns, ours, answer.conversations, strict=True):
        _same_ids(turns, ids, seen, "llama.cpp")
    ends = end_of_turn(tokenizer)
    complete = []
    for c, seen in zip(asked.answers, answer.greedy, strict=True):
        ended = len(seen) < c.limit and not (seen and seen[-1] in ends)
        mine = c.tokens[-1] if c.tokens and c.tokens[-1] in ends else ends[0]
        complete.append([*seen, mine] if ended else seen)
    return prove_greedy(model, tokenizer, list(asked.answers), complete, tolerance, "llama.cpp")
