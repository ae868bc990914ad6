"""Bits per byte on raw bytes with intervals, compressor baselines, tasks, samples, paired comparison of two models."""

from typing import Any

_HOME = {
    "Comparison": "compare",
    "Scores": "bits_per_byte",
    "compare_documents": "compare",
    "evaluate_model": "full_evaluation",
    "bits_per_byte_interval": "bits_per_byte",
    "read_losses": "losses",
    "score": "bits_per_byte",
    "score_held_out": "held_out_scores",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'foundry.evaluation' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"foundry.evaluation.{_HOME[name]}"), name)
