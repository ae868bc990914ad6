"""Pairs of a better and a worse answer to one conversation: their file, their ids, and their batches.

A pair is divided by turns, never by characters: both sides begin with the same ids, and what is learnt are content and
end of the turns after the prompt, as `encode_supervised` marks them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from foundry.chat.example import Turn
from foundry.config import ConfigError, DataError
from foundry.data.tokens.loader import check_numbers
from foundry.data.tokens.order import permute
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import TEMPLATE_SHA256, encode_supervised
from foundry.utils.files import atomic_write, read_json, sha256_file, sha256_json, write_json
from foundry.utils.splitmix import key
from foundry.utils.targets import IGNORE

PairSplit = Literal["train", "val"]
SPLITS: tuple[PairSplit, ...] = ("train", "val")
AGAIN = "run `dvc repro chat/align/dvc.yaml:preferences`"


@dataclass(frozen=True)
class PreferencePair:
    """Two continuations of a conversation, of which the first is the better one.

    Attributes:
        source: `sampled` from the fine-tuned model, `feedback` of a server's users, or the file of a user.
        scores: what the verifier gave to the chosen and the rejected side; None if no program chose.
    """

    prompt: tuple[Turn, ...]
    chosen: tuple[Turn, ...]
    rejected: tuple[Turn, ...]
    task: str
    source: str
    split: PairSplit
    scores: tuple[float, float] | None = None


_TURNS = pa.list_(pa.struct({"role": pa.string(), "content": pa.string(), "train": pa.bool_()}))
SCHEMA = pa.schema(
    {
        "prompt": _TURNS,
        "chosen": _TURNS,
        "rejected": _TURNS,
        "task": pa.string(),
        "source": pa.string(),
        "split": pa.string(),
        "scores": pa.list_(pa.float64()),
    }
)


def write_pairs(folder: str | Path, pairs: Iterable[PreferencePair], identity: Mapping[str, str]) -> None:
    """Writes `SPLIT.parquet` of each split and `index.json` with their hashes; the same pairs give the same bytes.

    Args:
        identity: of what the pairs were made from, by name.
    """
    folder, found = Path(folder), list(pairs)
    for split in SPLITS:
        rows = [asdict(p) for p in found if p.split == split]
        with atomic_write(folder / f"{split}.parquet") as f:
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), f)
    files = {split: sha256_file(folder / f"{split}.parquet") for split in SPLITS}
    write_json(folder / "index.json", {"made_from": dict(sorted(identity.items())), "files": files})


def read_pairs(folder: str | Path, split: PairSplit) -> list[PreferencePair]:
    """The pairs of a split.

    Raises:
        DataError: if a file is missing, damaged, or has other columns.
    """
    path = Path(folder) / f"{split}.parquet"
    index = read_json(Path(folder) / "index.json", f"the index of the preferences; {AGAIN}", DataError)
    if not path.is_file() or sha256_file(path) != index.get("files", {}).get(split):
        raise DataError(f"{path} is missing or is not what {folder}/index.json says: {AGAIN}")
    table = pq.read_table(path)
    if table.schema != SCHEMA:
        raise DataError(f"{path} has other columns than this version writes: {AGAIN}")
    sides = ("prompt", "chosen", "rejected")
    return [
        PreferencePair(
            **{
                **row,
                **{side: tuple(Turn(**turn) for turn in row[side]) for side in sides},
                "scores": tuple(row["scores"]) if row["scores"] else None,
            }
        )
        for row in table.to_pylist()
    ]


class Side(NamedTuple):
    """One side of a pair with its prompt.

    Attributes:
        tokens: its ids; the last one is the end symbol of its last turn.
        learnt: bool, for each id, whether it belongs to the answer.
    """

    tokens: np.ndarray
    learnt: np.ndarray

    @property
    def length(self) -> int:
        """Tokens of the answer, its end symbol included."""
        return int(self.learnt.sum())


class EncodedPair(NamedTuple):
    """A pair as ids; `prompt` is the hash of the prompt's turns: pairs of one prompt depend on each other."""

    chosen: Side
    rejected: Side
    task: str
    prompt: str

    @property
    def width(self) -> int:
        return max(len(self.chosen.tokens), len(self.rejected.tokens))

    @property
    def longer_wins(self) -> float:
        """Whether the longer side is the chosen one; one half if both are as long."""
        return 0.5 + 0.5 * float(np.sign(self.chosen.length - self.rejected.length))


def encode_side(tokenizer: Tokenizer, prompt: Sequence[Turn], side: Sequence[Turn]) -> Side:
    """The ids of a prompt and one continuation.

    Raises:
        DataError: if the continuation has no answer to learn, of which the log-probability would be 0 for any model.
    """
    quiet = [Turn(t.role, t.content, False) for t in prompt]
    ids, mask = encode_supervised(tokenizer, [*quiet, *side])
    if True not in mask:
        raise DataError("a side of a pair has no answer of the assistant: give both sides one")
    end = len(mask) - mask[::-1].index(True)
    return Side(np.array(ids[:end], np.int64), np.array(mask[:end]))


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[PreferencePair], context: int) -> tuple[list[EncodedPair], int]:
    """(the pairs of which both sides fit the context, how many do not)."""
    encoded = [
        EncodedPair(
            encode_side(tokenizer, p.prompt, p.chosen),
            encode_side(tokenizer, p.prompt, p.rejected),
            p.task,
            prompt_hash(p.prompt),
        )
        for p in pairs
    ]
    fit = [p for p in encoded if p.width <= context]
    return fit, len(encoded) - len(fit)


