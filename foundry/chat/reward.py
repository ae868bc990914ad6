"""The reward model: the trunk of the fine-tuned model, and one number at the end symbol of an answer.

The reward is the product of the last hidden state with the embedding row of a reserved symbol, which begins as zero:
a reward model is a `MiniLLM` and is saved, loaded, adapted and divided over processes like one, and every reward is 0
at its first step. The loss is that of Bradley & Terry (1952) with a term that keeps rewards near zero, as pairs say
nothing of their level (Eisenstein et al. 2023, arXiv:2312.09244).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foundry.chat.dpo import by_length
from foundry.chat.example import Turn
from foundry.chat.pairs import EncodedPair, data_hash, encode_side, sides_of
from foundry.config.corpus import RESERVED
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.utils.targets import IGNORE

SYMBOL = RESERVED[0]  # whose row is the reward's direction; it never occurs in a text
BINS = 10  # of the calibration


def begin_rewards(model: MiniLLM, tokenizer: Tokenizer) -> int:
    """Makes a language model a reward model whose rewards are all 0; returns the row of the reward."""
    row = tokenizer.id_of(SYMBOL)
    with torch.no_grad():
        for matrix in {id(w): w for w in (model.tok_embeddings.weight, model.head_weight)}.values():
            matrix[row] = 0
    return row


def rewards(model: MiniLLM, tokens: Tensor, targets: Tensor, row: int) -> Tensor:
    """float32 (N,) of rows (N, T): the number at each row's end symbol, which is the token after the last target."""
    places = torch.arange(targets.shape[1], device=targets.device)
    ends = torch.where(targets != IGNORE, places, -1).amax(1) + 1
    states = model.hidden(tokens)[torch.arange(len(tokens), device=tokens.device), ends]
    with torch.autocast(states.device.type, enabled=False):
        return states.float() @ model.head_weight[row].float()


class BradleyTerry:
    """The loss of a `PairLoader`'s batches: -log sigmoid(r_chosen - r_rejected), summed over pairs.

    Args:
        row: of the reward, see `begin_rewards`.
        centre: weight of (r_chosen + r_rejected)^2.
    """

    def __init__(self, row: int, centre: float) -> None:
        self.row, self.centre = row, centre

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": "bradley-terry", "row": self.row, "centre": self.centre}

    def count(self, tokens: Tensor, targets: Tensor, reference: Tensor) -> Tensor:
        """Pairs."""
        return torch.tensor(len(tokens), device=tokens.device)

    def __call__(self, model: MiniLLM, tokens: Tensor, targets: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """(with the term of the level, without it)."""
        found = rewards(model, tokens.flatten(0, 1), targets.flatten(0, 1), self.row).view(-1, 2)
        loss = -F.logsigmoid(found[:, 0] - found[:, 1]).sum()
        return loss + self.centre * found.sum(1).square().sum(), loss.detach()


class RewardedPairs:
    """A `training.protocols.Validator` of pairs that are not trained on."""

    def __init__(self, pairs: Sequence[EncodedPair], row: int) -> None:
        self.pairs, self.row = list(pairs), row

    @property
    def identity(self) -> dict[str, Any]:
        return {"pairs_sha256": data_hash(self.pairs)}

    def __call__(
        self, model: MiniLLM, apply: Callable[..., Any], precision: torch.dtype, rows: int
    ) -> dict[str, float]:
        """val_loss; val_accuracy beside val_longer_wins; val_calibration_error (see `calibration_error`); val_margin
        and val_reward, the means of difference and level."""
        values = self.scores(model, apply, precision, rows)
        margin = values[:, 0] - values[:, 1]
        return {
            "val_loss": float(np.logaddexp(0, -margin).mean()),
            "val_accuracy": float(right(margin).mean()),
            "val_longer_wins": float(np.mean([p.longer_wins for p in self.pairs])),
            "val_calibration_error": calibration_error(margin),
            "val_margin": float(margin.mean()),
            "val_reward": float(values.mean()),
        }

    @torch.no_grad()
    def scores(self, model: MiniLLM, apply: Callable[..., Any], precision: torch.dtype, rows: int) -> np.ndarray:
        """The rewards: float64 (pairs, 2)."""
        device = model.tok_embeddings.weight.device
        values = np.zeros((len(self.pairs), 2))
        training = model.training
        model.eval()

        def score(model: MiniLLM, tokens: Tensor, targets: Tensor) -> Tensor:
            return rewards(model, tokens.flatten(0, 1), targets.flatten(0, 1), self.row).view(-1, 2)

        try:
            for at in by_length(self.pairs, device, rows):
                tokens, targets = (t.to(device) for t in sides_of([self.pairs[i] for i in at]))
                with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                    values[at] = apply(score, tokens, targets).double().cpu().numpy()
        finally:
            model.train(training)
        return values


def right(margin: np.ndarray) -> np.ndarray:
    """1 where the chosen side is ahead, 0 where the rejected one is, one half at a tie."""
    return 0.5 + 0.5 * np.sign(margin)


def calibration_error(margin: np.ndarray) -> float:
    """The expected calibration error (Guo et al. 2017, arXiv:1706.04599) of the probability of the side that is ahead.

    In each of ten bins of that probability, how far its mean is from the share of pairs where that side was the chosen
    one; the mean over pairs.
    """
    confident = 1 / (1 + np.exp(-np.abs(margin)))  # in [0.5, 1)
    bins = np.minimum((2 * (confident - 0.5) * BINS).astype(int), BINS - 1)
    weight = np.bincount(bins, minlength=BINS)
    gap = np.abs(np.bincount(bins, confident, BINS) - np.bincount(bins, right(margin), BINS))
    return float(gap.sum() / weight.sum())


@torch.no_grad()
def reward_of(model: MiniLLM, tokenizer: Tokenizer, prompt: Sequence[Turn], answer: Sequence[Turn]) -> float:
    """What a reward model gives to an answer.

    Raises:
        DataError: if the answer has no turn of the assistant.
    """
    side = encode_side(tokenizer, prompt, answer)
    tokens, targets = sides_of([EncodedPair(side, side, "", "")])
    device = model.tok_embeddings.weight.device
    return rewards(model, tokens[:, 0].to(device), targets[:, 0].to(device), tokenizer.id_of(SYMBOL)).item()
