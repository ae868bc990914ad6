"""The model card: what the model is, what it was made of, how good it is, how to load it.

In the hub's format: a YAML header that machines read, then sections. A function of its inputs: no clock, no path, no
host. What is not in the inputs (hours, hardware, energy) is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from foundry.config import ModelConfig
from foundry.export.card_data import data_section, terms_section
from foundry.export.card_numbers import evaluation_section, formats_section, proof_section
from foundry.export.greedy import Sample
from foundry.export.licence import HUB_NAMES, one_licence
from foundry.export.proof import FormatCosts, Proof
from foundry.models import ModelFacts
from foundry.models.accounting import count_params, train_flops_per_token
from foundry.utils.cleaning_report import CleanedSource, CleaningReport
from foundry.utils.evaluation_report import EvaluationReport
from foundry.utils.markdown import code, fenced, table

SYMBOLS = 50  # that the card lists


@dataclass(frozen=True)
class WeightFile:
    """An exported file of weights: its name without folders, its size in bytes, its hash.

    A GGUF file is beside the folder `hf/` here and beside the card on a hub, so the card only has the name.
    """

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class CardFacts:
    """Everything that the card says.

    Attributes:
        name: of the registered model.
        costs: of `quantised.measure`, or None.
        files: `model.safetensors` and the GGUF files.
        symbols: the tokenizer's user symbols.
    """

    name: str
    cfg: ModelConfig
    facts: ModelFacts
    report: EvaluationReport
    cleaning: CleaningReport
    proof: Proof
    costs: FormatCosts | None
    samples: list[Sample]
    files: list[WeightFile]
    symbols: list[str]


def model_card(c: CardFacts) -> str:
    """README.md of the Hugging Face folder."""
    sources = c.cleaning.sources
    parts = [
        _head(c.name, c.cfg, c.report, sources),
        _what(c.name, c.cfg),
        tokenizer_section(c.cfg, c.symbols),
        data_section(c.cleaning),
        _training(c.cfg, c.facts),
        evaluation_section(c.report),
        formats_section(c.costs, {f.name: f.bytes for f in c.files}),
        proof_section(c.proof),
        _samples(c.samples),
        _use(c.name, [f.name for f in c.files if f.name.endswith(".gguf")]),
        _limits(c.cfg),
        terms_section(sources),
        _custody(c.facts, c.report, c.files),
    ]
    return "\n".join(line for part in parts for line in (*part, ""))


def _head(name: str, cfg: ModelConfig, report: EvaluationReport, sources: list[CleanedSource]) -> list[str]:
    """The block that the hub reads."""
    head: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["foundry", "qwen3" if cfg.qk_norm else "llama", "gguf"],
    }
    licence = one_licence(sources)
    head["license"] = licence.lower() if licence and licence.lower() in HUB_NAMES else "other"
    if head["license"] == "other":
        head["license_name"] = licence.lower() if licence else "see-the-section-licence"
    if langs := sorted({s.lang for s in sources} - {"und"}):
        head["language"] = langs
    if ids := sorted({s.url[3:].split("@")[0] for s in sources if s.url.startswith("hf:")}):
        head["datasets"] = ids
    metrics = [
        _metric("bits_per_byte", "bits per byte", report.test.bits_per_byte.value),
        _metric("perplexity", "perplexity per token", report.test.perplexity_token.value),
    ]
    split = {"name": f"held-out documents of {', '.join(s.name for s in sources)}", "type": "foundry", "split": "test"}
    task = {"type": "text-generation", "name": "text generation"}
    head["model-index"] = [{"name": name, "results": [{"task": task, "dataset": split, "metrics": metrics}]}]
    return ["---", yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=1000).rstrip(), "---"]


def _metric(kind: str, name: str, value: float) -> dict[str, Any]:
    return {"type": kind, "name": name, "value": value}


def _what(name: str, cfg: ModelConfig) -> list[str]:
    return [
        f"# {name}",
        "",
        f"A Llama-style language model of {count_params(cfg):,} parameters, trained from scratch on the texts below. "
        "It continues a text.",
        "",
        *model_section(cfg),
    ]


def model_section(cfg: ModelConfig) -> list[str]:
    """The architecture as a table."""
    size, body = count_params(cfg), count_params(cfg, non_embedding=True)
    rows = [
        ["class in transformers", "Qwen3ForCausalLM" if cfg.qk_norm else "LlamaForCausalLM"],
        ["parameters", f"{size:,}, without embedding {body:,}"],
        ["layers, width, heads, key/value heads", f"{cfg.n_layers}, {cfg.dim}, {cfg.n_heads}, {cfg.n_kv_heads}"],
        ["feed-forward width (SwiGLU)", cfg.ffn_dim],
        ["normalisation", f"RMSNorm before each block, epsilon {cfg.norm_eps:g}"],
        ["positions", f"rotary, base {cfg.rope_theta:g}"],
        ["context", f"{cfg.max_seq_len} tokens"],
        ["output head", "tied to the embedding" if cfg.tie_embeddings else "of its own"],
    ]
    return ["## Model", "", *table(["", ""], rows)]


def tokenizer_section(cfg: ModelConfig, symbols: list[str]) -> list[str]:
    """An export has no other tokenizer than this: `foundry.export.exportable` refuses every other."""
    lines = [
        "## Tokenizer",
        "",
        f"SentencePiece BPE with {cfg.vocab_size:,} pieces and byte fallback, trained on the training split. "
        "Lossless: no normalisation, no added space. Chat markers are control symbols, which typed text never becomes.",
    ]
    if symbols:
        shown = ", ".join(code(repr(s)[1:-1]) for s in symbols[:SYMBOLS])
        more = f" and {len(symbols) - SYMBOLS:,} more" if len(symbols) > SYMBOLS else ""
        lines += ["", f"Symbols that are one piece wherever they stand in a text: {shown}{more}."]
    return lines


def _training(cfg: ModelConfig, facts: ModelFacts) -> list[str]:
    flops = train_flops_per_token(cfg) * facts.tokens
    return [
        "## Training",
        "",
        f"{facts.steps:,} steps, {facts.tokens:,} tokens, about {flops:.2e} floating-point operations "
        "(6 for each weight and token, and causal attention).",
    ]


def _samples(samples: list[Sample]) -> list[str]:
    lines = ["## Samples", "", "Greedy continuations of fixed prompts, as they came:"]
    for s in samples:
        lines += ["", f"Prompt `{s.prompt}`:", "", *fenced(s.prompt + s.text)]
    return lines


def _use(name: str, ggufs: list[str]) -> list[str]:
    light = next((n for n in ggufs if n.endswith("-q8_0.gguf")), ggufs[0])  # costs next to nothing
    return [
        "## Use",
        "",
        "transformers, in the folder of this file:",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelForCausalLM.from_pretrained(".")',
        'ids = tokenizer("The ", return_tensors="pt").input_ids',
        "print(tokenizer.decode(model.generate(ids, max_new_tokens=60)[0], skip_special_tokens=True))",
        "```",
        "",
        "Text of a stranger: `tokenizer(text, split_special_tokens=True)`, else typed markers are control symbols.",
        "",
        f'llama.cpp: `llama-cli -m {light} -no-cnv -p "The "`',
        "",
        f'MLflow: `mlflow.pyfunc.load_model("models:/{name}@champion").predict(["The "], params={{"max_tokens": 60}})`',
    ]


def _limits(cfg: ModelConfig) -> list[str]:
    return [
        "## Limits",
        "",
        "- It writes the form of its sources, not facts: names, numbers and steps are made up. Do not rely on them.",
        "- It was not tuned to answer, to follow instructions, to refuse or to be safe. The chat template is there for "
        "whoever tunes it; the chat markers are untrained.",
        f"- It sees {cfg.max_seq_len} tokens, and only the languages of its sources.",
        "- It repeats the gaps and leanings of its sources, and may repeat sentences of them.",
    ]


def _custody(facts: ModelFacts, report: EvaluationReport, files: list[WeightFile]) -> list[str]:
    rows = [
        ["run fingerprint", facts.fingerprint],
        ["data index", facts.index_sha256],
        ["tokenizer", facts.tokenizer_sha256],
        ["trained weights", facts.weights_sha256],
        ["test text", report.test_sha256],
        *([f.name, f.sha256] for f in files),
    ]
    lines = ["## Chain of custody", "", *table(["what", "sha256"], [[what, f"`{digest}`"] for what, digest in rows])]
    return [*lines, "", "`proof.json` says how the files were proved equal to the trained model."]
