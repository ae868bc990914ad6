"""The card of a chat model: what it was trained on twice, how well it answers, what it forgot, how to talk to it.

In the hub's format, as that of a base model (`foundry.export.card`), and a function of its inputs like it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from foundry.chat.example import Example
from foundry.chat.tuned import Tuned
from foundry.config import ModelConfig
from foundry.config.corpus import CHAT_MARKERS
from foundry.export.card import WeightFile, model_section, tokenizer_section
from foundry.export.card_data import data_section, terms_section
from foundry.export.card_numbers import formats_section, proof_section
from foundry.export.licence import HUB_NAMES, one_licence
from foundry.export.proof import ChatProof, FormatCosts, Proof
from foundry.models.accounting import count_params
from foundry.utils.bootstrap import Interval
from foundry.utils.chat_report import ChatReport, ModelAnswers
from foundry.utils.cleaning_report import CleaningReport
from foundry.utils.markdown import code, fenced, inline, table

STAGES = {
    "sft": "supervised fine-tuning",
    "dpo": "supervised fine-tuning and direct preference optimisation",
    "rl": "supervised fine-tuning and reinforcement learning with rewards that programs compute",
}


@dataclass(frozen=True)
class TaskData:
    """The examples of one task: how many are in each split, from which sources, under which licences."""

    task: str
    train: int
    val: int
    test: int
    sources: tuple[str, ...]
    licences: tuple[str, ...]


def chat_data(examples: Iterable[Example]) -> list[TaskData]:
    """The examples of all splits, counted by task."""
    counts: Counter[tuple[str, str]] = Counter()
    sources: dict[str, set[str]] = {}
    licences: dict[str, set[str]] = {}
    for e in examples:
        counts[e.task, e.split] += 1
        sources.setdefault(e.task, set()).add(e.source)
        licences.setdefault(e.task, set()).add(e.license)
    return [
        TaskData(
            task=name,
            **{split: counts[name, split] for split in ("train", "val", "test")},
            sources=tuple(sorted(sources[name])),
            licences=tuple(sorted(licences[name])),
        )
        for name in sorted(sources)
    ]


@dataclass(frozen=True)
class Exchange:
    """A prompt of the test split and the model's greedy answer."""

    task: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class ChatCard:
    """Everything that the card says.

    Attributes:
        files: `model.safetensors` and the GGUF files.
        exchanges: taken before anybody saw them: the first prompt of each task.
    """

    name: str
    cfg: ModelConfig
    tuned: Tuned
    report: ChatReport
    cleaning: CleaningReport
    data: list[TaskData]
    proof: Proof
    chat: ChatProof
    costs: FormatCosts | None
    exchanges: list[Exchange]
    files: list[WeightFile]
    symbols: list[str]

    @property
    def answers(self) -> ModelAnswers:
        return self.report.models[self.tuned.stage]

    @property
    def licences(self) -> list[str]:
        """Of everything that the model read, sorted."""
        texts = {s.license for s in self.cleaning.sources}
        return sorted(texts | {licence for task in self.data for licence in task.licences})


def chat_card(c: ChatCard) -> str:
    """README.md of the Hugging Face folder."""
    parts = [
        _head(c),
        _what(c),
        model_section(c.cfg),
        tokenizer_section(c.cfg, c.symbols),
        _answers(c),
        _chat_data(c.data),
        data_section(c.cleaning),
        formats_section(c.costs, {f.name: f.bytes for f in c.files}),
        proof_section(c.proof),
        _chat_proof(c.chat),
        _exchanges(c.exchanges),
        _use(c),
        _limits(c),
        _terms(c),
        _custody(c),
    ]
    return "\n".join(line for part in parts for line in (*part, ""))


def single_licence(c: ChatCard) -> str | None:
    """The one licence of everything that the model read; None if there are several, or one is not known."""
    licence = one_licence(c.cleaning.sources)
    return licence if licence and c.licences == [licence] else None


