"""The evaluation of a trained model, as one value for `reports/evaluate.json`."""

from __future__ import annotations

from typing import Any

from foundry.config import Config
from foundry.data.shards import Shards
from foundry.evaluation.bits_per_byte import score_split, summarize
from foundry.models import MiniLLM
from foundry.utils.files import sha256_json


def evaluate(model: MiniLLM, facts: dict[str, Any], test: Shards, cfg: Config) -> dict[str, Any]:
    """Bits per byte of the test split in two protocols, with intervals, overall and by source.

    Always in float32, so that the number does not depend on the machine's fast formats.
    """
    T = model.cfg.max_seq_len
    resamples, seed = cfg.evaluate.bootstrap, cfg.seed
    disjoint = summarize(score_split(model, test, T), resamples, seed)
    overlap = summarize(score_split(model, test, max(1, T // 2)), resamples, seed)
    by_source = disjoint.pop("by_source")
    return {
        "test": {**disjoint, "bits_per_byte_overlap": overlap["bits_per_byte"]},
        "by_source": by_source,
        "fingerprint": facts["fingerprint"],
        "weights_sha256": facts["weights_sha256"],
        "test_sha256": sha256_json([s["sha256"] for s in test.infos]),
    }
