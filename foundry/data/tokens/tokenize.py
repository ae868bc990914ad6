"""Clean documents as tokens, encoded by every core, in the order of the corpus.

The tokens of one row group of a part file are a pure function of the file and the tokenizer. Threads encode the row
groups of a small corpus, worker processes those of a large one: processes do not wait for each other, but two of them
needed 0.9 s for their start and for the words that each encodes for itself. The results come in order, and only a few
are under way, so memory is bounded by the size of the row groups, and the tokens are the same for every number of
workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foundry.config import DataError
from foundry.data.schema import check_documents
from foundry.data.tokens.shards import part_files
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.encode import EncodedTexts, Encoder
from foundry.utils.device import cpu_cores
from foundry.utils.executor import WorkerPool, map_in_threads

PROCESSES_FROM = 128 << 20  # bytes of text
AHEAD = 2  # row groups per worker that are under way: the tokens of each wait in memory until it is their turn
ROWS = 4096  # documents that are in memory as text at once
COLUMNS = ["text", "doc_id", "n_bytes", "source"]


@dataclass(frozen=True)
class EncodedGroup:
    """Documents of one row group.

    Attributes:
        tokens: begin symbol, text and end symbol of each document, one after another.
        offsets: where each document begins in `tokens`, and the end: int64 (documents + 1,).
        n_bytes: int64 (documents,).
    """

    tokens: np.ndarray
    offsets: np.ndarray
    doc_id: pa.Array
    n_bytes: np.ndarray
    source: list[str]

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class RowGroup:
    part: Path
    number: int


class TokenizerPool:
    """Encodes row groups in threads or worker processes.

    Args:
        tokenizer: its file is read by each worker process.
        workers: threads or processes; 0: one for each core.
    """

    def __init__(self, tokenizer: Tokenizer, workers: int = 0) -> None:
        self._encoder = Encoder(tokenizer)
        self._workers = workers or cpu_cores()
        self._pool = WorkerPool(self._workers, tokenizer.path, AHEAD, _encoder_of)

    def __enter__(self) -> TokenizerPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.__exit__(*exc)

    def groups(self, folder: str | Path) -> Iterator[EncodedGroup]:
        """The documents of one clean split, in the order of its files and rows.

        Raises:
            DataError: if there are no part files, or one cannot be read.
            FoundryError: if a worker process dies.
        """
        sizes = {RowGroup(part, n): size for part in part_files(folder) for n, size in enumerate(_row_groups(part))}
        if self._workers == 1 or (not self._pool.started and sum(sizes.values()) < PROCESSES_FROM):
            yield from map_in_threads(partial(encode_group, self._encoder), sizes, self._workers, AHEAD)
        else:
            yield from self._pool.map(encode_group, sizes)


def _encoder_of(path: Path) -> Encoder:
    """The encoder of a worker process."""
    pa.set_cpu_count(1)  # every core already has a process
    return Encoder(Tokenizer(path))


def encode_group(encoder: Encoder, group: RowGroup) -> EncodedGroup:
    """The documents of one row group as tokens.

    Raises:
        DataError: for a table that the clean stage would not have written, with its rows.
    """
    tokens, counts, doc_id, n_bytes, source = [], [], [], [], []
    with _open(group.part) as file:
        table = file.read_row_group(group.number)
        first_row = sum(file.metadata.row_group(n).num_rows for n in range(group.number))
        check_documents(table, str(group.part), first_row)
        for batch in table.select(COLUMNS).to_batches(ROWS):
            encoded = encoder.encode(batch.column("text"))
            tokens.append(_with_ends(encoded, encoder.tokenizer))
            counts.append(np.diff(encoded.starts) + 2)
            doc_id.append(batch.column("doc_id").cast(pa.string()))
            n_bytes.append(batch.column("n_bytes").to_numpy(zero_copy_only=False))
            source += batch.column("source").to_pylist()
    return EncodedGroup(
        np.concatenate(tokens) if tokens else np.empty(0, encoder.dtype),
        np.cumsum(np.concatenate([[0], *counts])).astype(np.int64),
        pa.concat_arrays(doc_id) if doc_id else pa.array([], pa.string()),
        np.concatenate(n_bytes).astype(np.int64) if n_bytes else np.empty(0, np.int64),
        source,
    )


def _with_ends(encoded: EncodedTexts, tokenizer: Tokenizer) -> np.ndarray:
    """The ids with a begin and an end symbol around each document."""
    ids, at = encoded
    out = np.empty(len(ids) + 2 * (len(at) - 1), ids.dtype)
    begins = at[:-1] + 2 * np.arange(len(at) - 1)
    ends = begins + np.diff(at) + 1
    text = np.ones(len(out), bool)
    text[begins] = text[ends] = False
    out[begins], out[ends] = tokenizer.bos_id, tokenizer.eos_id
    out[text] = ids
    return out


def _row_groups(part: Path) -> list[int]:
    """The uncompressed bytes of each row group."""
    with _open(part) as file:
        if missing := sorted(set(COLUMNS) - set(file.schema_arrow.names)):
            raise DataError(f"{part} lacks the columns {', '.join(missing)}: run `dvc repro -f clean`")
        return [file.metadata.row_group(g).total_byte_size for g in range(file.num_row_groups)]


def _open(part: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(part)
    except (pa.ArrowInvalid, OSError) as e:
        raise DataError(
            f"{part} is not a readable parquet file ({e}): run `dvc checkout` or `dvc repro -f clean`"
        ) from None