def _head(c: ChatCard) -> list[str]:
    """The block that the hub reads."""
    head: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["foundry", "conversational", "qwen3" if c.cfg.qk_norm else "llama", "gguf"],
    }
    licence = single_licence(c)
    head["license"] = licence.lower() if licence and licence.lower() in HUB_NAMES else "other"
    if head["license"] == "other":
        head["license_name"] = licence.lower() if licence else "see-the-section-licence"
    if langs := sorted({s.lang for s in c.cleaning.sources} - {"und"}):
        head["language"] = langs
    metrics = []
    if c.answers.macro:
        metrics.append({"type": "exact_match", "name": "macro exact match", "value": c.answers.macro.all.value})
    metrics.append({"type": "ended", "name": "answers that end", "value": c.answers.ended.value})
    task = {"type": "text-generation", "name": "answers"}
    split = {"name": f"test prompts of {len(c.data)} tasks", "type": "foundry", "split": "test"}
    head["model-index"] = [{"name": c.name, "results": [{"task": task, "dataset": split, "metrics": metrics}]}]
    return ["---", yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=1000).rstrip(), "---"]


def _what(c: ChatCard) -> list[str]:
    facts = c.tuned.facts
    adapter = "; the adapter of the last stage is in the folder `adapter` of the export" if c.tuned.adapter else ""
    return [
        f"# {c.name}",
        "",
        f"A small language model of {count_params(c.cfg):,} parameters that answers in conversations: pre-training "
        f"from scratch, then {STAGES[c.tuned.stage]} ({facts.steps:,} steps, {facts.tokens:,} tokens in the last "
        f"stage){adapter}.",
    ]


def _answers(c: ChatCard) -> list[str]:
    base, mine = c.report.models["base"], c.answers
    names = list(c.report.models)
    lines = [
        "## Evaluation",
        "",
        f"Greedy answers to {c.report.prompts:,} prompts of the test split, in the template of the training, with 95 % "
        "bootstrap intervals over documents. An answer is right if a program accepts it in full; beside it is what a "
        "lookup without a model gets.",
        "",
    ]
    rows = []
    for task, found in mine.tasks.items():
        if found.exact is None:
            continue
        before = base.tasks[task].exact
        lookup = ", ".join(f"{name} {_percent(i)}" for name, i in c.report.lookups.get(task, {}).items())
        rows.append([task, found.prompts, _percent(found.exact.all), _percent(before.all if before else None), lookup])
    if mine.macro and base.macro:
        rows.append(["**macro mean**", c.report.prompts, _percent(mine.macro.all), _percent(base.macro.all), ""])
        rows.append(["wordings not in the training", "", _percent(mine.macro.unseen), _percent(base.macro.unseen), ""])
    lines += table(["task", "prompts", "right", "base model", "lookup"], rows)
    also = [
        ["answers that end by themselves", *(_percent(c.report.models[n].ended) for n in names)],
        ["bits per byte of the reference answers", *(_number(c.report.models[n].bits_per_byte) for n in names)],
        ["tokens of an answer", *(_number(c.report.models[n].tokens, 1) for n in names)],
        ["distinct runs of four words", *(_percent(c.report.models[n].distinct_4) for n in names)],
        ["answers of another task, word for word", *(_percent(c.report.models[n].foreign) for n in names)],
        [
            "forgetting: bits per byte of the base model's test text, above the base model",
            *(_number(f.difference) if (f := c.report.models[n].forgetting) else "" for n in names),
        ],
        ["KL to the parent, nats per token", *(_number(c.report.models[n].kl) for n in names)],
        [
            "one sampled answer is right",
            *(_percent(p.pass_at_1) if (p := c.report.models[n].passed) else "" for n in names),
        ],
        [
            f"one of {mine.passed.samples if mine.passed else 0} sampled answers is right",
            *(_percent(p.pass_at_k) if (p := c.report.models[n].passed) else "" for n in names),
        ],
    ]
    return [*lines, "", *table(["", *names], also)]


def _chat_data(data: list[TaskData]) -> list[str]:
    rows = [
        [d.task, f"{d.train:,}", f"{d.val:,}", f"{d.test:,}", ", ".join(d.sources), ", ".join(map(inline, d.licences))]
        for d in data
    ]
    head = ["task", "training", "validation", "test", "source", "licence"]
    intro = "Conversations. An example is in the split of the document that it was made from."
    return ["## Chat data", "", intro, "", *table(head, rows)]


