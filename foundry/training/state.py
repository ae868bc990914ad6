"""The one state object of training (law 3): what is saved is loaded, and nothing else is needed to resume.

It has the step, the trained weights (frozen ones are what the identity says), optimizer state, gradient scaler,
random generators (Python, NumPy, torch: CPU and GPU), the loss curve, the window that spikes are measured against and
the time spent. The loader has no state: its batch is a function of the step. Nor has dropout: its generator is seeded
in every step from (seed, step, rank), so that a run resumes exactly on every rank.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foundry.config import CheckpointError
from foundry.models import MiniLLM
from foundry.models.adapter import trained_parameters
from foundry.training.optimizer import Optimizers
from foundry.training.parallel import box_of, from_part, own_part
from foundry.utils.checkpoint import Box

WINDOW = 64  # losses that a spike is measured against


class TrainState:
    """Everything that changes while training.

    Attributes:
        device: of the weights.
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
        self.device = next(iter(model.parameters()), torch.empty(0)).device
        self._trained = set(trained_parameters(model))
        self._boxes = {k: box for k, v in self._weights().items() if (box := box_of(v))}
        self.step = 0
        self.curve: list[dict[str, float]] = []
        self.validations: list[dict[str, float]] = []
        self.window: list[float] = []
        self.seconds = 0.0

    def _weights(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.model.state_dict().items() if name in self._trained}

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON values), copied to host memory: with FSDP, the parts that this process has (see `boxes`)."""
        kind, keys, pos, has_gauss, cached = np.random.get_state()
        version, internal, gauss = random.getstate()
        tensors = {
            **_named("model", self._weights()),
            **_named("optimizer", self.optimizers.tensors()),
            "rng/torch": torch.get_rng_state(),
            "rng/numpy": torch.from_numpy(keys.astype(np.int64)),
        }
        if self.device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state(self.device)
        values = {
            "identity": self.identity,
            **{name: getattr(self, name) for name in self.NAMES},
            "scaler": self.scaler.state_dict(),
            "rng": {"python": [version, list(internal), gauss], "numpy": [kind, pos, has_gauss, cached]},
        }
        # The lists go on growing while a thread writes them.
        values = {k: list(v) if isinstance(v, list) else v for k, v in values.items()}
        return {k: _host_copy(v) for k, v in tensors.items()}, values

    def boxes(self) -> dict[str, Box]:
        """Of each tensor of `state_dict` that FSDP divides, which part this process has."""
        named = {**_named("model", self._weights()), **_named("optimizer", self.optimizers.tensors())}
        return {k: box for k, v in named.items() if (box := box_of(v))}

    def wanted(self, name: str, shape: tuple[int, ...]) -> Box | None:
        """The part of a saved tensor that this process needs; None: all of it.

        The optimizer's moments are divided as their weights are.
        """
        kind, _, rest = name.partition("/")
        weight = self._boxes.get(rest if kind == "model" else rest.rpartition("/")[0])
        return weight if weight and weight.shape == shape else None

    def load_state_dict(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Puts everything back: the parts of the tensors that `wanted` says.

        Raises:
            CheckpointError: if a tensor is missing or unexpected.
        """
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "rng": {}}
        for name, value in tensors.items():
            kind, _, rest = name.partition("/")
            parts[kind][rest] = value
        try:
            mine = self.model.state_dict()
            saved = {k: from_part(v, mine.get(k, v)) for k, v in parts["model"].items()}
            self.model.load_state_dict({**saved, **{k: v for k, v in mine.items() if k not in self._trained}})
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
        if self.device.type == "cuda" and "cuda" in parts["rng"]:
            torch.cuda.set_rng_state(parts["rng"]["cuda"], self.device)

    def watch(self, loss: float) -> float | None:
        """Adds a loss to the window; returns how many standard deviations a spike is above the window, else None."""
        spike = None
        if len(self.window) == WINDOW:
            mean, std = float(np.mean(self.window)), float(np.std(self.window))
            if std and loss > mean + 6 * std:
                spike = (loss - mean) / std
        self.window = [*self.window[-WINDOW + 1 :], loss]
        return spike


def _named(kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{kind}/{k}": v for k, v in tensors.items()}


def _host_copy(tensor: Tensor) -> Tensor:
    """A copy in host memory: training continues while it is written."""
    tensor = own_part(tensor.detach())
    return tensor.cpu() if tensor.device.type != "cpu" else tensor.clone()
