"""The loss curve as a picture: for people who would rather look than read, and for a README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foundry.utils.files import atomic_write


def plot_curve(curve: Sequence[dict], validations: Sequence[dict], baseline: float | None, path: str | Path) -> None:
    """Writes a PNG: training loss and learning rate by tokens, and validation bits per byte with PPMd's line.

    Args:
        curve: rows with tokens, loss, lr.
        validations: rows with tokens, val_bits_per_byte.
        baseline: bits per byte of the best compressor that knows the training text; None leaves the line out.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    tokens = [float(r["tokens"]) / 1e6 for r in curve]
    left.plot(tokens, [float(r["loss"]) for r in curve], lw=1)
    left.set(xlabel="million tokens", ylabel="nats per token", title="training loss")
    rate = left.twinx()
    rate.plot(tokens, [float(r["lr"]) for r in curve], lw=1, color="0.7")
    rate.set_ylabel("learning rate", color="0.5")
    bpb = [float(r["val_bits_per_byte"]) for r in validations]
    right.plot([float(r["tokens"]) / 1e6 for r in validations], bpb, marker="o", ms=3, label="model")
    right.set(xlabel="million tokens", ylabel="bits per byte", title="validation")
    if baseline is not None:
        right.axhline(baseline, ls="--", color="tab:red", lw=1, label="PPMd order 8 given the training text")
    right.legend(frameon=False, fontsize=8)
    with atomic_write(path) as f:
        fig.savefig(f, format="png", dpi=110, metadata={"Software": None})
    plt.close(fig)
