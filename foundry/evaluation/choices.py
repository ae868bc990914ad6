"""Nats of the choices of questions. What the choices of a question begin with goes through the model only once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foundry.data.tokens.documents import IGNORE, Window
from foundry.evaluation.tokens import logits
from foundry.models import MiniLLM
from foundry.models.scoring import LOGITS

ROWS = 64  # choices that go through the model at a time


class _LayerKV:
    """Keys and values of one layer, (rows, K, S, D), of exactly the tokens that were read."""

    def __init__(self) -> None:
        self.kv: tuple[Tensor, Tensor] | None = None

    @property
    def length(self) -> int:
        return self.kv[0].shape[2] if self.kv else 0

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.kv = (torch.cat((self.kv[0], k), 2), torch.cat((self.kv[1], v), 2)) if self.kv else (k, v)
        return self.kv


class _Cache:
    """A cache for `MiniLLM.hidden` whose rows can be repeated."""

    def __init__(self, layers: int) -> None:
        self.layers = [_LayerKV() for _ in range(layers)]

    @property
    def length(self) -> int:
        return self.layers[0].length

    def take(self, rows: Tensor) -> None:
        """Makes the rows of these numbers the new rows."""
        for layer in self.layers:
            layer.kv = layer.kv and (layer.kv[0][rows], layer.kv[1][rows])


@torch.inference_mode()
def choice_nats(model: MiniLLM, questions: Sequence[Sequence[Window]]) -> list[np.ndarray]:
    """The summed nats of the scored tokens of each choice.

    Args:
        questions: the choices of each as windows: context and choice, of which only the choice is scored.

    Returns:
        float64 (choices,) of each question.
    """
    alike: dict[int, list[int]] = {}  # questions by how many tokens their choices share
    for number, choices in enumerate(questions):
        alike.setdefault(_shared(choices), []).append(number)
    out: dict[int, np.ndarray] = {}
    for shared, numbers in alike.items():
        most = max(1, ROWS // max(len(questions[n]) for n in numbers))
        for at in range(0, len(numbers), most):
            part = numbers[at : at + most]
            nats = _nats(model, [questions[n] for n in part], shared)
            ends = np.cumsum([len(questions[n]) for n in part])
            out |= dict(zip(part, np.split(nats, ends[:-1]), strict=True))
    return [out[number] for number in range(len(questions))]


def _shared(choices: Sequence[Window]) -> int:
    """How many tokens all choices begin with, none of which predicts a scored one; at least one token is left."""
    most = min(min(c.first_scored, len(c.tokens) - 2) for c in choices)
    first = choices[0].tokens[:most]
    return min((int(np.argmin([*(c.tokens[:most] == first), False])) for c in choices), default=0)


def _nats(model: MiniLLM, questions: Sequence[Sequence[Window]], shared: int) -> np.ndarray:
    """float64 (all choices,), for questions whose choices share so many tokens."""
    device, cache = model.tok_embeddings.weight.device, _Cache(model.cfg.n_layers)
    if shared:
        prefixes = np.stack([choices[0].tokens[:shared] for choices in questions]).astype(np.int64)
        model.hidden(torch.from_numpy(prefixes).to(device), cache)
        cache.take(torch.tensor([q for q, choices in enumerate(questions) for _ in choices], device=device))
    rows = [choice for choices in questions for choice in choices]
    x = np.zeros((len(rows), max(len(row.tokens) for row in rows) - 1 - shared), np.int64)
    y = np.full(x.shape, IGNORE)
    for r, row in enumerate(rows):
        n = len(row.tokens) - 1
        x[r, : n - shared] = row.tokens[shared:-1]
        y[r, row.first_scored - shared : n - shared] = row.tokens[row.first_scored + 1 :]
    targets = torch.from_numpy(y).to(device)
    at, chunk = targets != IGNORE, max(1, LOGITS // model.cfg.vocab_size)
    hidden = model.hidden(torch.from_numpy(x).to(device), cache)[at]
    paid = [
        F.cross_entropy(logits(model, h), target, reduction="none")
        for h, target in zip(hidden.split(chunk), targets[at].split(chunk), strict=True)
    ]
    out = torch.zeros(x.shape, device=device)
    out[at] = torch.cat(paid)
    return out.cpu().double().sum(-1).numpy()
