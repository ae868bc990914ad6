"""The description of a run in MLflow: what was trained, and what each metric means, with its unit."""

from __future__ import annotations

from typing import Any

from foundry.tracking.names import TEST_SCORE, VALIDATION

METRICS = {
    "loss": "training loss, nats per token",
    "bits_per_byte": "training loss in bits per byte of text (an approximation when sources are weighted)",
    "grad_norm": "norm of the gradient before clipping",
    "lr": "learning rate (of AdamW's parameters; the rate of the matrices follows the same schedule)",
    "tokens_per_second": "training speed",
    "gflops": "operations of the model per second, in 10⁹",
    "share_of_peak": "that speed as a share of the device's peak",
    "seconds": "time spent in the training loop, over all resumes",
    "validation/loss": "validation loss, nats per token",
    VALIDATION: "validation, bits per byte of text",
    TEST_SCORE: "held-out test text, bits per byte; `_low` and `_high` are its 95 % interval",
}
EXPERIMENT_NOTE = (
    "Trainings of Foundry, one run each. A run is named after its model and fingerprint (a hash over architecture, "
    "recipe, seed, data index and tokenizer); a training that was interrupted and resumed is one run. `foundry runs` "
    "lists them beside DVC's commits and experiments."
)


def mlflow_name(metric: str) -> str:
    """The name of a training's metric in MLflow.

    MLflow draws charts of a group (`validation/…`) before those without a group, and sorts both by name.
    """
    return metric.replace("val_", "validation/", 1) if metric.startswith("val_") else metric


def run_description(fingerprint: str, params: dict[str, Any]) -> str:
    """The description of a run, in Markdown.

    Args:
        params: sections of params.yaml; sections that are missing are not described.
    """
    lines = [
        *_model(params.get("model")),
        *_recipe(params),
        f"Fingerprint `{fingerprint}`. The same command resumes an interrupted training in this same run.",
        "",
        "| metric | meaning |",
        "| --- | --- |",
        *(f"| `{name}` | {meaning} |" for name, meaning in METRICS.items()),
    ]
    return "\n".join(lines)


def _model(m: Any) -> list[str]:
    if not isinstance(m, dict) or not {"n_layers", "dim", "max_seq_len"} <= set(m):
        return []
    size = f"**MiniLLM, {m['n_layers']} layers of width {m['dim']}**, context of {m['max_seq_len']} tokens"
    vocabulary = f", vocabulary of {m['vocab_size']:,}" if "vocab_size" in m else ""
    return [f"{size}{vocabulary}.  "]


def _recipe(params: dict[str, Any]) -> list[str]:
    t = params.get("train")
    if not isinstance(t, dict) or not {"steps", "tokens_per_step", "optimizer", "schedule"} <= set(t):
        return []
    tokens = f"{t['steps']:,} steps of {t['tokens_per_step']:,} tokens, {t['steps'] * t['tokens_per_step']:,} in all"
    seed = f", seed {params['seed']}" if "seed" in params else ""
    return [f"{tokens}; {t['optimizer']}, {t['schedule']}{seed}.  "]
