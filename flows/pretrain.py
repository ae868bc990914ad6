"""The flow `pretrain`: one Prefect task a DVC stage, taken from dvc.yaml.

DVC stays the only cache: a task is `dvc repro --single-item STAGE`, so `dvc.lock` stays true whoever ran it. Prefect adds what DVC has not: schedules, retries
by each stage's `meta.prefect`, logs and states to look at, a button to cancel. Cancelling lets the trainer save; the next run goes on.

    python -m flows.pretrain [--only STAGE ...] [--force]      once, here, with a server that lives as long
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from flows.settings import environment, project_root

os.environ.update(environment(project_root()))  # before prefect is imported: it reads its settings then

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict, Field

from flows.graph import plan
from flows.runner import StageRun, Stopped
from foundry.config import FoundryError

STATES = {"ran": "Completed", "restored": "Restored", "up-to-date": "UpToDate"}
_live: dict[str, StageRun] = {}
_cancelled = False


class Options(BaseModel):
    """What to run; the form in Prefect's UI."""

    model_config = ConfigDict(extra="forbid")

    only: list[str] = Field(default_factory=list, description="stages to run; empty runs all that changed")
    force: bool = Field(False, description="run them even if nothing changed")


def _retry(task, run, state) -> bool:
    """A stage that was stopped is not started again."""
    if _cancelled:
        return False
    try:
        state.result()
    except Stopped:
        return False
    except BaseException:
        return True
    return False


@task(task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=_retry)
def dvc_stage(stage: str, timeout_s: float | None, force: bool, flow_run_id: str):
    """Runs one stage; its state is named by what DVC did."""
    run = _live[stage] = StageRun(
        stage, project_root(), timeout_s, force=force, extra_env={"FOUNDRY_FLOW_RUN_ID": flow_run_id}
    )
    begin = time.monotonic()
    try:
        how = run.run(get_run_logger().info)
    finally:
        _live.pop(stage, None)
    seconds = round(time.monotonic() - begin, 1)
    return Completed(name=STATES[how], message=f"{how} in {seconds} s", data={"how": how, "seconds": seconds})


@flow(name="pretrain", log_prints=True)
def pretrain(options: Options = Options()):
    """From raw text to a registered model: every stage that changed, in the order of the graph."""
    global _cancelled
    _cancelled = False
    nodes = plan(project_root(), options.only)
    futures = {}
    try:
        for node in nodes:
            p = node.policy
            run = dvc_stage.with_options(
                retries=p.get("retries", 0), retry_delay_seconds=p.get("retry_delay_s", 10), retry_condition_fn=_retry
            )
            wait_for = [futures[u] for u in node.upstream if u in futures]
            futures[node.name] = run.submit(
                node.name, p.get("timeout_s"), options.force, str(flow_run.id), wait_for=wait_for
            )
        for future in futures.values():
            future.wait()
    except BaseException:
        _cancelled = True
        for run in list(_live.values()):
            run.stop("the run was cancelled")
        raise
    rows = [{"stage": n, "state": f.state.name, "message": (f.state.message or "")[:300]} for n, f in futures.items()]
    create_table_artifact(key="stages", table=rows, description="what DVC did with each stage")
    if text := metrics_page(project_root()):
        create_markdown_artifact(key="metrics", markdown=text, description="the numbers of the last evaluation")
    if (uri := os.environ.get("FOUNDRY_MLFLOW_URL", "")).startswith("http"):
        create_link_artifact(key="mlflow", link=uri, link_text="runs and models in MLflow")
    bad = [r for r in rows if not futures[r["stage"]].state.is_completed()]
    if bad:
        raise RuntimeError("; ".join(f"{r['stage']}: {r['state']} {r['message']}" for r in bad))
    return {r["stage"]: r["state"] for r in rows}


def metrics_page(root: Path) -> str:
    """The reports that are there, as Markdown."""
    lines = ["| what | value |", "| --- | --- |"]
    train, evaluate = root / "reports" / "train.json", root / "reports" / "evaluate.json"
    if train.exists():
        t = json.loads(train.read_text(encoding="utf-8"))
        lines += [
            f"| parameters | {t['params']:,} |",
            f"| tokens | {t['tokens']:,} |",
            f"| validation bits per byte | {t['val_bits_per_byte']:.4f} |",
        ]
    if evaluate.exists():
        e = json.loads(evaluate.read_text(encoding="utf-8"))
        b = e["test"]["bits_per_byte"]
        lines.append(f"| **test bits per byte** | **{b['value']:.4f}** ({b['low']:.4f} to {b['high']:.4f}) |")
        lines += [
            f"| {n}, given the training text | {row['given_train']:.4f} |" for n, row in e.get("baselines", {}).items()
        ]
    return "\n".join(lines) if len(lines) > 2 else ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the pipeline once as a Prefect flow.")
    parser.add_argument("--only", nargs="*", default=[], metavar="STAGE", help="run these stages only")
    parser.add_argument("--force", action="store_true", help="run them even if nothing changed")
    args = parser.parse_args()
    try:
        plan(project_root(), args.only)
        pretrain(Options(only=args.only, force=args.force))
    except FoundryError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()
