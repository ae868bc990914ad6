"""A unit of cleaning, the records of one piece of a raw file: its files in the work folder, and what it counted.

`prepare` writes these files, the marker last, so that a run that is killed keeps its finished units:

- `NNNNN.arrow`: the documents that passed the rules (`TEXTS`, uncompressed Arrow IPC, memory-mapped later);
- `NNNNN.bad.jsonl`: every unreadable record with its place;
- `NNNNN.lines.npy`, `NNNNN.paragraphs.npy`: hashes, where repeated lines are counted;
- `NNNNN.json`: the marker, a `UnitResult`;
- `NNNNN.final.arrow` and `NNNNN.final.json`: the same two of the second pass, where repeated lines are removed.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa
from pydantic import TypeAdapter

from foundry.config import Clean
from foundry.data.clean.dedup import BANDS
from foundry.data.clean.repeats import limits
from foundry.data.read.streams import Limits
from foundry.data.read.units import Unit
from foundry.utils.files import read_json, write_json
from foundry.utils.raw_manifest import RawFile, RawSource

SAMPLES = 40  # examples of each reason that a unit keeps
TEXTS = pa.schema(
    [
        ("text", pa.large_binary()),
        ("record", pa.int64()),
        ("file", pa.string()),
        ("lang", pa.string()),
        ("domain", pa.string()),
        ("fields", pa.large_string()),
        ("id", pa.uint64()),
        ("exact", pa.uint64()),
        ("bands", pa.list_(pa.uint64(), BANDS)),
    ]
)


@dataclass(frozen=True)
class FileUnits:
    """The numbers of the units that a raw file is divided into."""

    source: RawSource
    file: RawFile
    numbers: list[int]


@dataclass(frozen=True)
class Job:
    """What every worker needs to know.

    Attributes:
        raw: the folder of the raw files.
        root: the folder to which parameters that name files are relative.
        folder: the work folder.
    """

    raw: Path
    root: Path
    folder: Path
    sources: tuple[RawSource, ...]
    units: list[Unit]
    params: Clean
    limits: Limits

    def path(self, number: int, kind: str) -> Path:
        """The file of a unit; see the module for the kinds."""
        return self.folder / f"{number:05d}.{kind}"

    def source_of(self, number: int) -> RawSource:
        return self.sources[self.units[number].source]

    def files(self) -> list[FileUnits]:
        """Every raw file, in the order of the manifest."""
        numbers: dict[tuple[int, int], list[int]] = {
            (s, f): [] for s, source in enumerate(self.sources) for f in range(len(source.files))
        }
        for n, unit in enumerate(self.units):
            numbers[unit.source, unit.file].append(n)
        return [FileUnits(self.sources[s], self.sources[s].files[f], of_file) for (s, f), of_file in numbers.items()]

    @property
    def compares(self) -> bool:
        """Whether similar documents are looked for."""
        return self.params.near_dedup != "ignore" or self.params.split_similarity < 1

    @property
    def counts_repeats(self) -> bool:
        """Whether lines or paragraphs of many documents are looked for: the only reason for a second pass."""
        return any(limits(self.params).values())

    @property
    def texts(self) -> str:
        """The kind of file that contains a unit's documents after its last pass."""
        return "final.arrow" if self.counts_repeats else "arrow"


def read_texts(
    job: Job, number: int, columns: list[str] | None = None, kind: str | None = None
) -> Iterator[pa.RecordBatch]:
    """The record batches of a unit's documents, memory-mapped: those of its last pass unless `kind` says otherwise."""
    with pa.memory_map(str(job.path(number, kind or job.texts))) as source:
        reader = pa.ipc.open_file(source)
        for i in range(reader.num_record_batches):
            batch = reader.get_batch(i)
            yield batch.select(columns) if columns else batch


