"""The export as one folder: Hugging Face folder, GGUF files, model card, proof.

The folder gets its name only after every comparison has succeeded. `proof.json` says what was compared and has the hash
of every file, so that `verify_export` finds a changed byte years later.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from foundry.config import Export, ExportError
from foundry.config.export import ExportFormats
from foundry.export.card import CardFacts, WeightFile, model_card
from foundry.export.exportable import (
    format_problems,
    interpreter_problems,
    model_problems,
    name_problems,
    refuse,
    tokenizer_problems,
)
from foundry.export.gguf_file import export_gguf
from foundry.export.greedy import greedy_samples
from foundry.export.huggingface import export_huggingface, user_tokens
from foundry.export.licence import licence_notice
from foundry.export.lineage import NAME as LINEAGE
from foundry.export.lineage import Lineage
from foundry.export.manifest import hash_files, write_record
from foundry.export.parity import prove
from foundry.export.proof import ExportRecord, FormatCosts, Proof
from foundry.export.quantised import HeldOutText, measure
from foundry.models import MiniLLM, ModelFacts
from foundry.tokenizers import Tokenizer
from foundry.utils.cleaning_report import CleaningReport
from foundry.utils.evaluation_report import EvaluationReport
from foundry.utils.files import atomic_dir, sha256_file, write_json, write_text


def export(
    out: str | Path,
    model: MiniLLM,
    facts: ModelFacts,
    tokenizer: Tokenizer,
    report: EvaluationReport,
    cleaning: CleaningReport,
    texts: list[str],
    prompts: list[str],
    params: Export,
    *,
    held_out: HeldOutText | None = None,
    lineage: Lineage | None = None,
    device: torch.device | str = "cpu",
) -> ExportRecord:
    """Writes and proves the folder `out`.

    Args:
        report: of the same model, for the card.
        cleaning: for the card and the licence notice.
        texts: real text for the proof, in full contexts and for token ids.
        prompts: for the proof's greedy continuations.
        held_out: documents on which the cost of each rounding format is measured; None measures none.
        lineage: written as `lineage.json`; None writes none.
        device: where the rounding formats are scored; the proof runs in float32 on the CPU.

    Returns:
        What was written as `proof.json`.

    Raises:
        ExportError: if model, tokenizer and evaluation do not belong together, a weight is not finite, a format cannot
            represent the model, or the written files do not equal the model. A former folder `out` is then unchanged,
            and nothing else is left.
    """
    _check_belonging(facts, tokenizer, report)
    with proved_files(out, model, tokenizer, texts, prompts, params, held_out, device) as made:
        notice = licence_notice(params.model_name, cleaning.sources)
        if notice:
            write_text(made.hf / "LICENSE", notice)
        card = CardFacts(
            name=params.model_name,
            cfg=model.cfg,
            facts=facts,
            report=report,
            cleaning=cleaning,
            proof=made.proof,
            costs=made.costs,
            samples=greedy_samples(model, tokenizer),
            files=made.weights,
            symbols=list(user_tokens(tokenizer).values()),
        )
        write_text(made.hf / "README.md", model_card(card))
        if lineage:
            write_json(made.folder / LINEAGE, lineage.model_dump(exclude_unset=True))
        record = ExportRecord(
            model_name=params.model_name,
            fingerprint=facts.fingerprint,
            index_sha256=facts.index_sha256,
            tokenizer_sha256=facts.tokenizer_sha256,
            weights_sha256=facts.weights_sha256,
            bits_per_byte=report.test.bits_per_byte,
            proof=made.proof,
            quantised=made.costs,
            files=hash_files(made.folder),
        )
        write_record(made.folder, record)
        return record


@dataclass(frozen=True)
class Proved:
    """Files of an export that were proved equal to the model, in a folder that has no name yet.

    Attributes:
        hf: the Hugging Face folder in `folder`.
        ggufs: {number format: file}.
        costs: of the rounding formats; None if nothing was scored.
        weights: `model.safetensors` and the GGUF files.
    """

    folder: Path
    hf: Path
    ggufs: dict[str, Path]
    proof: Proof
    costs: FormatCosts | None
    weights: list[WeightFile]


@contextmanager
def proved_files(
    out: str | Path,
    model: MiniLLM,
    tokenizer: Tokenizer,
    texts: list[str],
    prompts: list[str],
    params: ExportFormats,
    held_out: HeldOutText | None,
    device: torch.device | str,
) -> Iterator[Proved]:
    """Writes and proves the weights; the block adds what describes them, and then the folder gets its name.

    Args are those of `export`.

    Raises:
        ExportError: if a weight is not finite, a format cannot represent the model, or a file does not equal it. A
            former folder `out` is then unchanged, as it is after an exception of the block.
    """
    refuse(
        [
            *interpreter_problems(),
            *model_problems(model.cfg),
            *format_problems(model.cfg, params.gguf_types),
            *tokenizer_problems(tokenizer.kind, tokenizer.byte_fallback, user_tokens(tokenizer).values()),
            *name_problems(params.model_name),
        ]
    )
    with atomic_dir(out) as tmp:
        hf = tmp / "hf"
        export_huggingface(model, tokenizer, hf)
        ggufs = {kind: tmp / f"{params.model_name}-{kind}.gguf" for kind in params.gguf_types}
        for kind, path in ggufs.items():
            export_gguf(model, tokenizer, path, kind, params.model_name)
        proof = prove(hf, ggufs, model, tokenizer, texts, prompts, params.parity_tolerance)
        rounded = {kind: path for kind, path in ggufs.items() if kind != "f32"}  # f32 was proved equal bit for bit
        costs = measure(rounded, model, held_out, device) if held_out and rounded else None
        weights = [
            WeightFile(p.name, p.stat().st_size, sha256_file(p)) for p in (hf / "model.safetensors", *ggufs.values())
        ]
        yield Proved(tmp, hf, ggufs, proof, costs, weights)


def _check_belonging(facts: ModelFacts, tokenizer: Tokenizer, report: EvaluationReport) -> None:
    if tokenizer.sha256 != facts.tokenizer_sha256:
        raise ExportError(
            f"the tokenizer (sha256 {tokenizer.sha256[:12]}…) is not the one that the model was trained with "
            f"({facts.tokenizer_sha256[:12]}…): run `dvc repro`"
        )
    if report.weights_sha256 != facts.weights_sha256:
        raise ExportError(
            f"reports/evaluate.json is of another model (weights {report.weights_sha256[:12]}…, this one has "
            f"{facts.weights_sha256[:12]}…): run `dvc repro evaluate`"
        )
