"""`reports/report.html`: one self-contained page about a model, for a person: how good, on what, where not, and what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foundry.evaluation.plots import calibration_svg, curves_svg, position_svg
from foundry.utils.files import write_text
from foundry.utils.html_page import render_page


def write_page(
    path: str | Path,
    report: dict[str, Any],
    train: dict[str, Any],
    cleaning: dict[str, Any],
    samples: list[dict[str, str]],
    curve: list[dict[str, str]],
    validations: list[dict[str, str]],
) -> None:
    """Renders the page.

    Args:
        report, train, cleaning: `reports/evaluate.json`, `train.json`, `clean.json`.
        curve, validations: rows of `reports/train.csv` and `validation.csv`.
    """
    ppmd = report.get("baselines", {}).get("ppmd_order_8", {}).get("given_train")
    write_text(
        path,
        render_page(
            "Model report", __package__, "report_page.html", r=report, t=train, c=cleaning, samples=samples, ppmd=ppmd,
            curves=curves_svg(curve, validations, ppmd), position=position_svg(report["by_position"]), calibration=calibration_svg(report["calibration"]),
        ),
    )  # fmt: skip
