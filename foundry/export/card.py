"""The model card: what the model is, what it was made of, how good it is, how to load it.

A function of its inputs: no clock, no path, no host.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from foundry.config import ModelConfig
from foundry.models.accounting import count_params


def model_card(
    name: str,
    cfg: ModelConfig,
    facts: dict[str, Any],
    report: dict[str, Any],
    sources: list[dict[str, Any]],
    gguf: str,
    files: dict[str, str],
) -> str:
    """README.md of the Hugging Face folder.

    Args:
        facts: `config.json` of the trained model.
        report: `reports/evaluate.json`.
        sources: name, url, license, attribution, lang and hash of each source.
        gguf: name of the GGUF file.
        files: {exported file: sha256} of the weights.
    """
    parts = [_head(sources), _what(name, cfg, facts), _numbers(report), _data(sources), _use(name, gguf), _limits(cfg)]
    return "\n".join([*(line for part in parts for line in (*part, "")), *_custody(facts, report, files), ""])


def _head(sources: list[dict[str, Any]]) -> list[str]:
    """The block that the Hugging Face hub reads."""
    licenses = {s["license"] for s in sources}
    langs = sorted({s["lang"] for s in sources} - {"und"})
    known = len(licenses) == 1 and "unknown" not in licenses
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [foundry, llama, gguf]"]
    lines.append(f"license: {next(iter(licenses)).lower() if known else 'other'}")
    if langs:
        lines.append(f"language: [{', '.join(langs)}]")
    return [*lines, "---"]


def _what(name: str, cfg: ModelConfig, facts: dict[str, Any]) -> list[str]:
    tied = "tied to the output head" if cfg.tie_embeddings else "with an output head of its own"
    return [
        f"# {name}",
        "",
        f"A Llama-style language model of {count_params(cfg):,} parameters, trained from nothing on the texts below. "
        "It continues a text.",
        "",
        "## Model",
        "",
        *_table(
            ["", ""],
            [
                [
                    "layers, width, heads, key/value heads",
                    f"{cfg.n_layers}, {cfg.dim}, {cfg.n_heads}, {cfg.n_kv_heads}",
                ],
                ["feed-forward width (SwiGLU)", cfg.ffn_dim],
                ["context", f"{cfg.max_seq_len} tokens"],
                ["vocabulary", f"{cfg.vocab_size} SentencePiece BPE pieces with byte fallback, lossless; {tied}"],
                ["training", f"{facts['steps']:,} steps, {facts['tokens']:,} tokens"],
            ],
        ),
    ]


def _numbers(report: dict[str, Any]) -> list[str]:
    def row(what: str, part: dict[str, Any]) -> list[Any]:
        b = part["bits_per_byte"]
        return [what, f"{b['value']:.4f}", f"{b['low']:.4f} to {b['high']:.4f}", part["documents"]]

    rows = [row("test split", report["test"]), *(row(f"of it {s}", part) for s, part in report["by_source"].items())]
    lines = [
        "## Evaluation",
        "",
        "Bits per UTF-8 byte of held-out documents (lower is better), with a 95 % bootstrap interval over documents.",
        "",
        *_table(["text", "bits per byte", "interval", "documents"], rows),
    ]
    if "perplexity_token" in report["test"]:
        lines += ["", f"Perplexity a token of this vocabulary: {report['test']['perplexity_token']}."]
    if baselines := report.get("baselines"):
        table = [[n, f"{b['alone']:.4f}", f"{b['given_train']:.4f}"] for n, b in baselines.items()]
        lines += ["", "The same bytes compressed, in bits per byte:", ""]
        lines += _table(["compressor", "alone", "given the training text"], table)
    return lines


def _data(sources: list[dict[str, Any]]) -> list[str]:
    rows = [
        [s["name"], f"`{s['url']}`", s["lang"], s["license"], s["attribution"] or "none given", f"`{s['sha256']}`"]
        for s in sources
    ]
    licenses = sorted({s["license"] for s in sources})
    lines = [
        "## Data and licence",
        "",
        *_table(["source", "address", "language", "licence", "attribution", "sha256"], rows),
        "",
        f"Licences of the texts: {', '.join(licenses)}. Whoever shares this model names the sources above.",
    ]
    if share_alike := [x for x in licenses if "-SA-" in x.upper()]:
        lines.append(
            f"The texts are under {', '.join(share_alike)}, a share-alike licence. Whether weights adapt "
            "their training text is not settled; sharing them under the same licence is the safe reading."
        )
    if "unknown" in licenses:
        lines.append("The licence of a source is not known: find out before you share the model.")
    return lines


def _use(name: str, gguf: str) -> list[str]:
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
        f'llama.cpp: `llama-cli -m {gguf} -no-cnv -p "The "`',
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


def _custody(facts: dict[str, Any], report: dict[str, Any], files: dict[str, str]) -> list[str]:
    rows = [
        ["run fingerprint", facts["fingerprint"]],
        ["data index", facts["index_sha256"]],
        ["tokenizer", facts["tokenizer_sha256"]],
        ["trained weights", facts["weights_sha256"]],
        ["test text", report["test_sha256"]],
        *([f"{name}", digest] for name, digest in files.items()),
    ]
    lines = ["## Chain of custody", "", *_table(["what", "sha256"], [[what, f"`{digest}`"] for what, digest in rows])]
    return [*lines, "", "`parity.json` beside this folder says how the files were proved equal to the trained model."]


def _table(head: list[str], rows: Iterable[list[Any]]) -> list[str]:
    def line(cells: list[Any]) -> str:
        return "| " + " | ".join(" ".join(str(c).split()).replace("|", "\\|") for c in cells) + " |"

    return [line(head), line(["---"] * len(head)), *(line(row) for row in rows)]
