"""Records that several tests need: the reports that an export reads, and a proof."""

from foundry.export.proof import (
    GGUFProof,
    GreedyProof,
    LlamaCppMissing,
    LogitsProof,
    Proof,
    SettingsProof,
    TokenIdsProof,
    WeightsProof,
)
from foundry.utils.bootstrap import Interval
from foundry.utils.cleaning_report import (
    CleanedSource,
    CleaningReport,
    DocumentAccount,
    Leakage,
    RecordAccount,
    SourceAccount,
    SplitSize,
)
from foundry.utils.evaluation_report import Calibration, EvaluationReport, LeakProbe, PartScore, SplitScore


def around(value, by=0.1):
    """An interval of `value` ± `by`."""
    return Interval(value=value, low=value - by, high=value + by)


def example_proof():
    """A proof whose numbers are all different."""
    return Proof(
        weights=WeightsProof(tensors=29),
        token_ids=TokenIdsProof(strings=126, hostile=62, of_the_vocabulary=64, tokens=34567),
        logits=LogitsProof(tokens=2048, tolerance=1e-4, largest_difference_below=1e-5),
        greedy=GreedyProof(prompts=8, tokens=509, ties=1),
        settings=SettingsProof(compared=91),
        gguf={"q8_0": GGUFProof(format="q8_0", tensors=29, tokens=400, largest_rounding=0.0123)},
        llama_cpp=LlamaCppMissing(why="not proved here: xllamacpp is not installed"),
    )


def example_evaluation(bits_per_byte=None, perplexity=None, **fields):
    """A report on three documents of the source `one`; without tasks, baselines and contamination."""
    bits_per_byte = bits_per_byte or Interval(value=1.5, low=1.4, high=1.6)
    part = {"bits_per_byte": bits_per_byte, "documents": 3, "bytes": 900}
    perplexity = perplexity or around(20.0)
    test = SplitScore(
        **part,
        bits_per_byte_overlap=bits_per_byte,
        perplexity_token=perplexity,
        perplexity_word=perplexity,
        tokens=300,
        words=150,
        split_documents=3,
    )
    known = {
        "test": test,
        "by_source": {"one": PartScore(**part)},
        "by_lang": {},
        "by_length": {},
        "by_position": [],
        "calibration": Calibration(expected_error=around(0.2), rows=[]),
        "fingerprint": "f" * 16,
        "weights_sha256": "2" * 64,
        "test_sha256": "3" * 64,
        "tasks": {},
        "samples": {},
        "leaks": LeakProbe(later_tokens="none", other_documents="none"),
    }
    return EvaluationReport(**{**known, **fields})


def example_source(**fields):
    known = {
        "name": "one",
        "url": "file:corpus/x",
        "member": None,
        "license": "CC-BY-SA-4.0",
        "attribution": "the authors",
        "lang": "en",
        "sha256": "4" * 64,
        "files": 1,
        "bytes": 5,
    }
    return CleanedSource(**{**known, **fields})


def example_cleaning(*sources, **fields):
    """A report on the given sources; one document in and kept of each."""
    sources = sources or (example_source(),)
    counts = {"incoming": 1, "kept": 1, "dropped": {}, "repaired": {}}
    known = {
        "documents": DocumentAccount(**counts),
        "records": RecordAccount(incoming=1, quarantined=0, reasons={}, examples=[]),
        "splits": {"test": SplitSize(documents=1, bytes=9)},
        "leakage": Leakage(held_out=1, similar_in_training=None, recall=None, groups=0, grouped=0, largest=0),
        "languages": {"en": 1},
        "per_source": {s.name: SourceAccount(records=1, **counts, quarantined=0, bytes=9) for s in sources},
        "sources": list(sources),
    }
    return CleaningReport(**{**known, **fields})
