"""The chat data: `examples.parquet` of each split, and its conversations as token shards with a mask of what is learnt.

A shard is an Arrow IPC file of one record batch, which is memory-mapped. A row is a conversation: `tokens` (uint16, or
uint32 when the vocabulary needs it), `learnt` (for each token, whether a model learns to predict it), `task`,
`example` (its row in `examples.parquet`) and `n_bytes` (UTF-8 bytes of the answers that are learnt). Examples without
an answer to learn are prompts: they are in `examples.parquet` only.

The index (`foundry.chat.index`) has the hash of every file; whoever opens a shard checks it. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from foundry.chat.example import Example, Split
from foundry.chat.examples import write_examples
from foundry.chat.index import AGAIN, ChatIndex, ChatShard, ChatSplit, TaskTotal, read_index
from foundry.config import DataError
from foundry.data.splits import SPLITS
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import TEMPLATE_SHA256, SupervisedIds, encode_supervised
from foundry.utils.files import atomic_dir, atomic_write, sha256_file

TOKENS_PER_SHARD = 1 << 24


class EncodedExample(NamedTuple):
    """A conversation of a shard.

    Attributes:
        tokens: its ids.
        learnt: bool, for each of them; the first one is never learnt.
        example: its row in `examples.parquet`.
        n_bytes: UTF-8 bytes of the answers that are learnt.
    """

    tokens: np.ndarray
    learnt: np.ndarray
    task: str
    example: int
    n_bytes: int


def places(encoded: SupervisedIds) -> int:
    """Input tokens that training on a conversation reads: those before its last learnt token; 0 if there is none."""
    mask = encoded.mask
    return len(mask) - 1 - mask[::-1].index(True) if True in mask else 0


def write_chat(
    out: str | Path,
    examples: Mapping[Split, Sequence[Example]],
    tokenizer: Tokenizer,
    *,
    context: int,
    verifier_version: int,
    weights: Mapping[str, float] | None = None,
    advance: Callable[[int], object] = lambda n: None,
) -> ChatIndex:
    """Writes a folder of chat data; the same arguments give the same bytes.

    Args:
        examples: of each split, in their order; a split that is missing has none.
        context: input tokens that an example may have at most.
        weights: by task, how often an epoch reads its examples (default 1).
        advance: called with the number of examples just encoded.

    Raises:
        DataError: if a weight names no task of the training split, or an example is longer than the context.
        ConfigError: if an example cannot be encoded.
    """
    weights = dict(weights or {})
    if unknown := sorted(set(weights) - {e.task for e in examples.get("train", ())}):
        raise DataError(f"chat.weights names {', '.join(unknown)}, of which the training split has no example")
    splits = {}
    with atomic_dir(out) as tmp:
        for split in SPLITS:
            (tmp / split).mkdir()
            found = examples.get(split, ())
            sha256 = write_examples(tmp, split, found)
            totals: dict[str, TaskTotal] = {}
            shards = [
                _write_shard(tmp / split / f"shard-{i:05d}.arrow", rows)
                for i, rows in enumerate(_divided(_encoded(found, tokenizer, context, totals, advance)))
            ]
            splits[split] = ChatSplit(
                examples=len(found), examples_sha256=sha256, shards=shards, tasks=dict(sorted(totals.items()))
            )
        index = ChatIndex(
            dtype="uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
            vocab_size=tokenizer.vocab_size,
            tokenizer_sha256=tokenizer.sha256,
            template_sha256=TEMPLATE_SHA256,
            verifier_version=verifier_version,
            context=context,
            weights={task: float(w) for task, w in sorted(weights.items())},
            splits=splits,
        )
        index.write(tmp)
    return index


def _encoded(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    context: int,
    totals: dict[str, TaskTotal],
    advance: Callable[[int], object],
) -> Iterator[EncodedExample]:
    """The examples with an answer to learn; `totals` counts them."""
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    for number, example in enumerate(examples):
        advance(1)
        encoded = encode_supervised(tokenizer, example.messages)
        n = places(encoded)
        if n > context:
            raise DataError(
                f"example {number} of {example.split} (task {example.task}) has {n} input tokens, more than the "
                f"context of {context}"
            )
        if not n:
            continue
        n_bytes = sum(len(turn.content.encode()) for turn in example.messages if turn.train)
        before = totals.get(example.task, TaskTotal(examples=0, tokens=0, learnt=0, bytes=0))
        totals[example.task] = TaskTotal(
            examples=before.examples + 1,
            tokens=before.tokens + len(encoded.ids),
            learnt=before.learnt + sum(encoded.mask),
            bytes=before.bytes + n_bytes,
        )
        yield EncodedExample(np.array(encoded.ids, dtype), np.array(encoded.mask), example.task, number, n_bytes)


def _divided(rows: Iterator[EncodedExample]) -> Iterator[list[EncodedExample]]:
    """The examples of each shard."""
    current, tokens = [], 0
    for row in rows:
        current.append(row)
        tokens += len(row.tokens)
        if tokens >= TOKENS_PER_SHARD:
            yield current
            current, tokens = [], 0
    if current:
        yield current


def _write_shard(path: Path, rows: list[EncodedExample]) -> ChatShard:
    offsets = pa.array(np.cumsum([0, *(len(r.tokens) for r in rows)]).astype(np.int32))
    tokens, learnt = np.concatenate([r.tokens for r in rows]), np.concatenate([r.learnt for r in rows])
    table = pa.record_batch(
        {
            "tokens": pa.ListArray.from_arrays(offsets, pa.array(tokens)),
            "learnt": pa.ListArray.from_arrays(offsets, pa.array(learnt)),
            "task": pa.array([r.task for r in rows], pa.string()),
            "example": pa.array([r.example for r in rows], pa.int32()),
            "n_bytes": pa.array([r.n_bytes for r in rows], pa.int64()),
        }
    )
    with atomic_write(path) as f, pa.ipc.new_file(f, table.schema) as writer:
        writer.write_batch(table)
    return ChatShard(
        file=path.name, sha256=sha256_file(path), examples=len(rows), tokens=len(tokens), learnt=int(learnt.sum())
    )


class ChatShards:
    """The shards of one split, opened and verified.

    Args:
        folder: `data/chat`.
        split: `train`, `val` or `test`.
        tokenizer_sha256: hash of the tokenizer that will read the tokens; checked when it is given.

    Attributes:
        folder, split: where it was opened.
        index: of all splits.
        tokens: a flat read-only array of each shard's tokens (memory-mapped).
        learnt: bool, the mask of each shard's tokens.
        offsets: where each example of each shard begins in `tokens`, and the end: int32.
        tasks: the task of each example of each shard.
        examples: its row in `examples.parquet`, of each example of each shard: int32.

    Raises:
        DataError: if the index or a shard is missing, changed, or of another tokenizer or chat template; if an example
            has nothing to learn, or its begin symbol is to be learnt.
    """

    def __init__(self, folder: str | Path, split: Split, *, tokenizer_sha256: str | None = None) -> None:
        folder = Path(folder)
        self.index = read_index(folder)
        made_with = self.index.tokenizer_sha256
        if tokenizer_sha256 not in (None, made_with):
            raise DataError(
                f"{folder} was made with the tokenizer {made_with[:12]}…, not with {tokenizer_sha256[:12]}…: {AGAIN}"
            )
        self.folder, self.split = folder, split
        batches = [_open(folder / split / entry.file, entry) for entry in self.index.splits[split].shards]
        self.tokens: list[np.ndarray] = [np.from_dlpack(b.column("tokens").values) for b in batches]
        self.offsets: list[np.ndarray] = [np.from_dlpack(b.column("tokens").offsets) for b in batches]
        self.learnt = [_bits(b.column("learnt").values) for b in batches]
        self.tasks: list[list[str]] = [b.column("task").to_pylist() for b in batches]
        self.examples: list[np.ndarray] = [np.from_dlpack(b.column("example")) for b in batches]
        self._bytes = [b.column("n_bytes").to_pylist() for b in batches]
        for entry, learnt, offsets in zip(self.index.splits[split].shards, self.learnt, self.offsets, strict=True):
            counts = np.add.reduceat(learnt, offsets[:-1], dtype=np.int64)
            if learnt.shape != (entry.tokens,) or not counts.all() or learnt[offsets[:-1]].any():
                raise DataError(
                    f"{folder / split / entry.file} has an example without a token to learn, or with a begin symbol "
                    f"to learn, of which training would be nonsense: {AGAIN}"
                )

    def __len__(self) -> int:
        return sum(len(t) for t in self.tasks)

    def __iter__(self) -> Iterator[EncodedExample]:
        """The examples in their order."""
        for shard in range(len(self.tokens)):
            for row in range(len(self.tasks[shard])):
                yield self.at(shard, row)

    def weight(self, task: str) -> float:
        """How often an epoch reads the examples of a task."""
        return self.index.weights.get(task, 1.0) if self.split == "train" else 1.0

    def at(self, shard: int, row: int) -> EncodedExample:
        """An example of a shard."""
        part = slice(int(self.offsets[shard][row]), int(self.offsets[shard][row + 1]))
        return EncodedExample(
            self.tokens[shard][part],
            self.learnt[shard][part],
            self.tasks[shard][row],
            int(self.examples[shard][row]),
            self._bytes[shard][row],
        )

    def places(self, shard: int) -> np.ndarray:
        """The input tokens of each example of a shard that training reads: those before its last learnt token."""
        last = np.maximum.accumulate(np.where(self.learnt[shard], np.arange(len(self.learnt[shard])), 0))
        return last[self.offsets[shard][1:] - 1] - self.offsets[shard][:-1]


def _bits(values: pa.BooleanArray) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(values.buffers()[1], np.uint8), bitorder="little")
    return bits[values.offset : values.offset + len(values)].view(bool)


def _open(path: Path, entry: ChatShard) -> pa.RecordBatch:
    if not path.is_file():
        raise DataError(f"{path} is missing: run `dvc checkout` or {AGAIN.removeprefix('run ')}")
    seen = sha256_file(path)
    if seen != entry.sha256:
        raise DataError(
            f"{path} was changed after it was written (sha256 {seen[:12]}…, the index says {entry.sha256[:12]}…): "
            f"{AGAIN}"
        )
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
