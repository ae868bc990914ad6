"""What a run leaves in Prefect's UI: tables, Markdown, links and pictures."""

import base64
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.exceptions import PrefectHTTPStatusError

from flows.workspace import Workspace, last_kept

PICTURES = 400_000  # bytes: a page that holds more is slow
NUMBERS = (  # of reports/train.json and reports/evaluate.json, with the digits to print
    ("train.json", ("params",), "parameters", ",d"),
    ("train.json", ("tokens",), "tokens read", ",d"),
    ("train.json", ("val_bits_per_byte",), "validation bits per byte", ".4f"),
    ("evaluate.json", ("test", "bits_per_byte", "value"), "**test bits per byte**", ".4f"),
)


WAITS = (5, 10, 20, 40, 60)  # seconds between tries, for a server that is started again


def show(create: Callable[..., Any], key: str, **artifact: Any) -> None:
    """Creates an artifact. A server that is away is waited for, and does not fail what was built."""
    for wait in (*WAITS, None):
        try:
            create(key=key, **artifact)
            return
        except (httpx.HTTPError, PrefectHTTPStatusError) as e:
            if wait is None:
                get_run_logger().warning("Prefect's server did not take the artifact %s: %s", key, e)
                return
            time.sleep(wait)


def publish(ws: Workspace, rows: list[dict[str, Any]], how_to_get: str) -> None:
    """Stages, metrics against the last run, links, and the plots."""
    show(create_table_artifact, "stages", table=rows, description="what DVC did with each stage, and why")
    if text := metrics_page(ws):
        show(
            create_markdown_artifact, "metrics", markdown=text + f"\n\n{how_to_get}", description="numbers of this run"
        )
    for key, link, words in links(ws):
        show(create_link_artifact, key, link=link, link_text=words, description=words)
    for picture in sorted((ws.folder / "reports").glob("*.png")):
        data = picture.read_bytes()
        if len(data) <= PICTURES:
            source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
            show(
                create_markdown_artifact,
                f"plot-{picture.stem.lower().replace('_', '-')}",
                markdown=f"![{picture.stem}]({source})",
                description=f"reports/{picture.name}",
            )


def metrics_page(ws: Workspace) -> str:
    """Markdown: the numbers of the reports, beside those of the last run that was kept; empty without reports."""
    lines = []
    for report, path, words, digits in NUMBERS:
        now = _number(_report(ws, report), path)
        if now is None:
            continue
        before = _number(last_kept(ws.home, report, but=ws.folder), path)
        lines.append(f"| {words} | {now:{digits}} | {_shown(before, digits)} | {_change(now, before, digits)} |")
    evaluation = _report(ws, "evaluate.json") or {}
    if "low" in (bpb := evaluation.get("test", {}).get("bits_per_byte", {})):
        lines.append(f"| its 95 % interval | {bpb['low']:.4f} to {bpb['high']:.4f} | | |")
    for name, row in evaluation.get("baselines", {}).items():
        lines.append(f"| {name.replace('_', ' ')}, given the training text | {row['given_train']:.4f} | | |")
    head = ["| what | this run | the last one | change |", "| --- | --- | --- | --- |"]
    return "\n".join(head + lines) if lines else ""


def links(ws: Workspace) -> list[tuple[str, str, str]]:
    """(key, address, words): the run in MLflow and its report page; the plain address while there is no run."""
    base = os.environ.get("FOUNDRY_MLFLOW_URL", "")
    if not base.startswith("http"):
        return []
    plain = [("mlflow", f"{base}/#/experiments?workflowType=machine_learning", "runs and models in MLflow")]
    facts = _report(ws, "train.json") or {}
    record = ws.home / ".foundry" / "train" / str(facts.get("fingerprint")) / "run_id.json"
    if not record.exists():
        return plain
    run = json.loads(record.read_text(encoding="utf-8"))
    from foundry.tracking.address import resolve
    from foundry.tracking.nested import experiment_of

    try:
        where = experiment_of(resolve(run["uri"], ws.home), run["run_id"])
    except Exception as e:  # MLflow raises its own and every network error; the run is built all the same
        get_run_logger().warning("no link to the run in MLflow: %s", e)
        return plain
    page = f"{base}/#/experiments/{where}/runs/{run['run_id']}"
    found = [("mlflow", f"{page}/model-metrics?workflowType=machine_learning", "this training in MLflow")]
    if _report(ws, "evaluate.json"):  # it is put there with the evaluated model
        found.append(("report", f"{page}/artifacts/report.html?workflowType=machine_learning", "the report page"))
    return found


def _report(ws: Workspace, name: str) -> dict[str, Any] | None:
    """Of what this run built: the others in the workspace are of another model."""
    path: Path = ws.folder / "reports" / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _number(report: dict[str, Any] | None, path: tuple[str, ...]) -> Any:
    at: Any = report
    for key in path:
        at = at.get(key) if isinstance(at, dict) else None
    return at


def _shown(value: Any, digits: str) -> str:
    return "" if value is None else f"{value:{digits}}"


def _change(now: Any, before: Any, digits: str) -> str:
    return "" if before is None else "the same" if now == before else f"{now - before:+{digits}}"
