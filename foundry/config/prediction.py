"""Parameters of the registered model's `predict`: one table for its signature in MLflow and for its code."""

from __future__ import annotations

from typing import Literal

# {name: (MLflow's type, default)}. Without a seed, every text gets a new random one. `max_tokens` and `top_p` keep an
# answer short and plausible.
PREDICTION: dict[str, tuple[Literal["long", "double"], int | float | None]] = {
    "max_tokens": ("long", 64),
    "temperature": ("double", 0.8),
    "top_k": ("long", 0),
    "top_p": ("double", 0.95),
    "seed": ("long", None),
}
