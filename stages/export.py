"""Stage export: artifacts/model, artifacts/tokenizer, data/clean/test, reports → artifacts/export, a model version."""

import logging

from foundry.utils.allocator import keep_memory

if __name__ == "__main__":
    keep_memory()  # restarts the process, so it comes before torch is imported

from foundry.config import Config, DataError, TrackingError
from foundry.data.tokens.index import read_index
from foundry.data.tokens.proof_text import proof_text
from foundry.export.bundle import export
from foundry.export.lineage import build_lineage
from foundry.export.proof import ExportRecord, LlamaCppMissing
from foundry.export.quantised import HeldOutText
from foundry.models import load_trained_model
from foundry.tokenizers import Tokenizer
from foundry.tracking.settings import tracking_uri
from foundry.utils.cleaning_report import read_cleaning
from foundry.utils.device import prepare_device
from foundry.utils.evaluation_report import read_evaluation
from foundry.utils.stage import run_stage

# They take the place of prompts from the test split if it has too few documents.
PROMPTS = ("The ", "A", "In ", "It is", "1, 2, 3", "\n", "\u6c34", "")


def work(cfg: Config, log: logging.Logger) -> None:
    if cfg.runtime.tracking:
        tracking_uri(cfg.runtime)  # refuses an address that can never work before anything is exported
    model, facts = load_trained_model("artifacts/model")
    report = read_evaluation("reports/evaluate.json", DataError)
    cleaning = read_cleaning("reports/clean.json", DataError)
    tokenizer = Tokenizer("artifacts/tokenizer")
    device = prepare_device(cfg.runtime)
    test = proof_text(tokenizer, model.cfg.max_seq_len)
    texts, held_out = test.texts, HeldOutText(test.batches, test.n_bytes)
    prompts = ["The ", *(t[:40] for t in texts[:7]), *PROMPTS[1:]][:8]
    log.info(
        "exporting %s; scoring %d documents in each rounding format on %s",
        ", ".join(cfg.export.gguf_types),
        len(held_out.n_bytes),
        device,
    )
    lineage = build_lineage(".", facts, cfg.identity(), read_index("data/shards").file_hashes())
    record = export(
        "artifacts/export",
        model,
        facts,
        tokenizer,
        report,
        cleaning,
        texts,
        prompts,
        cfg.export,
        held_out=held_out,
        lineage=lineage,
        device=device,
    )
    _log_record(record, log)
    if cfg.runtime.tracking:
        _register(cfg, log)


def _log_record(record: ExportRecord, log: logging.Logger) -> None:
    proof = record.proof
    log.info(
        "proved: %d tensors bit for bit, logits of %d tokens, ids of %d strings, %d greedy tokens",
        proof.weights.tensors,
        proof.logits.tokens,
        proof.token_ids.strings,
        proof.greedy.tokens,
    )
    cpp = proof.llama_cpp
    if isinstance(cpp, LlamaCppMissing):
        log.warning("llama.cpp: %s", cpp.why)
    else:
        log.info(
            "proved in llama.cpp: ids of %d strings, log-probabilities after %d contexts, %d greedy tokens",
            cpp.token_ids.strings,
            cpp.log_probs.positions,
            cpp.greedy.tokens,
        )
    for kind, cost in record.quantised.formats.items() if record.quantised else ():
        log.info(
            "%s: %+.5f bits per byte; the most likely token is the same at %.2f %% of the positions; %d bytes",
            kind,
            cost.difference.value,
            100 * cost.top1_agreement,
            cost.bytes,
        )
    log.info("wrote artifacts/export: hf/ and %s", ", ".join(n for n in record.files if n.endswith(".gguf")))


def _register(cfg: Config, log: logging.Logger) -> None:
    """Registers the export, a side effect (law 10): if it fails, the export is kept and `foundry sync` repeats it."""
    from foundry.project.register import register_export

    try:
        done = register_export(cfg)
    except TrackingError as e:
        log.warning("%s", e)
        return
    log.info(
        "version %s of %s: %s; %s",
        done.version,
        done.name,
        "new" if done.created else "was registered before",
        done.reason,
    )


def main() -> None:
    run_stage("export", work)


if __name__ == "__main__":
    main()
