"""lm-evaluation-harness on an exported model, in this process.

Two settings must be right, or its numbers are those of another model: multiple choice needs the begin symbol before the
context (`add_bos_token=True`), and rolling perplexity must not have it, because the harness scores it as if it were
text (2 % too high).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foundry.config import ConfigError, DataError, MissingPackageError, UnreachableError
from foundry.utils.evaluation_report import HarnessMetric, HarnessScore
from foundry.utils.network import is_transient


def run_harness(
    folder: str | Path,
    names: Sequence[str],
    include: str | Path | None = None,
    limit: int = 0,
    batch_size: int = 16,
    device: str = "cpu",
) -> dict[str, HarnessScore]:
    """Runs tasks by name.

    Args:
        folder: of a Hugging Face export.
        include: a folder with the user's task files, beside the harness's own tasks.
        limit: examples per task; 0: all.

    Returns:
        {task: its score}.

    Raises:
        MissingPackageError: if the harness is not installed.
        ConfigError: if it does not know a task.
        UnreachableError: if the publisher of a task's data does not answer.
        DataError: if the data of a task cannot be loaded, or the harness fails on it.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as e:
        raise MissingPackageError("lm-evaluation-harness", "eval", str(e)) from None
    manager = TaskManager(include_path=str(include) if include else None)
    if unknown := sorted(set(names) - set(manager.all_tasks)):
        raise ConfigError(
            f"evaluate.harness: lm-evaluation-harness knows no task {', '.join(unknown)}: `lm-eval ls tasks` lists them"
        )
    try:
        tasks = list(manager.load(list(names))["tasks"].values())
    except Exception as e:  # every loader of data raises its own type
        message = f"the data of {', '.join(names)} cannot be loaded: {_first_line(e)}"
        raise UnreachableError(message) if is_transient(e) else DataError(message) from e
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    out: dict[str, HarnessScore] = {}
    for rolling in (False, True):
        chosen = [t for t in tasks if (t.OUTPUT_TYPE == "loglikelihood_rolling") is rolling]
        if not chosen:
            continue
        wrapped = HFLM(
            pretrained=model, tokenizer=tokenizer, device=device, batch_size=batch_size, add_bos_token=not rolling
        )
        try:
            got = simple_evaluate(
                wrapped,
                tasks=chosen,
                task_manager=manager,
                limit=limit or None,
                bootstrap_iters=0,
                log_samples=False,
                verbosity="ERROR",
            )
        except (OSError, ValueError, KeyError, RuntimeError) as e:
            raise DataError(
                f"{', '.join(t.task_name for t in chosen)} failed in lm-evaluation-harness: {_first_line(e)}"
            ) from e
        for task, values in got["results"].items():
            out[task] = HarnessScore(n=got["n-samples"].get(task, {}).get("effective"), **_metrics(values))
    return out


def _metrics(values: dict[str, Any]) -> dict[str, HarnessMetric]:
    """The harness's `acc,none` and `acc_stderr,none` as one metric `acc`."""
    found: dict[str, HarnessMetric] = {}
    for key, value in values.items():
        name = key.split(",")[0]
        if isinstance(value, int | float) and "," in key and not name.endswith("_stderr"):
            error = values.get(key.replace(name, f"{name}_stderr", 1))
            stderr = round(float(error), 4) if isinstance(error, int | float) else None
            found[name] = HarnessMetric(value=round(float(value), 4), stderr=stderr)
    return found


def _first_line(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0][:300]