def _chat_proof(p: ChatProof) -> list[str]:
    greedy = f"{p.greedy.prompts} greedy answers of {p.greedy.tokens:,} tokens"
    return [
        f"Conversations: the token ids of {p.conversations} conversations ({p.tokens:,} tokens) and {greedy} are the "
        f"same in Foundry, {' and '.join(p.engines)}, apart from ties of two tokens "
        f"({p.greedy.ties + (p.llama_cpp_greedy.ties if p.llama_cpp_greedy else 0)}).",
    ]


def _exchanges(exchanges: list[Exchange]) -> list[str]:
    lines = ["## Samples", "", "The first test prompt of each task, answered greedily, as it came:"]
    for e in exchanges:
        lines += ["", f"{e.task}:", "", *fenced(f"> {e.prompt}\n\n{e.answer}")]
    return lines


def _use(c: ChatCard) -> list[str]:
    ggufs = [f.name for f in c.files if f.name.endswith(".gguf")]
    light = next((n for n in ggufs if n.endswith("-q8_0.gguf")), ggufs[0])
    return [
        "## Use",
        "",
        f"Ollama, in the folder of `Modelfile`: `ollama create {c.name} -f Modelfile`, then `ollama run {c.name}`.",
        "",
        f"llama.cpp: `llama-cli -m {light} -cnv`",
        "",
        f"Foundry: `foundry chat models:/{c.name}@champion`, or `foundry serve models:/{c.name}@champion`.",
        "",
        "transformers, in the folder of this file:",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelForCausalLM.from_pretrained(".")',
        'turns = [{"role": "user", "content": "What is a hat?"}]',
        'ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt").input_ids',
        "print(tokenizer.decode(model.generate(ids, max_new_tokens=60)[0, ids.shape[1]:], skip_special_tokens=True))",
        "```",
        "",
        f"An answer ends with `{CHAT_MARKERS[1]}`. Roles are system, user and assistant; there is no default system "
        "turn and no tool role. Markers that a stranger types into a text become control symbols in transformers and "
        "llama.cpp, not in Foundry.",
    ]


def _limits(c: ChatCard) -> list[str]:
    return [
        "## Limits",
        "",
        "- It answers the tasks of its chat data, in their form. Facts, names and numbers in free text are made up.",
        "- It was not tuned to refuse or to be safe.",
        f"- A conversation has room for {c.cfg.max_seq_len} tokens, markers included.",
        "- It repeats the gaps and leanings of its sources, and may repeat sentences of them.",
    ]


def _terms(c: ChatCard) -> list[str]:
    lines = terms_section(c.cleaning.sources)
    more = sorted({licence for task in c.data for licence in task.licences} - {s.license for s in c.cleaning.sources})
    return [*lines, f"Licences of the chat data beside them: {', '.join(map(inline, more))}."] if more else lines


def _custody(c: ChatCard) -> list[str]:
    facts = c.tuned.facts
    rows = [
        ["run fingerprint", facts.fingerprint],
        ["chat data", c.report.data_sha256],
        ["chat template", c.tuned.template_sha256],
        ["tokenizer", facts.tokenizer_sha256],
        ["weights of the base model", c.tuned.base_sha256],
        ["weights that were tuned", c.tuned.parent_sha256],
        ["trained weights", facts.weights_sha256],
        *([f.name, f.sha256] for f in c.files),
    ]
    lines = ["## Chain of custody", "", *table(["what", "sha256"], [[what, code(digest)] for what, digest in rows])]
    return [*lines, "", "`proof.json` says how the files were proved equal to the trained model."]


def _percent(i: Interval | None) -> str:
    return "" if i is None else f"{100 * i.value:.1f} % ({100 * i.low:.1f} to {100 * i.high:.1f})"


def _number(i: Interval | None, digits: int = 4) -> str:
    return "" if i is None else f"{i.value:.{digits}f} ({i.low:.{digits}f} to {i.high:.{digits}f})"
