"""The model card: what the model is, what it was made of, how good it is, how to load it. A function of its inputs: no clock, no path."""

from __future__ import annotations

from typing import Any

from foundry.config import ModelConfig
from foundry.models.accounting import count_params


def model_card(name: str, cfg: ModelConfig, facts: dict[str, Any], report: dict[str, Any], sources: list[dict[str, Any]], gguf: str) -> str:
    """README.md of the Hugging Face folder.

    Args:
        facts: `config.json` of the trained model.
        report: `reports/evaluate.json`.
        sources: name, url, license, attribution, lang and hashes of each source.
    """
    test = report["test"]
    bpb = test["bits_per_byte"]
    licenses = sorted({s["license"] for s in sources})
    langs = sorted({s["lang"] for s in sources} - {"und"})
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [foundry, llama, gguf]"]
    if langs:
        head.append(f"language: [{', '.join(langs)}]")
    lines = [
        *head, "---", "", f"# {name}", "",
        f"A Llama-style language model of {count_params(cfg):,} parameters, trained from nothing on the texts below. Every number on this page was computed from the files named by their hashes.",
        "", "## Evaluation", "", "Bits per UTF-8 byte of held-out documents (lower is better), with a 95 % bootstrap interval over documents.", "",
        "| text | bits per byte | interval | documents |", "| --- | --- | --- | --- |",
        f"| test split | {bpb['value']:.4f} | {bpb['low']:.4f} to {bpb['high']:.4f} | {test['documents']} |",
    ]  # fmt: skip
    for source, row in report["by_source"].items():
        b = row["bits_per_byte"]
        lines.append(f"| of it {source} | {b['value']:.4f} | {b['low']:.4f} to {b['high']:.4f} | {row['documents']} |")
    if report.get("baselines"):
        lines += ["", "The same bytes compressed:", "", "| compressor | alone | given the training text |", "| --- | --- | --- |"]
        lines += [f"| {n} | {row['alone']:.4f} | {row['given_train']:.4f} |" for n, row in report["baselines"].items()]
    lines += [
        "", "## Model", "", "| | |", "| --- | --- |", f"| layers, width, heads, key/value heads | {cfg.n_layers}, {cfg.dim}, {cfg.n_heads}, {cfg.n_kv_heads} |",
        f"| feed-forward width | {cfg.ffn_dim} |", f"| context | {cfg.max_seq_len} tokens |", f"| vocabulary | {cfg.vocab_size} SentencePiece BPE pieces, lossless |",
        f"| training | {facts['steps']:,} steps, {facts['tokens']:,} tokens |", "",
        "## Data", "", "| source | language | licence | attribution | sha256 |", "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for s in sources:
        hashes = s["sha256"] if isinstance(s["sha256"], list) else [s["sha256"]]
        lines.append(f"| {s['name']} (`{s['url']}`) | {s['lang']} | {s['license']} | {s['attribution'] or '—'} | {' '.join(f'`{h[:16]}…`' for h in hashes)} |")
    lines += [
        "", f"Licences of the texts: {', '.join(licenses)}. Whoever shares this model should name the sources above and check what a share-alike licence asks of derived works.",
        "", "## Use", "", "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
        'tokenizer = AutoTokenizer.from_pretrained("hf")   # this folder', 'model = AutoModelForCausalLM.from_pretrained("hf")',
        'ids = tokenizer("The ", return_tensors="pt").input_ids', "print(tokenizer.decode(model.generate(ids, max_new_tokens=60, do_sample=True)[0]))", "```", "",
        f"llama.cpp: `llama-cli -m {gguf} -p \"The \"`. MLflow: `mlflow.pyfunc.load_model(\"models:/{name}@champion\").predict([\"The \"])`.", "",
        "## Limits", "", "A small model trained on little text: it writes the form of its sources, not facts. It was not tuned to follow instructions, to refuse, or to be safe; do not rely on what it says.",
        "", "## Chain of custody", "", "| what | sha256 |", "| --- | --- |", f"| run fingerprint | `{facts['fingerprint']}` |", f"| data index | `{facts['index_sha256']}` |",
        f"| tokenizer | `{facts['tokenizer_sha256']}` |", f"| trained weights | `{facts['weights_sha256']}` |", f"| test text | `{report['test_sha256']}` |", "",
    ]  # fmt: skip
    return "\n".join(lines)
