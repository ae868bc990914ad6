"""The one state object of training (law 3): what is saved is loaded, and nothing else is needed to go on.

Step, tokens, weights, optimizer state, gradient scaler, random generators (Python, NumPy, torch, CUDA), the loss curve, the best
validation and the time spent. The loader has none: its batch is a function of the step.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foundry.config import CheckpointError
from foundry.models import MiniLLM
from foundry.training.optimizer import Optimizers


class TrainState:
    """Everything that changes while training.

    Attributes:
        step: optimizer steps done.
        curve: rows of the loss curve so far.
        validations: rows of the validations so far.
        best: the best validation, bits per byte; None before the first.
        seconds: wall-clock time spent in the loop, over all resumes.
    """

    def __init__(
        self, model: MiniLLM, optimizers: Optimizers, scaler: torch.amp.GradScaler, identity: dict[str, Any]
    ) -> None:
        self.model, self.optimizers, self.scaler, self.identity = model, optimizers, scaler, identity
        self.step = 0
        self.curve: list[dict[str, float]] = []
        self.validations: list[dict[str, float]] = []
        self.best: float | None = None
        self.seconds = 0.0

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON values)."""
        kind, keys, pos, has_gauss, cached = np.random.get_state()
        version, internal, gauss = random.getstate()
        tensors = {
            **{f"model/{k}": v for k, v in self.model.state_dict().items()},
            **{f"optimizer/{k}": v for k, v in self.optimizers.tensors().items()},
            "rng/torch": torch.get_rng_state(),
            "rng/numpy": torch.from_numpy(keys.astype(np.int64)),
        }
        if torch.cuda.is_available():
            tensors |= {f"rng/cuda{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
        values = {
            "identity": self.identity,
            "step": self.step,
            "curve": self.curve,
            "validations": self.validations,
            "best": self.best,
            "seconds": self.seconds,
            "scaler": self.scaler.state_dict(),
            "rng": {"python": [version, list(internal), gauss], "numpy": [kind, pos, has_gauss, cached]},
        }
        return tensors, values

    def load_state_dict(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Puts everything back.

        Raises:
            CheckpointError: if a tensor is missing or too many.
        """
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "rng": {}}
        for name, value in tensors.items():
            kind, _, rest = name.partition("/")
            parts[kind][rest] = value
        try:
            self.model.load_state_dict(parts["model"])
            self.optimizers.load_tensors(parts["optimizer"])
        except (RuntimeError, ValueError) as e:
            raise CheckpointError(f"the checkpoint does not fit this model: {e}") from None
        for name in ("step", "curve", "validations", "best", "seconds"):
            setattr(self, name, values[name])
        self.scaler.load_state_dict(values["scaler"])
        version, internal, gauss = values["rng"]["python"]
        random.setstate((version, tuple(internal), gauss))
        kind, pos, has_gauss, cached = values["rng"]["numpy"]
        np.random.set_state((kind, parts["rng"]["numpy"].numpy().astype(np.uint32), pos, has_gauss, cached))
        torch.set_rng_state(parts["rng"]["torch"])
        cuda = [parts["rng"][f"cuda{i}"] for i in range(sum(k.startswith("cuda") for k in parts["rng"]))]
        if cuda and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(cuda)
