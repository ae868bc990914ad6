"""What a build leaves in Prefect's UI: tables, Markdown, links and pictures."""

import base64
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.exceptions import PrefectHTTPStatusError

from flows.workspace import Workspace, last_kept
from foundry.utils.flow_runs import StageOutcome

PICTURES = 400_000  # bytes: a page that has more is slow
WAITS = (5, 10, 20, 40, 60)  # seconds before each retry, for a server that is restarting


@dataclass(frozen=True)
class Number:
    """A number of a report in `reports/`, as a row of the table of metrics.

    Attributes:
        path: its keys in the report, from the outside in.
        digits: its format.
    """

    report: str
    path: tuple[str, ...]
    label: str
    digits: str


NUMBERS = (
    Number("train.json", ("params",), "parameters", ",d"),
    Number("train.json", ("tokens",), "tokens read", ",d"),
    Number("train.json", ("val_bits_per_byte",), "validation bits per byte", ".4f"),
    Number("evaluate.json", ("test", "bits_per_byte", "value"), "**test bits per byte**", ".4f"),
    Number("chat.json", ("models", "sft", "macro", "all", "value"), "**exact answers to test prompts**", ".4f"),
    Number("chat.json", ("models", "sft", "ended", "value"), "answers that end by themselves", ".4f"),
)


@dataclass(frozen=True)
class Link:
    """An address with the label that is shown, as the artifact `key`."""

    key: str
    address: str
    label: str


def create_artifact(create: Callable[..., Any], key: str, **artifact: Any) -> None:
    """Creates an artifact by one of Prefect's functions. Retries if the server is away; never fails the build."""
    for wait in (*WAITS, None):
        try:
            create(key=key, **artifact)
            return
        except (httpx.HTTPError, PrefectHTTPStatusError) as e:
            if wait is None:
                get_run_logger().warning("Prefect's server did not take the artifact %s: %s", key, e)
                return
            time.sleep(wait)


def publish(ws: Workspace, outcomes: list[StageOutcome], how_to_restore: str) -> None:
    """Creates the artifacts: stages, metrics beside those of the last run, links, and the plots."""
    table = [o.model_dump() for o in outcomes]
    create_artifact(create_table_artifact, "stages", table=table, description="what DVC did with each stage, and why")
    if text := metrics_table(ws):
        text += f"\n\n{how_to_restore}"
        create_artifact(create_markdown_artifact, "metrics", markdown=text, description="numbers of this run")
    for link in links(ws):
        create_artifact(create_link_artifact, link.key, link=link.address, link_text=link.label, description=link.label)
    for picture in sorted((ws.folder / "reports").glob("*.png")):
        data = picture.read_bytes()
        if len(data) <= PICTURES:
            key = f"plot-{picture.stem.lower().replace('_', '-')}"
            text = f"![{picture.stem}](data:image/png;base64,{base64.b64encode(data).decode()})"
            create_artifact(create_markdown_artifact, key, markdown=text, description=f"reports/{picture.name}")


def metrics_table(ws: Workspace) -> str:
    """Markdown: the numbers of the reports, beside those of the last run that was kept; empty without reports."""
    lines = []
    for number in NUMBERS:
        now = _value(_report(ws, number.report), number)
        if now is None:
            continue
        before = _value(last_kept(ws.home, number.report, but=ws.folder), number)
        cells = (number.label, f"{now:{number.digits}}", *_compared(now, before, number.digits))
        lines.append(f"| {' | '.join(cells)} |")
    evaluation = _report(ws, "evaluate.json") or {}
    if "low" in (bpb := evaluation.get("test", {}).get("bits_per_byte", {})):
        lines.append(f"| its 95 % interval | {bpb['low']:.4f} to {bpb['high']:.4f} | | |")
    for name, row in evaluation.get("baselines", {}).items():
        lines.append(f"| {name.replace('_', ' ')}, given the training text | {row['given_train']:.4f} | | |")
    head = ["| what | this run | the last one | change |", "| --- | --- | --- | --- |"]
    return "\n".join(head + lines) if lines else ""


def links(ws: Workspace) -> list[Link]:
    """The training's run in MLflow and its report; MLflow's first page as long as there is no run."""
    base = os.environ.get("FOUNDRY_MLFLOW_URL", "")
    if not base.startswith("http"):
        return []
    first_page = Link("mlflow", f"{base}/#/experiments?workflowType=machine_learning", "runs and models in MLflow")
    trained = _report(ws, "train.json") or {}
    file = ws.home / ".foundry" / "train" / str(trained.get("fingerprint")) / "run_id.json"
    if not file.exists():
        return [first_page]
    from foundry.tracking.address import RunRef
    from foundry.tracking.nested import experiment_of

    try:
        known = RunRef.load(file, ws.home)
        experiment = experiment_of(known.uri, known.run_id)
    except Exception as e:  # MLflow raises its own errors and every network error; the build is done all the same
        get_run_logger().warning("no link to the run in MLflow: %s", e)
        return [first_page]
    run = f"{base}/#/experiments/{experiment}/runs/{known.run_id}"
    found = [Link("mlflow", f"{run}/model-metrics?workflowType=machine_learning", "this training in MLflow")]
    if _report(ws, "evaluate.json"):  # the report is logged with the evaluated model
        found.append(Link("report", f"{run}/artifacts/report.html?workflowType=machine_learning", "the report page"))
    return found


def _report(ws: Workspace, name: str) -> dict[str, Any] | None:
    """A report of what this run built: the other reports in the worktree are of another model.

    Not by its schema: the commit that was built may be of another version of Foundry.
    """
    path: Path = ws.folder / "reports" / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _value(report: dict[str, Any] | None, number: Number) -> Any:
    at: Any = report
    for key in number.path:
        at = at.get(key) if isinstance(at, dict) else None
    return at


def _compared(now: Any, before: Any, digits: str) -> tuple[str, str]:
    """The number of the last run, and the change since then; both empty without one."""
    if before is None:
        return "", ""
    return f"{before:{digits}}", "the same" if now == before else f"{now - before:+{digits}}"
