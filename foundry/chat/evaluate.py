"""How well models answer the prompts of the test split: everything that chat_evaluate and align_evaluate write.

Every model gets the same prompts in the same template, greedily, and is scored in float32. Beside each number stand its
interval, what a lookup without a model gets, and what the model forgot of its pre-training.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from foundry.chat.answers import Answered, Asked, answer_all
from foundry.chat.likelihood import divergence, reference_nats
from foundry.chat.measures import (
    Draws,
    bits_per_byte,
    by_task,
    distinct_4,
    macro_exact,
    mean,
    paired,
    pass_rates,
    ratio,
    sentence,
)
from foundry.chat.prompts import HeldOutPrompt, Training
from foundry.chat.table import SCHEMA
from foundry.chat.verifiers import VERIFIER_VERSION, verify
from foundry.config import ConfigError
from foundry.config.chat import ChatEvaluate
from foundry.config.sampling import Sampling
from foundry.data.tokens.shards import TokenizedDocument
from foundry.evaluation.bits_per_byte import score
from foundry.evaluation.intervals import ratio_interval
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import TEMPLATE_SHA256
from foundry.utils.bootstrap import Interval
from foundry.utils.chat_report import ChatReport, Forgetting, ModelAnswers, PassRates
from foundry.utils.files import sha256_json

if TYPE_CHECKING:
    from foundry.chat.baselines import Baseline

LN2 = float(np.log(2))
GRADED = ("overlap", "recipe")  # verifiers of likeness or form: their verdicts are no exact match


@dataclass(frozen=True)
class Subject:
    """A model that is evaluated.

    Attributes:
        name: in the report: base, sft, dpo, rl.
        load: gives the model on its device.
        weights_sha256: of its files.
        parent: name of the model that it was trained from, which comes before it; None for the base model.
        template_sha256: of the template that it was trained with; None for the base model, which knows none.
    """

    name: str
    load: Callable[[], MiniLLM]
    weights_sha256: str
    parent: str | None = None
    template_sha256: str | None = None


@dataclass(frozen=True)
class ChatEvaluation:
    """What an evaluation found.

    Attributes:
        tables: the answers of each model, see `foundry.chat.table`.
    """

    report: ChatReport
    tables: dict[str, pa.Table]


@dataclass
class _Measured:
    """A model that was evaluated, as far as later models need it."""

    report: ModelAnswers
    table: pa.Table
    document_nats: np.ndarray


def evaluate_answers(
    subjects: Sequence[Subject],
    prompts: Sequence[HeldOutPrompt],
    training: Training,
    tokenizer: Tokenizer,
    documents: Sequence[TokenizedDocument],
    params: ChatEvaluate,
    seed: int,
    log: logging.Logger,
    *,
    data_sha256: str,
    baselines: Sequence[Baseline] = (),
) -> ChatEvaluation:
    """Evaluates models, the base model first, and compares each with all before it.

    Args:
        documents: of the test split of pre-training, for what the models forgot.
        data_sha256: of the chat data.
        baselines: of lookups, which were asked the examples of `prompts` in their order.

    Raises:
        ConfigError: if a model was trained with another template than the one it would be asked in.
        FoundryError: if a model or a verifier fails.
    """
    for subject in subjects:
        if subject.template_sha256 not in (None, TEMPLATE_SHA256):
            raise ConfigError(
                f"the model {subject.name} was trained with another chat template (sha256 "
                f"{subject.template_sha256[:12]}…, here {TEMPLATE_SHA256[:12]}…): evaluate it with the version of "
                "Foundry that trained it, or train it again"
            )
    draws = Draws(params.bootstrap, seed)
    measured: dict[str, _Measured] = {}
    by_name = {s.name: s for s in subjects}
    for subject in subjects:
        log.info("%s: answering %d prompts", subject.name, len(prompts))
        model = subject.load()
        parent = by_name[subject.parent].load() if subject.parent else None
        measured[subject.name] = _measure(
            subject, model, parent, prompts, training, tokenizer, documents, params, draws, measured, seed
        )
        _log(subject.name, measured[subject.name].report, log)
    names = [s.name for s in subjects]
    tables = {name: measured[name].table for name in names}
    report = ChatReport(
        prompts=len(prompts),
        prompts_sha256=sha256_json([p.key for p in prompts]),
        data_sha256=data_sha256,
        template_sha256=TEMPLATE_SHA256,
        verifier_version=VERIFIER_VERSION,
        models={name: measured[name].report for name in names},
        lookups=_lookups(baselines, prompts, draws),
        pairs=[paired(tables[a], tables[b], (a, b), draws) for j, b in enumerate(names) for a in names[:j]],
    )
    for pair in report.pairs:
        log.info("%s", sentence(pair))
    return ChatEvaluation(report, tables)


def _measure(
    subject: Subject,
    model: MiniLLM,
    parent: MiniLLM | None,
    prompts: Sequence[HeldOutPrompt],
    training: Training,
    tokenizer: Tokenizer,
    documents: Sequence[TokenizedDocument],
    params: ChatEvaluate,
    draws: Draws,
    before: Mapping[str, _Measured],
    seed: int,
) -> _Measured:
    answers = answer_all(model, tokenizer, [Asked(p.ids, p.max_tokens) for p in prompts])
    table = answers_table(model, tokenizer, prompts, answers)
    units, texts = table["unit"].to_pylist(), [a.text for a in answers]
    foreign = np.array([training.foreign(p.example.task, t) for p, t in zip(prompts, texts, strict=True)], np.float64)
    kl = None
    if parent is not None:
        apart = divergence(model, parent, prompts, answers)
        kl = ratio(apart.nats, apart.tokens, units, draws)
    nats = score(model, [d.tokens for d in documents], model.cfg.max_seq_len).nats
    base = next(iter(before.values()), None)
    report = ModelAnswers(
        weights_sha256=subject.weights_sha256,
        parent=subject.parent,
        macro=macro_exact(table, draws),
        tasks=by_task(table, draws),
        bits_per_byte=bits_per_byte(table, draws),
        ended=mean(table["ended"].to_numpy(zero_copy_only=False), units, draws),
        distinct_4=distinct_4(texts, draws),
        tokens=mean(table["tokens"].to_numpy(), units, draws),
        foreign=mean(foreign, units, draws),
        forgetting=_forgetting(nats, base.document_nats, documents, draws) if base else None,
        kl=kl,
        passed=_passed(model, tokenizer, prompts, params, draws, seed) if base else None,
    )
    return _Measured(report, table, nats)


def answers_table(
    model: MiniLLM, tokenizer: Tokenizer, prompts: Sequence[HeldOutPrompt], answers: Sequence[Answered]
) -> pa.Table:
    """The table of a model's answers, see `foundry.chat.table`: verified, and with the nats of the references."""
    references = reference_nats(model, tokenizer, prompts)
    scores = [judged(p, a.text) for p, a in zip(prompts, answers, strict=True)]
    columns = {
        "prompt": [p.key for p in prompts],
        "unit": [p.unit for p in prompts],
        "task": [p.example.task for p in prompts],
        "seen": [p.seen for p in prompts],
        "judged": [s is not None for s in scores],
        "primary": [is_primary(p) for p in prompts],
        "exact": [s is not None and s >= 1 for s in scores],
        "score": [s or 0.0 for s in scores],
        "ended": [a.ended for a in answers],
        "tokens": [len(a.ids) for a in answers],
        "nats": references.nats,
        "bytes": references.bytes,
        "answer": [a.text for a in answers],
    }
    return pa.table(columns, schema=SCHEMA)


