"""Bits per byte on raw bytes with intervals, compressor baselines beside it, fixed-prompt samples."""

from foundry.evaluation.bits_per_byte import Scores, bits_per_byte, interval, score_split, summarize
from foundry.evaluation.report import evaluate

__all__ = ["Scores", "bits_per_byte", "evaluate", "interval", "score_split", "summarize"]
