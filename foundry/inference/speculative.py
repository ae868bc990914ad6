"""Speculative decoding: guesses of the next tokens, which the model checks together in one step.

The engine chooses every token as it would without guesses: from the same logits, with the same random numbers. A guess
that equals the chosen token saves the step of the next one, and the first that differs ends the step. So a request
gives the same tokens with and without speculation, greedy and sampled; in float32 on a CPU the logits are the same
bits, since no row of a step depends on another (`foundry.inference.runner`).

For a guess that is one token with certainty, as here, that is the acceptance rule of Leviathan et al. 2023
(arXiv:2211.17192) and Chen et al. 2023 (arXiv:2302.01318): it is accepted with min(1, p / 1), its probability under
the model, and after a rejection the token comes from the model's distribution without the guess, normalised. Drawing
guesses from a draft model's distribution would accept somewhat more at high temperatures, but the tokens of a seed
would then depend on the draft model.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch

from foundry.config import ConfigError
from foundry.inference.engine import DraftRow
from foundry.inference.piece import Piece
from foundry.inference.runner import Runner


class NGramDrafter:
    """Guesses that what followed the last tokens before will follow them again.

    Prompt lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding): the last occurrence of the last
    `longest` tokens in prompt and answer is looked up, then of fewer down to `shortest`. It needs no second model and
    helps where text is repeated, as in summaries, corrections and code.

    Args:
        tokens: that are guessed at most.

    Raises:
        ConfigError: (a `ValueError`) for numbers below 1, or a longest n-gram that is shorter than the shortest.
    """

    def __init__(self, tokens: int = 6, longest: int = 4, shortest: int = 2) -> None:
        if not (tokens >= 1 and 1 <= shortest <= longest):
            raise ConfigError(f"n-grams of {shortest} to {longest} tokens cannot guess {tokens} tokens")
        self.tokens, self.longest, self.shortest = tokens, longest, shortest

    def propose(self, rows: Sequence[DraftRow]) -> list[list[int]]:
        return [self._guess(row.ids, min(self.tokens, row.room)) for row in rows]

    def _guess(self, ids: Sequence[int], count: int) -> list[int]:
        if count < 1:
            return []
        text = array("i", ids)
        width, data = text.itemsize, text.tobytes()
        for n in range(min(self.longest, len(ids) - 1), self.shortest - 1, -1):
            wanted, before = data[-n * width :], len(data) - width
            while (at := data.rfind(wanted, 0, before)) >= 0:
                if at % width == 0:
                    begin = at // width + n
                    return list(ids[begin : begin + count])
                before = at + len(wanted) - 1  # a match between two tokens
        return []


class ModelDrafter:
    """Guesses the tokens that a smaller model finds most likely.

    It has a slot for each of the engine's, in which it follows the answer: what both have in common is not read again.

    Args:
        runner: of the draft model, with the vocabulary and as many slots as the engine's.
        tokens: that are guessed at most.
        barred: ids that the engine never generates.

    Raises:
        ConfigError: (a `ValueError`) if fewer than one token is to be guessed.
    """

    def __init__(self, runner: Runner, tokens: int = 4, barred: Sequence[int] = ()) -> None:
        if tokens < 1:
            raise ConfigError(f"a draft model has to guess at least 1 token, got {tokens}")
        self.runner, self.tokens = runner, tokens
        self._barred = torch.tensor(list(barred), dtype=torch.int64)
        self._read: list[list[int]] = [[] for _ in range(runner.cache.slots)]

    @torch.inference_mode()
    def propose(self, rows: Sequence[DraftRow]) -> list[list[int]]:
        """Guesses for each row; none for one that leaves no room in the draft model's context."""
        context = self.runner.cfg.max_seq_len
        counts = [min(self.tokens, row.room, context - len(row.ids)) for row in rows]
        guesses: list[list[int]] = [[] for _ in rows]
        while growing := [i for i, n in enumerate(counts) if len(guesses[i]) < n]:
            pieces = [self._piece(rows[i], guesses[i]) for i in growing]
            logits = self.runner.forward(pieces).index_fill(1, self._barred.to(self.runner.device), float("-inf"))
            for i, token in zip(growing, logits.argmax(-1).tolist(), strict=True):
                guesses[i].append(token)
        return guesses

    def _piece(self, row: DraftRow, guessed: Sequence[int]) -> Piece:
        """What the draft model has not read of an answer and its guesses, the last token at least."""
        ids, read = [*row.ids, *guessed], self._read[row.slot]
        same = 0
        while same < min(len(read), len(ids) - 1) and read[same] == ids[same]:
            same += 1
        self._read[row.slot] = ids
        return Piece(row.slot, same, ids[same:], prompt=len(ids) - same > 1, wanted=1)
