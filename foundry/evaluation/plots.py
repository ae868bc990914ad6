"""Pictures for people who would rather look than read: a PNG for a README, drawings for the page, rows for `dvc plots`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foundry.utils.files import atomic_write, write_text


def plot_curve(curve: Sequence[dict], validations: Sequence[dict], baseline: float | None, path: str | Path) -> None:
    """Writes a PNG: training loss and learning rate by tokens, and validation bits per byte with PPMd's line.

    Args:
        curve: rows with tokens, loss, lr.
        validations: rows with tokens, val_bits_per_byte.
        baseline: bits per byte of the best compressor that knows the training text; None leaves the line out.
    """
    fig = _curves(curve, validations, baseline)
    with atomic_write(path) as f:
        fig.savefig(f, format="png", dpi=110, metadata={"Software": None})
    _close(fig)


def curves_svg(curve: Sequence[dict], validations: Sequence[dict], baseline: float | None) -> str:
    """The same as an SVG drawing."""
    return _svg(_curves(curve, validations, baseline))


def calibration_svg(calibration: dict[str, Any]) -> str:
    """The reliability curve, with intervals, against the diagonal."""
    fig, (ax,) = _figure(1, 4.8)
    rows = calibration["rows"]
    x, y = [r["confidence"] for r in rows], [r["accuracy"]["value"] for r in rows]
    ax.plot([0, 1], [0, 1], ls="--", color="0.6", lw=1, label="perfect")
    ax.errorbar(x, y, yerr=_spread([r["accuracy"] for r in rows]), marker="o", ms=4, lw=1.2, capsize=2, label="model")
    ax.set(xlabel="probability of the likeliest token", ylabel="how often it was right", xlim=(0, 1), ylim=(0, 1))
    ax.legend(frameon=False, fontsize=8)
    return _svg(fig)


def position_svg(rows: Sequence[dict[str, Any]]) -> str:
    """Nats per token by how much of the context was seen."""
    fig, (ax,) = _figure(1, 4.8)
    ax.errorbar(
        [r["seen"] for r in rows], [r["value"] for r in rows], yerr=_spread(rows), marker="o", ms=4, lw=1.2, capsize=2
    )
    ax.set_xscale("log", base=2)
    ax.set(xlabel="tokens seen before (from)", ylabel="nats per token")
    return _svg(fig)


def write_rows(calibration: dict[str, Any], positions: Sequence[dict[str, Any]], folder: str | Path) -> None:
    """`calibration.csv` and `position.csv` for `dvc plots`."""
    flat = [
        {"confidence": r["confidence"], "accuracy": r["accuracy"]["value"], "tokens": r["tokens"]}
        for r in calibration["rows"]
    ]
    for name, rows in (("calibration", flat), ("position", positions)):
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]) if rows else ["empty"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(Path(folder) / f"{name}.csv", out.getvalue())


def _curves(curve: Sequence[dict], validations: Sequence[dict], baseline: float | None) -> Any:
    fig, (left, right) = _figure(2, 10)
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
    return fig


def _figure(columns: int, width: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "foundry"})
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(1, columns, figsize=(width, 3.6), layout="constrained", squeeze=False)
    return fig, axes[0]


def _spread(rows: Sequence[dict[str, float]]) -> list[list[float]]:
    """Lengths of the error bars below and above."""
    return [[max(0.0, r["value"] - r["low"]) for r in rows], [max(0.0, r["high"] - r["value"]) for r in rows]]


def _svg(fig: Any) -> str:
    out = io.StringIO()
    fig.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    _close(fig)
    text = out.getvalue()
    return text[text.index("<svg") :]


def _close(fig: Any) -> None:
    from matplotlib import pyplot as plt

    plt.close(fig)
