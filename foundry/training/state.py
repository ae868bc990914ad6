"""The one state object of training (law 3): what is saved is loaded, and nothing else is needed to go on.

Step, weights, optimizer state, gradient scaler, random generators (Python, NumPy, torch, CUDA), the loss curve, the window that spikes are
measured against and the time spent. The loader has none: its batch is a function of the step. Nor has dropout: the
generator is set anew for every step, from (seed, step, rank), so that every rank of any number goes on exactly.
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
from foundry.training.parallel import divided_like, whole

WINDOW = 64  # losses that a spike is measured against


class TrainState:
    """Everything that changes while training.

    Attributes:
        step: optimizer steps done.
        curve: rows of the loss curve so far.
        validations: rows of the validations so far.
        window: the last losses.
        seconds: wall-clock time spent in the loop, over all resumes.
    """

    NAMES = ("step", "curve", "validations", "window", "seconds")

    def __init__(
        self, model: MiniLLM, optimizers: Optimizers, scaler: torch.amp.GradScaler, identity: dict[str, Any]
    ) -> None:
        self.model, self.optimizers, self.scaler, self.identity = model, optimizers, scaler, identity
        self.step = 0
        self.curve: list[dict[str, float]] = []
        self.validations: list[dict[str, float]] = []
        self.window: list[float] = []
        self.seconds = 0.0

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON values), copies in host memory. With FSDP every rank must call it."""
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
            **{name: getattr(self, name) for name in self.NAMES},
            "scaler": self.scaler.state_dict(),
            "rng": {"python": [version, list(internal), gauss], "numpy": [kind, pos, has_gauss, cached]},
        }
        # The lists go on growing while a thread writes them.
        values = {k: list(v) if isinstance(v, list) else v for k, v in values.items()}
        return {k: _host_copy(v) for k, v in tensors.items()}, values

    def load_state_dict(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Puts everything back.

        Raises:
            CheckpointError: if a tensor is missing or too many.
        """
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "rng": {}}
        for name, value in sorted(tensors.items()):  # FSDP divides them in this order, on every rank alike
            kind, _, rest = name.partition("/")
            parts[kind][rest] = value
        try:
            mine = self.model.state_dict()
            self.model.load_state_dict({k: divided_like(v, mine.get(k, v)) for k, v in parts["model"].items()})
            self.optimizers.load_tensors(parts["optimizer"])
        except (RuntimeError, ValueError) as e:
            raise CheckpointError(f"the checkpoint does not fit this model: {e}") from None
        for name in self.NAMES:
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

    def watch(self, loss: float) -> float | None:
        """Takes a loss into the window; returns how many standard deviations a spike lies above it, else None."""
        spike = None
        if len(self.window) == WINDOW:
            mean, std = float(np.mean(self.window)), float(np.std(self.window))
            if std and loss > mean + 6 * std:
                spike = (loss - mean) / std
        self.window = [*self.window[-WINDOW + 1 :], loss]
        return spike


def _host_copy(tensor: Tensor) -> Tensor:
    """A tensor of its own in host memory: training goes on while it is written."""
    tensor = whole(tensor.detach())
    return tensor.cpu() if tensor.device.type != "cpu" else tensor.clone()