@dataclass(frozen=True)
class Dropped:
    """An example of a document that was dropped, which is also a line of `reports/rejected.jsonl`.

    Attributes:
        record: its number, from 0, in the unit; in the reports, in the file.
        reason: a key of `REASONS`; `rule`: the rule of that group.
        value, threshold: what the rule measured, and what it allows.
        duplicate_of: id of the document that is kept, for duplicates.
    """

    file: str
    record: int
    reason: str
    rule: str
    value: int | float
    threshold: int | float
    duplicate_of: str | None
    excerpt: str

    def as_json(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k != "duplicate_of" or v}


@dataclass(frozen=True)
class Repaired:
    """An example of a repair: the text around the first change, before and after; `record` as in `Dropped`."""

    file: str
    record: int
    before: str
    after: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


Example = TypeVar("Example", Dropped, Repaired)
Key = TypeVar("Key")


class Samples(Generic[Key, Example]):
    """For each key the examples with the smallest hashes: a sample that depends neither on their order nor on the
    units.

    Args:
        size: of the sample of a key.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._heaps: dict[Key, list[tuple[int, str, Example]]] = {}

    def add(self, key: Key, example: Example) -> None:
        values = example.as_json()
        line = json.dumps(values, ensure_ascii=False)
        del values["record"]  # which depends on the unit
        rank = -int.from_bytes(hashlib.blake2b(json.dumps(values).encode(), digest_size=8).digest(), "little")
        heap = self._heaps.setdefault(key, [])
        if len(heap) < self._size:
            heapq.heappush(heap, (rank, line, example))
        elif (rank, line) > heap[0][:2]:
            heapq.heapreplace(heap, (rank, line, example))

    def lists(self) -> dict[Key, list[Example]]:
        """The examples, in the order of keys and hashes."""
        return {key: [e for _, _, e in sorted(heap, reverse=True)] for key, heap in sorted(self._heaps.items())}


@dataclass
class UnitResult:
    """What a unit counted, and its examples. The later passes add to it.

    Attributes:
        documents: records that are documents; `bad`: records that cannot be read.
        dropped: documents by reason. repaired: repairs by kind. bad_reasons: unreadable records by reason.
        fields: documents by the names of the kept fields that they have; repaired_fields: repairs of these, by kind.
        in_chars: documents by the bit length of their number of characters, as they were read.
        encoding: the likely encoding of the bytes that are not UTF-8; empty if there are none, or no guess.
        dropped_examples, repaired_examples: by reason and by kind.
    """

    documents: int = 0
    bad: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    bad_reasons: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)
    repaired_fields: Counter[str] = field(default_factory=Counter)
    in_chars: Counter[int] = field(default_factory=Counter)
    encoding: str = ""
    dropped_examples: dict[str, list[Dropped]] = field(default_factory=dict)
    repaired_examples: dict[str, list[Repaired]] = field(default_factory=dict)

    @property
    def records(self) -> int:
        return self.documents + self.bad

    @property
    def passed(self) -> int:
        """Documents that are not dropped so far."""
        return self.documents - self.dropped.total()

    def add(self, second: UnitResult) -> None:
        """Adds what the second pass over the unit's documents dropped and repaired."""
        self.dropped += second.dropped
        self.repaired += second.repaired
        for mine, more in (
            (self.dropped_examples, second.dropped_examples),
            (self.repaired_examples, second.repaired_examples),
        ):
            for reason, examples in more.items():
                mine.setdefault(reason, []).extend(examples)

    def write(self, marker: Path) -> None:
        write_json(marker, _results().dump_python(self, mode="json"))

    @staticmethod
    def read(marker: Path) -> UnitResult:
        return _results().validate_python(read_json(marker, "a finished unit"))


@cache
def _results() -> TypeAdapter[UnitResult]:
    return TypeAdapter(UnitResult)


def total(counts: Iterable[Counter[Any]]) -> Counter[Any]:
    """The sum of counters."""
    return sum(counts, Counter[Any]())
