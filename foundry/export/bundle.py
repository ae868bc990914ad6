"""The whole export: Hugging Face folder, GGUF, model card, proof. It appears under its name only when the proof holds.

`parity.json` says what was compared and holds the hash of every file, so that `verify_export` can tell a changed byte
years later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foundry.config import Export, ExportError
from foundry.export.card import model_card
from foundry.export.gguf_file import export_gguf
from foundry.export.huggingface import export_huggingface
from foundry.export.manifest import write_record
from foundry.export.parity import prove
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.utils.files import atomic_dir, sha256_file, write_text


def export(
    out: str | Path,
    model: MiniLLM,
    facts: dict[str, Any],
    tokenizer: Tokenizer,
    report: dict[str, Any],
    sources: list[dict[str, Any]],
    texts: list[str],
    prompts: list[str],
    params: Export,
) -> dict[str, Any]:
    """Writes and proves `out`.

    Args:
        facts: `config.json` of the trained model.
        report: `reports/evaluate.json`.
        sources: `sources` of `reports/clean.json`.
        texts: real text for the proof, in full contexts and for token ids.
        prompts: for the proof's greedy continuations.

    Returns:
        The content of its `parity.json`: the proof, the hashes of the source and of every file.

    Raises:
        ExportError: if model, tokenizer and evaluation do not belong together, or the written files do not equal the
        model.
            What lay under `out` before is untouched then, and nothing else is left.
    """
    if tokenizer.sha256 != facts["tokenizer_sha256"]:
        raise ExportError(
            f"the tokenizer (sha256 {tokenizer.sha256[:12]}…) is not the one that the model was trained with "
            f"({facts['tokenizer_sha256'][:12]}…): run `dvc repro`"
        )
    if report["weights_sha256"] != facts["weights_sha256"]:
        raise ExportError(
            f"reports/evaluate.json is of another model (weights {report['weights_sha256'][:12]}…, this one has "
            f"{facts['weights_sha256'][:12]}…): run `dvc repro evaluate`"
        )
    gguf_name = f"{params.model_name}-{params.gguf_type}.gguf"
    with atomic_dir(out) as tmp:
        hf = tmp / "hf"
        export_huggingface(model, tokenizer, hf)
        export_gguf(model, tokenizer, tmp / gguf_name, params.gguf_type, params.model_name)
        proof = prove(hf, tmp / gguf_name, params.gguf_type, model, tokenizer, texts, prompts, params.parity_tolerance)
        custody = {k: facts[k] for k in ("fingerprint", "index_sha256", "tokenizer_sha256", "weights_sha256")}
        written = {name: sha256_file(tmp / name) for name in ("hf/model.safetensors", gguf_name)}
        write_text(
            hf / "README.md", model_card(params.model_name, model.cfg, facts, report, sources, gguf_name, written)
        )
        return write_record(tmp, {"model_name": params.model_name, **custody, "proof": proof})
