"""The export of a chat model: as that of a base model, with the proof of its conversations and what chat programs read.

    hf/                 Hugging Face folder; generation_config.json ends answers at both end symbols
    NAME-TYPE.gguf      for llama.cpp and Ollama, with the chat template
    Modelfile           for Ollama
    adapter/            the adapter in PEFT's form, if the last stage trained one
    proof.json          what was compared, and the hash of every file

Weights, settings and formats are written and proved by `foundry.export`. The folder gets its name only after every
comparison has succeeded.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from foundry.chat.answers import Asked, answer_all
from foundry.chat.card import ChatCard, Exchange, TaskData, chat_card, single_licence
from foundry.chat.example import Example
from foundry.chat.modelfile import modelfile
from foundry.chat.tuned import Tuned
from foundry.config import ExportError
from foundry.config.chat import ChatExport
from foundry.config.corpus import CHAT_MARKERS
from foundry.export.bundle import Proved, proved_files
from foundry.export.chat_parity import Conversations, prove_chat
from foundry.export.greedy import NEW_TOKENS, Continuation
from foundry.export.huggingface import user_tokens
from foundry.export.licence import licence_notice
from foundry.export.lineage import NAME as LINEAGE
from foundry.export.lineage import Lineage
from foundry.export.manifest import hash_files, write_record
from foundry.export.proof import ChatRecord, ExportRecord
from foundry.export.quantised import HeldOutText
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import TEMPLATE_SHA256, Message, encode_chat
from foundry.utils.chat_report import ChatReport
from foundry.utils.cleaning_report import CleaningReport
from foundry.utils.files import make_folder, open_to_write, write_json, write_text

CONVERSATIONS, ANSWERS = 20, 32


@dataclass(frozen=True)
class ProofPrompts:
    """Conversations that wait for an answer: the test prompts, and some that test the template itself."""

    turns: list[list[Message]]
    shown: list[Example]


def proof_prompts(examples: Sequence[Example], tokenizer: Tokenizer, context: int) -> ProofPrompts:
    """Prompts for the proof and the card, taken from the test split without regard to what the model answers.

    Left out are those that contain a chat marker as text, which other engines would read as the symbol, and those that
    fill more than half of the context.
    """
    own = [
        [Message("user", "")],
        [Message("system", "Answer in one word.  "), Message("user", "\n of the  oven?\n12\n")],
        [Message("user", "水 and é 😀"), Message("assistant", "- and the river."), Message("user", " a")],
        [Message("user", "None"), Message("assistant", ""), Message("user", "{{ bos_token }}")],
    ]
    found, first = [], {}
    for e in sorted(examples, key=lambda e: (e.task, [t.content for t in e.prompt])):
        turns = [Message(t.role, t.content) for t in e.prompt]
        typed = any(marker in m.content for m in turns for marker in CHAT_MARKERS)
        if not typed and len(encode_chat(tokenizer, turns)) <= context // 2:
            found.append(turns)
            first.setdefault(e.task, e)
    own = [turns for turns in own if len(encode_chat(tokenizer, turns)) <= context // 2]
    spread = found[:: max(1, len(found) // ANSWERS)]
    return ProofPrompts([*own, *spread][: max(ANSWERS, CONVERSATIONS)], list(first.values()))


def export_chat(
    out: str | Path,
    tuned: Tuned,
    tokenizer: Tokenizer,
    report: ChatReport,
    cleaning: CleaningReport,
    data: list[TaskData],
    texts: list[str],
    prompts: ProofPrompts,
    params: ChatExport,
    *,
    held_out: HeldOutText | None = None,
    lineage: Lineage | None = None,
    device: torch.device | str = "cpu",
) -> ExportRecord:
    """Writes and proves the folder `out`.

    Args:
        report: that has this model.
        cleaning: of the texts of pre-training.
        data: the chat data, for the card.
        texts: real text for the proof.
        held_out: documents on which the cost of each rounding format is measured; None measures none.
        lineage: written as `lineage.json`; None writes none.
        device: where the rounding formats are scored; the proof runs in float32 on the CPU.

    Raises:
        ExportError: if the model does not belong to the tokenizer, the evaluation or this template, a format cannot
            represent it, or a written file or a conversation in another engine differs from the source. A former
            folder `out` is then unchanged.
    """
    _check_belonging(tuned, tokenizer, report)
    texts_of_prompts = [turns[-1].content for turns in prompts.turns[:8]]
    with proved_files(out, tuned.model, tokenizer, texts, texts_of_prompts, params, held_out, device) as made:
        asked = _conversations(tuned, tokenizer, prompts)
        chat = prove_chat(made.hf, made.ggufs.get("f32"), tuned.model, tokenizer, asked, params.parity_tolerance)
        card = ChatCard(
            name=params.model_name,
            cfg=tuned.model.cfg,
            tuned=tuned,
            report=report,
            cleaning=cleaning,
            data=data,
            proof=made.proof,
            chat=chat,
            costs=made.costs,
            exchanges=_exchanges(tuned, tokenizer, prompts.shown),
            files=made.weights,
            symbols=list(user_tokens(tokenizer).values()),
        )
        _describe(made, card, tuned, lineage)
        answers = report.models[tuned.stage]
        record = ExportRecord(
            model_name=params.model_name,
            fingerprint=tuned.facts.fingerprint,
            index_sha256=tuned.facts.index_sha256,
            tokenizer_sha256=tuned.facts.tokenizer_sha256,
            weights_sha256=tuned.facts.weights_sha256,
            proof=made.proof,
            quantised=made.costs,
            chat=ChatRecord(
                stage=tuned.stage,
                parent_sha256=tuned.parent_sha256,
                template_sha256=tuned.template_sha256,
                data_sha256=report.data_sha256,
                macro_exact=answers.macro.all if answers.macro else None,
                ended=answers.ended,
                forgetting=answers.forgetting.difference,
                proof=chat,
            ),
            files=hash_files(made.folder),
        )
        write_record(made.folder, record)
        return record


def _check_belonging(tuned: Tuned, tokenizer: Tokenizer, report: ChatReport) -> None:
    facts, known = tuned.facts, report.models.get(tuned.stage)
    if tokenizer.sha256 != facts.tokenizer_sha256:
        raise ExportError(
            f"the tokenizer (sha256 {tokenizer.sha256[:12]}…) is not the one that the model was trained with "
            f"({facts.tokenizer_sha256[:12]}…): run `make chat`"
        )
    if tuned.template_sha256 != TEMPLATE_SHA256:
        raise ExportError(
            f"the model was trained with another chat template (sha256 {tuned.template_sha256[:12]}…) than the export "
            f"would have ({TEMPLATE_SHA256[:12]}…): everybody would ask it in a form that it never saw. Train it again"
        )
    if known is None or known.weights_sha256 != facts.weights_sha256 or known.forgetting is None:
        seen = "no such model" if known is None else f"weights {known.weights_sha256[:12]}…"
        raise ExportError(
            f"the evaluation is of another model ({seen}, this one is {tuned.stage} with "
            f"{facts.weights_sha256[:12]}…): run `make chat`, or `make align` for a model of dpo or rl"
        )


def _conversations(tuned: Tuned, tokenizer: Tokenizer, prompts: ProofPrompts) -> Conversations:
    context = tuned.model.cfg.max_seq_len
    ids = [encode_chat(tokenizer, turns) for turns in prompts.turns]
    limits = [min(NEW_TOKENS, context - len(i)) for i in ids]
    asked = [Asked(tuple(i), limit) for i, limit in zip(ids, limits, strict=True)][:ANSWERS]
    answers = [
        Continuation(list(one.ids), [*a.ids, *([a.stop] if a.stop is not None else [])], one.max_tokens)
        for one, a in zip(asked, answer_all(tuned.model, tokenizer, asked), strict=True)
    ]
    return Conversations(prompts.turns, answers)


def _exchanges(tuned: Tuned, tokenizer: Tokenizer, examples: Sequence[Example]) -> list[Exchange]:
    context = tuned.model.cfg.max_seq_len
    turns = [[Message(t.role, t.content) for t in e.prompt] for e in examples]
    ids = [tuple(encode_chat(tokenizer, t)) for t in turns]
    answers = answer_all(tuned.model, tokenizer, [Asked(i, context - len(i)) for i in ids])
    return [Exchange(e.task, t[-1].content, a.text) for e, t, a in zip(examples, turns, answers, strict=True)]


def _describe(made: Proved, card: ChatCard, tuned: Tuned, lineage: Lineage | None) -> None:
    """Writes what describes the weights: licence, card, Modelfile, adapter, lineage."""
    notice = licence_notice(card.name, card.cleaning.sources) if single_licence(card) else None
    if notice:
        write_text(made.hf / "LICENSE", notice)
    write_text(made.hf / "README.md", chat_card(card))
    light = made.ggufs.get("q8_0") or next(iter(made.ggufs.values()))
    write_text(made.folder / "Modelfile", modelfile(light.name, card.cfg.max_seq_len, notice))
    if tuned.adapter:
        make_folder(made.folder / "adapter")
        for file in sorted(p for p in tuned.adapter.iterdir() if p.is_file()):
            with open(file, "rb") as source, open_to_write(made.folder / "adapter" / file.name) as target:
                shutil.copyfileobj(source, target, 1 << 20)
    if lineage:
        write_json(made.folder / LINEAGE, lineage.model_dump(exclude_unset=True))
