"""What a run in MLflow says about itself: what was trained, and what each metric means, with its unit."""

from __future__ import annotations

from typing import Any

NOTE = "mlflow.note.content"
VALIDATION = "validation/bits_per_byte"
METRICS = {
    "loss": "training loss, nats per token",
    "bits_per_byte": "training loss in bits per byte of text (about that, when sources have weights)",
    "grad_norm": "norm of the gradient before it is clipped",
    "lr": "learning rate (of AdamW's parameters; the matrices' rate follows the same schedule)",
    "tokens_per_second": "training speed",
    "gflops": "operations of the model a second, in 10⁹",
    "share_of_peak": "that speed as a share of what the device can do",
    "seconds": "time spent in the training loop, over all resumes",
    "validation/loss": "validation loss, nats per token",
    VALIDATION: "validation, bits per byte of text",
    "test_bits_per_byte": "held-out test text, bits per byte; `_low` and `_high` are its 95 % interval",
}


def shown_name(metric: str) -> str:
    """A training's metric as MLflow shows it: charts of a group (`validation/…`) come before those without one, which are sorted by their names."""
    return metric.replace("val_", "validation/", 1) if metric.startswith("val_") else metric


EXPERIMENT = (
    "Trainings of Foundry, a run each. A run is named by its model and fingerprint (a hash over architecture, recipe, seed, data index and tokenizer); "
    "an interrupted and resumed training is one run. `foundry runs` lists them beside DVC's commits and experiments."
)


def run_description(fingerprint: str, params: dict[str, Any]) -> str:
    """Markdown for the page of a run.

    Args:
        params: sections of params.yaml; those that are missing are not told.
    """
    lines = [_model(params), _recipe(params)]
    lines += [
        f"Fingerprint `{fingerprint}`. The same command goes on with an interrupted training, in this same run.",
        "",
        "| metric | meaning |",
        "| --- | --- |",
        *(f"| `{name}` | {meaning} |" for name, meaning in METRICS.items()),
    ]
    return "\n".join(line for line in lines if line is not None)


def _model(params: dict[str, Any]) -> str | None:
    m = params.get("model")
    if not isinstance(m, dict) or not {"n_layers", "dim", "max_seq_len"} <= set(m):
        return None
    vocabulary = f", vocabulary of {m['vocab_size']:,}" if "vocab_size" in m else ""
    return (
        f"**MiniLLM, {m['n_layers']} layers of width {m['dim']}**, context of {m['max_seq_len']} tokens{vocabulary}.  "
    )


def _recipe(params: dict[str, Any]) -> str | None:
    t = params.get("train")
    if not isinstance(t, dict) or not {"steps", "tokens_per_step", "optimizer", "schedule"} <= set(t):
        return None
    total = t["steps"] * t["tokens_per_step"]
    seed = f", seed {params['seed']}" if "seed" in params else ""
    return f"{t['steps']:,} steps of {t['tokens_per_step']:,} tokens, {total:,} in all; {t['optimizer']}, {t['schedule']}{seed}.  "
