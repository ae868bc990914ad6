"""`reports/report.html`: one page about a model: how good it is, on which text, where not, and what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foundry.evaluation.continuations import PromptSample
from foundry.evaluation.plots import TrainingCurves, calibration_svg, curves_svg, position_svg
from foundry.models.training_report import TrainingReport
from foundry.utils.cleaning_report import CleaningReport
from foundry.utils.evaluation_report import EvaluationReport
from foundry.utils.files import write_text
from foundry.utils.html_page import render_page


def write_report_page(
    path: str | Path,
    report: EvaluationReport,
    training: TrainingReport,
    cleaning: CleaningReport,
    samples: Sequence[PromptSample],
    curves: TrainingCurves,
) -> None:
    """Renders the page."""
    page = render_page(
        "Model report",
        __package__,
        "report_page.html",
        r=report,
        t=training,
        c=cleaning,
        samples=samples,
        ppmd=report.ppmd,
        curves=curves_svg(curves, report.ppmd),
        position=position_svg(report.by_position),
        calibration=calibration_svg(report.calibration),
    )
    write_text(path, page)
