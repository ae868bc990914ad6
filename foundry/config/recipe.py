"""The recipe of a training: the schedule, the optimizer, and what is done and reported on the way.

Pre-training (`train`) and each kind of post-training (`chat.py`) extend it by the keys that decide their batches.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_validator,
)

from foundry.config.section import Section

# YAML has no tuples and no sets: a list is what a user writes.
Pair = Annotated[tuple[float, float], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)]


class Recipe(Section):
    """What every training has in common. Every key is part of the run's identity."""

    steps: int = Field(1000, ge=1, le=10**9, description="number of optimizer steps")
    optimizer: Literal["adamw", "muon"] = Field(
        "muon", description="muon: Muon for the matrices of the layers and fused AdamW for all other parameters"
    )
    lr: float = Field(3e-3, gt=0, le=100, description="peak learning rate of AdamW")
    matrix_lr: float = Field(0.02, gt=0, le=100, description="peak learning rate of Muon (matrices of the layers)")
    betas: Pair = Field((0.9, 0.95), description="betas of AdamW")
    eps: float = Field(1e-8, gt=0, le=1, description="epsilon of AdamW")
    weight_decay: float = Field(
        0.1, ge=0, le=100, description="weight decay of matrices; norms and embeddings are not decayed"
    )
    grad_clip: float = Field(1.0, ge=0, le=1e9, description="largest global norm of the gradient; 0: no clipping")
    schedule: Literal["wsd", "cosine", "linear", "constant"] = Field(
        "wsd", description="learning rate after the warm-up; wsd: constant, then linear decay to min_lr_ratio"
    )
    warmup_steps: int = Field(40, ge=0, le=10**9, description="steps in which the learning rate rises to its peak")
    decay_fraction: float = Field(0.6, ge=0.0, le=1.0, description="wsd: share of the steps in which the rate decays")
    min_lr_ratio: float = Field(0.0, ge=0.0, le=1.0, description="learning rate at the end, relative to the peak")
    on_nonfinite: Literal["halt", "skip", "rollback"] = Field(
        "halt",
        description="what to do when a loss or gradient is not finite; halt: stop with an error; skip: skip the "
        "batch and repeat the step with the next one; rollback: return to a checkpoint and skip the "
        "batches up to the failure",
    )
    rollback_steps: int = Field(
        5, ge=1, le=10**9, description="number of batches that a rollback skips, the offending one included"
    )
    log_interval: int = Field(10, ge=1, le=10**9, description="steps between two points of the loss curve")
    eval_interval: int = Field(100, ge=1, le=10**9, description="steps between two validations")

    @property
    def decay_steps(self) -> int:
        """Steps at the end in which the rate of `wsd` decays."""
        return max(1, round(self.decay_fraction * self.steps))

    def train_config(self, **others: Any) -> TrainConfig:
        """These keys as the recipe of a `Trainer`, with others; the loader decides the batch."""
        return TrainConfig(**{key: getattr(self, key) for key in Recipe.model_fields} | others)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be smaller than steps ({self.steps})")
        if self.schedule == "wsd" and self.warmup_steps > self.steps - self.decay_steps:
            raise ValueError(
                f"the warm-up ({self.warmup_steps} steps) does not fit before the decay of wsd, which begins after "
                f"step {self.steps - self.decay_steps} of {self.steps}: lower warmup_steps or decay_fraction "
                f"({self.decay_fraction})"
            )
        if not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {list(self.betas)}")
        return self


class TrainConfig(Recipe):
    """The recipe of a training run. Every key is part of the run's identity.

    The Python interface may give `learning_rate` instead of `lr`, `max_iters` instead of `steps`, and `batch_size`
    (sequences of a step), which the data loader must have, too. `params.yaml` has none of these: see `TrainSection`.
    """

    tokens_per_step: int = Field(
        2048, ge=2, le=2**32, description="size of the global batch in tokens, over all ranks and micro-batches"
    )
    packing: Literal["cut", "best_fit", "document"] = Field(
        "cut",
        description="how documents fill a row; cut: joined and cut, each token once; best_fit: complete documents with "
        "padding; document: one document per row",
    )
    document_mask: bool = Field(False, description="a token attends only to tokens of its own document")
    z_loss: float = Field(
        0.0, ge=0, le=1e3, description="weight of (log sum exp of the logits)^2 in the training loss; 0: off"
    )
    eval_tokens: int = Field(
        32_768, ge=1, le=2**40, description="number of validation tokens, the same ones every time"
    )

    _batch_size: int | None = PrivateAttr(None)

    @property
    def batch_size(self) -> int | None:
        """Sequences of a step, if the recipe gives them; the data loader must have as many."""
        return self._batch_size

    @property
    def learning_rate(self) -> float:
        """Another name of `lr`."""
        return self.lr

    @property
    def max_iters(self) -> int:
        """Another name of `steps`."""
        return self.steps

    @model_validator(mode="wrap")
    @classmethod
    def _other_names(cls, data: Any, handler: ModelWrapValidatorHandler) -> Any:
        """Accepts the names of the Python interface; without `warmup_steps`, a short run gets a short warm-up."""
        if not isinstance(data, dict):
            return handler(data)
        rows = data.get("batch_size")
        names = {"learning_rate": "lr", "max_iters": "steps"}
        if twice := [f"{k} and {v}" for k, v in names.items() if k in data and v in data]:
            raise ValueError(f"{twice[0]} are two names of one key: give one of them")
        values = {names.get(k, k): v for k, v in data.items() if k != "batch_size"}
        if "steps" in values and "warmup_steps" not in values and isinstance(values["steps"], int):
            values["warmup_steps"] = min(cls.model_fields["warmup_steps"].default, values["steps"] // 10)
        made = handler(values)
        if rows is not None:
            if type(rows) is not int or rows < 1:
                raise ValueError(f"batch_size must be a positive number of sequences, got {rows!r}")
            made._batch_size = rows
        return made


class TrainSection(TrainConfig):
    """The section `train` of `params.yaml`: a `TrainConfig` without the other names of the Python interface."""

    @model_validator(mode="wrap")
    @classmethod
    def _other_names(cls, data: Any, handler: ModelWrapValidatorHandler) -> Any:
        return handler(data)