def is_primary(prompt: HeldOutPrompt) -> bool:
    """Whether an answer is right or wrong by its verifier, so that it counts in the primary metric."""
    return prompt.example.verifier is not None and prompt.example.verifier not in GRADED


def judged(prompt: HeldOutPrompt, answer: str) -> float | None:
    """The verifier's score of an answer; None if the task has no verifier."""
    e = prompt.example
    return None if e.verifier is None else verify(e.verifier, e.arguments, answer).score


def _forgetting(
    nats: np.ndarray, of_base: np.ndarray, documents: Sequence[TokenizedDocument], draws: Draws
) -> Forgetting:
    n_bytes = np.array([d.n_bytes for d in documents], np.float64)
    return Forgetting(
        bits_per_byte=round(float(nats.sum() / LN2 / n_bytes.sum()), 4),
        difference=ratio_interval((nats - of_base) / LN2, n_bytes, draws.resamples, draws.seed),
        documents=len(documents),
    )


def _passed(
    model: MiniLLM,
    tokenizer: Tokenizer,
    prompts: Sequence[HeldOutPrompt],
    params: ChatEvaluate,
    draws: Draws,
    seed: int,
) -> PassRates | None:
    """Samples answers to some prompts of each task whose answers are right or wrong."""
    taken: dict[str, list[HeldOutPrompt]] = {}
    for p in prompts:
        if is_primary(p) and len(taken.setdefault(p.example.task, [])) < params.sampled_prompts:
            taken[p.example.task].append(p)
    chosen = [p for found in taken.values() for p in found]
    if not chosen:
        return None
    asked = [Asked(p.ids, p.max_tokens, _seed(seed, p.key, k)) for p in chosen for k in range(params.samples)]
    answers = answer_all(model, tokenizer, asked, Sampling(temperature=params.temperature))
    scores = [
        judged(p, a.text) for p, a in zip((p for p in chosen for _ in range(params.samples)), answers, strict=True)
    ]
    accepted = np.array(scores, np.float64).reshape(len(chosen), params.samples) >= 1
    units, tasks = [p.unit for p in chosen], [p.example.task for p in chosen]
    return pass_rates(accepted, units, tasks, params.temperature, draws)


def _seed(seed: int, key: str, sample: int) -> int:
    """Of a sampled answer: a function of the run's seed, the prompt and the number of the sample."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}/{sample}".encode()).digest()[:7])


def _lookups(
    baselines: Sequence[Baseline], prompts: Sequence[HeldOutPrompt], draws: Draws
) -> dict[str, dict[str, Interval]]:
    out: dict[str, dict[str, Interval]] = {}
    for b in sorted(baselines, key=lambda b: (b.task, b.method)):
        asked = [prompts[place] for place in b.prompts]
        if is_primary(asked[0]):
            right = np.array([score >= 1 for score in b.scores], np.float64)
            out.setdefault(b.task, {})[b.method] = mean(right, [p.unit for p in asked], draws)
    return out


def _log(name: str, r: ModelAnswers, log: logging.Logger) -> None:
    macro = r.macro.all if r.macro else None
    log.info(
        "%s: macro exact match %s; %.1f %% of the answers end; %.1f tokens each; %s",
        name,
        "not measured"
        if macro is None
        else f"{100 * macro.value:.1f} % ({100 * macro.low:.1f} to {100 * macro.high:.1f})",
        100 * r.ended.value,
        r.tokens.value,
        "the base" if r.forgetting is None else f"forgetting {r.forgetting.difference.value:+.4f} bits per byte",
    )
