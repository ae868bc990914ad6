"""Rollouts: answers that are drawn from a model's own distribution, so that the model can learn from their rewards.

A policy gradient is right only if the sampler is the policy. So an answer is drawn at temperature 1 from all of the
vocabulary: no filter, and no symbol barred. A control symbol ends the answer, whichever it is, and its text ends before
it, so that no verifier reads beyond the end. Every drawn token has the log-probability of the sampler; the trainer
compares them with its own in each step.

A rollout is a function of the weights and of (seed, batch, prompt, sample), so a resumed run repeats it bit for bit, as
does a run on several processes that has the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foundry.chat.answers import SLOTS, run_requests
from foundry.chat.example import Arguments, Example
from foundry.config import DataError
from foundry.config.sampling import Sampling
from foundry.inference.request import Request
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import Message, encode_chat, end_of_turn
from foundry.tokenizers.tokenizer import UNK_ID
from foundry.utils.files import atomic_write
from foundry.utils.splitmix import key

POLICY = Sampling(temperature=1.0)  # the model's own distribution: no filter, no penalty
ROLLOUTS = "artifacts/chat/rl_rollouts.parquet"  # where the rl stage keeps those of all its steps
PURPOSE = 0x726F  # keeps these seeds apart from those of orders and dropout


@dataclass(frozen=True)
class Prompt:
    """A question whose answer a program checks.

    Attributes:
        ids: of the conversation with its begin symbol; they end where the answer begins.
        text: of its last turn, for reports.
        task, doc_id, verifier, arguments: those of the `Example`.
    """

    ids: tuple[int, ...]
    text: str
    task: str
    doc_id: str | None
    verifier: str
    arguments: Arguments


@dataclass(frozen=True)
class Drawn:
    """An answer as it was drawn.

    Attributes:
        ids: its tokens, the symbol that ended it included.
        logprobs: of each token under the sampler, in nats.
        text: without that symbol.
        ended: whether the symbol is one that ends a turn.
        truncated: whether it met the limit instead, so that nobody knows how it would have ended.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    ended: bool
    truncated: bool


@dataclass(frozen=True)
class Rollout:
    """One answer in a group, and what was learnt from it: a row of the file of rollouts.

    Attributes:
        batch: number of the batch, from 0; that of its step unless batches were skipped.
        prompt: number of the prompt in the pool; sample: number of the answer in its group.
        ids, logprobs, text, ended, truncated: see `Drawn`.
        seed: of the answer's random numbers.
        reward: in [0, 1]; parts: named numbers that explain it.
        advantage: the reward minus the mean of the group's answers that are not truncated.
        counted: whether the step learnt from it: not if it is truncated, nor if its group's rewards are all equal.
        trainer_logprobs: of each token under the trainer, at the same weights.
        parent_logprobs: under the model that the run began with; empty unless the loss has a term of it.
    """

    batch: int
    prompt: int
    sample: int
    task: str
    doc_id: str | None
    question: str
    prompt_ids: tuple[int, ...]
    text: str
    ids: tuple[int, ...]
    seed: int
    ended: bool
    truncated: bool
    reward: float
    parts: dict[str, float]
    advantage: float
    counted: bool
    logprobs: tuple[float, ...]
    trainer_logprobs: tuple[float, ...]
    parent_logprobs: tuple[float, ...]


_IDS, _NATS = pa.list_(pa.int32()), pa.list_(pa.float64())
SCHEMA = pa.schema(
    {
        "batch": pa.int64(),
        "prompt": pa.int64(),
        "sample": pa.int64(),
        "task": pa.string(),
        "doc_id": pa.string(),
        "question": pa.string(),
        "prompt_ids": _IDS,
        "text": pa.string(),
        "ids": _IDS,
        "seed": pa.int64(),
        "ended": pa.bool_(),
        "truncated": pa.bool_(),
        "reward": pa.float64(),
        "parts": pa.map_(pa.string(), pa.float64()),
        "advantage": pa.float64(),
        "counted": pa.bool_(),
        "logprobs": _NATS,
        "trainer_logprobs": _NATS,
        "parent_logprobs": _NATS,
    }
)