def prompt_hash(prompt: Sequence[Turn]) -> str:
    """The hash of a prompt's roles and contents."""
    return sha256_json([[t.role, t.content] for t in prompt])


def data_hash(pairs: Sequence[EncodedPair]) -> str:
    """The hash of the ids of pairs, in their order, and of what is learnt of them."""
    return sha256_json([[[s.tokens.tolist(), s.length] for s in (p.chosen, p.rejected)] for p in pairs])


def sides_of(pairs: Sequence[EncodedPair], width: int = 0) -> tuple[Tensor, Tensor]:
    """Pairs as rows: (tokens, targets), int64 (P, 2, T), the chosen side first.

    T is the longest side's, and at least `width`. The end symbol is the last token of a side and the target before it,
    so that a model can also be asked what it sees at the end.
    """
    width = max([width, *(p.width for p in pairs)])
    tokens = torch.zeros(len(pairs), 2, width, dtype=torch.int64)
    targets = torch.full(tokens.shape, IGNORE)
    for row, pair in enumerate(pairs):
        for i, side in enumerate((pair.chosen, pair.rejected)):
            n = len(side.tokens)
            tokens[row, i, :n] = torch.from_numpy(side.tokens)
            targets[row, i, : n - 1] = torch.from_numpy(np.where(side.learnt[1:], side.tokens[1:], IGNORE))
    return tokens, targets


class PairLoader:
    """Batches of (tokens, targets, reference): see `sides_of`; the log-probability of each side under the parent.

    The batch of a number is a function of (pairs, seed, number): an epoch reads the pairs in the order of its own
    bijection, and the rest that fills no batch is another one in each epoch. A batch is as wide as its longest side.

    Args:
        pairs: that fit the context.
        reference: float64 (pairs, 2), or None where the loss needs none.
        pairs_per_step: of the global batch.
        rank, world_size: which part of the global batch this process reads.

    Attributes:
        batch_size: sides of the global batch. The rows of a batch are pairs, so a micro-batch of n rows has 2 n sides.
        seq_len: the longest side.

    Raises:
        ConfigError: if a batch does not fit the processes or the data.
    """

    packing = "document"
    follows_weights = False
    widths_vary = True

    def __init__(
        self,
        tokenizer: Tokenizer,
        pairs: Sequence[EncodedPair],
        reference: np.ndarray | None,
        pairs_per_step: int,
        seed: int = 1,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if pairs_per_step > len(pairs):
            raise ConfigError(
                f"pairs_per_step is {pairs_per_step}, and there are {len(pairs)} training pairs that fit the context: "
                "lower it, raise preferences.prompts, or bring pairs (preferences.sources)"
            )
        if pairs_per_step % world_size:
            raise ConfigError(f"pairs_per_step ({pairs_per_step}) must be a multiple of the {world_size} processes")
        self.tokenizer, self.pairs, self.seed = tokenizer, list(pairs), seed
        self.reference = np.zeros((len(pairs), 2)) if reference is None else reference
        self.pairs_per_step, self.rank, self.world_size = pairs_per_step, rank, world_size
        self.batch_size, self.seq_len = 2 * pairs_per_step, max(p.width for p in pairs)
        check_numbers(self.batch_size, self.seq_len, seed)
        self._per_epoch = len(pairs) // pairs_per_step
        self.tokens_per_epoch = self._per_epoch * self.batch_size * self.seq_len
        self._hash = data_hash(self.pairs)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def identity(self) -> dict[str, str]:
        return {
            "index_sha256": self._hash,
            "tokenizer_sha256": self.tokenizer.sha256,
            "template_sha256": TEMPLATE_SHA256,
        }

    @property
    def bytes_per_token(self) -> float:
        """Of the chosen answers."""
        answers = [p.chosen.tokens[p.chosen.learnt].tolist() for p in self.pairs[:256]]
        return max(1, sum(len(self.tokenizer.decode(a).encode()) for a in answers)) / sum(map(len, answers))

    def numbers(self, batch: int) -> np.ndarray:
        """The pairs of a global batch."""
        epoch, place = divmod(batch, self._per_epoch)
        at = np.arange(place * self.pairs_per_step, (place + 1) * self.pairs_per_step)
        return permute(at, len(self.pairs), key(self.seed, epoch))

    def tensors(self, number: int, documents: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, targets, reference) of this rank's pairs: int64 (P, 2, T) twice, float64 (P, 2)."""
        every = self.numbers(number)
        width = max(self.pairs[n].width for n in every)
        share = self.pairs_per_step // self.world_size
        mine = every[self.rank * share : (self.rank + 1) * share]
        tokens, targets = sides_of([self.pairs[n] for n in mine], width)
        return tokens, targets, torch.from_numpy(self.reference[mine])

    def describe(self, number: int) -> str:
        return f"it read the pairs {', '.join(map(str, self.numbers(number)[:16]))}"
