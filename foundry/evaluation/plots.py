"""Plots of an evaluation: a PNG for a README, SVG drawings for the HTML report, tables for `dvc plots`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from foundry.utils.bootstrap import Interval
from foundry.utils.evaluation_report import Calibration, PositionScore
from foundry.utils.files import atomic_write, write_text


@dataclass(frozen=True)
class TrainingCurves:
    """What a training logged.

    Attributes:
        tokens, loss, lr: by logged step: tokens read so far, nats per token, learning rate.
        validation_tokens, bits_per_byte: by validation.
    """

    tokens: list[float]
    loss: list[float]
    lr: list[float]
    validation_tokens: list[float]
    bits_per_byte: list[float]

    @classmethod
    def read(cls, train: str | Path, validation: str | Path) -> Self:
        """Reads `reports/train.csv` and `reports/validation.csv`."""
        return cls(
            *_columns(train, "tokens", "loss", "lr"),
            *_columns(validation, "tokens", "val_bits_per_byte"),
        )


def _columns(path: str | Path, *names: str) -> list[list[float]]:
    with open(path, encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    return [[float(row[name]) for row in rows] for name in names]


def plot_curves(curves: TrainingCurves, baseline: float | None, path: str | Path) -> None:
    """Writes a PNG: training loss and learning rate by tokens, and validation bits per byte beside PPMd's line.

    Args:
        baseline: bits per byte of the best compressor that has read the training text; None omits the line.
    """
    fig = _draw_curves(curves, baseline)
    with atomic_write(path) as f:
        fig.savefig(f, format="png", dpi=110, metadata={"Software": None})
    _close(fig)


def curves_svg(curves: TrainingCurves, baseline: float | None) -> str:
    """The plot of `plot_curves` as an SVG drawing."""
    return _svg(_draw_curves(curves, baseline))


def calibration_svg(calibration: Calibration) -> str:
    """The reliability curve, with intervals, beside the diagonal."""
    fig, (ax,) = _figure(1, 4.8)
    x, accuracy = [r.confidence for r in calibration.rows], [r.accuracy for r in calibration.rows]
    ax.plot([0, 1], [0, 1], ls="--", color="0.6", lw=1, label="perfect")
    _error_bars(ax, x, accuracy, label="model")
    ax.set(xlabel="probability of the likeliest token", ylabel="how often it was right", xlim=(0, 1), ylim=(0, 1))
    ax.legend(frameon=False, fontsize=8)
    return _svg(fig)


def position_svg(rows: Sequence[PositionScore]) -> str:
    """Nats per token by the number of tokens that were seen before."""
    fig, (ax,) = _figure(1, 4.8)
    _error_bars(ax, [r.seen for r in rows], rows)
    ax.set_xscale("log", base=2)
    ax.set(xlabel="tokens seen before (from)", ylabel="nats per token")
    return _svg(fig)


def write_plot_tables(calibration: Calibration, positions: Sequence[PositionScore], folder: str | Path) -> None:
    """Writes `calibration.csv` and `position.csv` for `dvc plots`."""
    bins = [{"confidence": r.confidence, "accuracy": r.accuracy.value, "tokens": r.tokens} for r in calibration.rows]
    for name, rows in (("calibration", bins), ("position", [p.model_dump() for p in positions])):
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]) if rows else ["empty"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(Path(folder) / f"{name}.csv", out.getvalue())


def _draw_curves(curves: TrainingCurves, baseline: float | None) -> Any:
    fig, (left, right) = _figure(2, 10)
    tokens = [t / 1e6 for t in curves.tokens]
    left.plot(tokens, curves.loss, lw=1)
    left.set(xlabel="million tokens", ylabel="nats per token", title="training loss")
    rate = left.twinx()
    rate.plot(tokens, curves.lr, lw=1, color="0.7")
    rate.set_ylabel("learning rate", color="0.5")
    right.plot([t / 1e6 for t in curves.validation_tokens], curves.bits_per_byte, marker="o", ms=3, label="model")
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


def _error_bars(ax: Any, x: Sequence[float], y: Sequence[Interval | PositionScore], **style: Any) -> None:
    lengths = [[max(0.0, v.value - v.low) for v in y], [max(0.0, v.high - v.value) for v in y]]  # below, above
    ax.errorbar(x, [v.value for v in y], yerr=lengths, marker="o", ms=4, lw=1.2, capsize=2, **style)


def _svg(fig: Any) -> str:
    out = io.StringIO()
    fig.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    _close(fig)
    text = out.getvalue()
    return text[text.index("<svg") :]


def _close(fig: Any) -> None:
    from matplotlib import pyplot as plt

    plt.close(fig)