def rollout_seed(seed: int, batch: int, prompt: int, sample: int) -> int:
    """The seed of an answer's random numbers, in [0, 2^63)."""
    return key(seed, PURPOSE, batch, prompt, sample) >> 1


def make_prompt(tokenizer: Tokenizer, example: Example) -> Prompt:
    """The question of an example that has a verifier.

    Raises:
        DataError: if it has none.
    """
    if example.verifier is None:
        raise DataError(f"an example of the task {example.task} has no verifier: nothing can reward its answers")
    turns = [Message(turn.role, turn.content) for turn in example.prompt]
    ids = tuple(encode_chat(tokenizer, turns))
    return Prompt(ids, turns[-1].content, example.task, example.doc_id, example.verifier, example.arguments)


def draw(
    model: MiniLLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    limit: int,
    slots: int = SLOTS,
) -> list[Drawn]:
    """Draws one answer to each prompt, many at a time, from the weights as they are.

    Args:
        model: on its device. Its mode is as before, and no global random number is drawn.
        prompts: ids of each, with its begin symbol.
        seeds: of each answer's random numbers.
        limit: tokens of an answer, the symbol that ends it included.
        slots: answers that are written at the same time; in float32 on a CPU it changes no bit.

    Raises:
        ConfigError: if a prompt leaves no room for an answer in the context.
        FoundryError: if the model fails, for example because its weights are damaged.
    """
    # Whatever is barred would be missing from the distribution, so every control symbol may be drawn, and ends.
    symbols = tuple(i for i in range(tokenizer.vocab_size) if i == UNK_ID or tokenizer.is_control(i))
    ends = end_of_turn(tokenizer)
    requests = [
        Request(tuple(ids), POLICY, limit, seed, stop_ids=symbols, logprobs=0)
        for ids, seed in zip(prompts, seeds, strict=True)
    ]
    training = model.training
    try:
        answers = run_requests(model, tokenizer, requests, slots)
    finally:
        model.train(training)
    drawn = []
    for parts, end in answers:
        scored = [token for part in parts for token in part.tokens] + ([end.scored] if end.scored else [])
        drawn.append(
            Drawn(
                ids=tuple(token.id for token in scored),
                logprobs=tuple(token.logprob for token in scored),
                text="".join(part.text for part in parts),
                ended=end.stop in ends,
                truncated=end.reason == "length",
            )
        )
    return drawn


def write_rollouts(path: str | Path, rollouts: Sequence[Rollout]) -> None:
    """Writes a file of rollouts, in their order; the same rollouts give the same bytes."""
    with atomic_write(path) as f:
        pq.write_table(_table(rollouts), f)


def join_rollouts(parts: Sequence[Path], path: str | Path) -> Iterator[list[Rollout]]:
    """Joins the files of several batches to one, and yields the rollouts of each while it does.

    The file is there when the iteration has ended.

    Raises:
        DataError: if a part is missing or damaged.
    """
    with atomic_write(path) as f, pq.ParquetWriter(f, SCHEMA) as writer:
        for part in parts:
            rollouts = read_rollouts(part)
            writer.write_table(_table(rollouts))
            yield rollouts


def read_rollouts(path: str | Path, batch: int | None = None) -> list[Rollout]:
    """Reads a file of rollouts.

    Args:
        batch: only those of this batch.

    Raises:
        DataError: if it cannot be read or has other columns.
    """
    try:
        table = pq.read_table(path, filters=None if batch is None else [("batch", "==", batch)])
    except (OSError, pa.ArrowInvalid) as e:
        raise DataError(
            f"{path} cannot be read as a file of rollouts ({e}); run `dvc repro chat/align/dvc.yaml:rl`"
        ) from None
    if table.schema != SCHEMA:
        raise DataError(f"{path} has other columns than this version writes: run `dvc repro chat/align/dvc.yaml:rl`")
    return [Rollout(**_row(row)) for row in table.to_pylist()]


def _table(rollouts: Sequence[Rollout]) -> pa.Table:
    return pa.Table.from_pylist([{**asdict(r), "parts": list(r.parts.items())} for r in rollouts], SCHEMA)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    lists = {k: tuple(v) for k, v in row.items() if isinstance(v, list) and k != "parts"}
    return {**row, **lists, "parts": dict(row["parts"])}
