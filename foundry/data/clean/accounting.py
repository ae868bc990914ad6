"""Where every record went: incoming = kept + dropped by reason + quarantined, for each file and in total.

The same module counts duplicates, draws the examples of the reports, and refuses corpora that are not fit for training.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from foundry.config import DataError
from foundry.data.clean.dedup import BANDS, ROWS
from foundry.data.clean.outcome import Cluster, Outcome
from foundry.data.clean.rules import REASONS
from foundry.data.clean.unit import SAMPLES, Dropped, Example, Job, Repaired, Samples, UnitResult, read_texts, total
from foundry.data.read.records import EXCERPT
from foundry.data.splits import SPLITS
from foundry.utils.cleaning_report import Leakage, UnreadableRecord
from foundry.utils.files import atomic_write

CLUSTERS = 20  # that the page shows
LEAKAGE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # similarities that the report counts at


def record_bases(job: Job, results: list[UnitResult]) -> list[int]:
    """The number of each unit's first record in its file (the records of an archive are numbered through)."""
    seen = Counter[tuple[int, int]]()
    bases = []
    for unit, result in zip(job.units, results, strict=True):
        file = (unit.source, unit.file)
        bases.append(seen[file])
        seen[file] += result.records
    return bases


# Checks of the raw files.


def encoding_doubts(job: Job, results: list[UnitResult]) -> list[str]:
    """What is wrong and what to do, for each source with files most of whose records are not in the source's
    encoding."""
    found: dict[tuple[str, str], list[str]] = {}
    for file in job.files():
        of_file = [results[n] for n in file.numbers]
        guess = next((r.encoding for r in of_file if r.encoding), "")
        wrong = sum(r.repaired["invalid_utf8"] for r in of_file)
        if guess:  # text with zero bytes; without a guess, a binary record is not text at all
            wrong += sum(r.bad_reasons["binary"] for r in of_file)
        if 2 * wrong > sum(r.records for r in of_file):
            found.setdefault((file.source.name, guess), []).append(file.file.path)
    doubts = []
    named = {source.name: source.encoding for source in job.sources}
    for (source, guess), files in found.items():
        more = f" and {len(files) - 1} more file{'s'[: len(files) > 2]}" if len(files) > 1 else ""
        if guess and not named[source]:
            remedy = f"it looks like {guess}: set `encoding: {guess}` for the source {source}"
        else:
            remedy = f"set `encoding:` of the source {source} to the one that it is in, or convert the file"
        doubts.append(f"{files[0]}{more}: most of the text is not valid {named[source] or 'UTF-8'}; {remedy}")
    return doubts


def check_files(job: Job, results: list[UnitResult]) -> None:
    """Refuses files with too many unreadable records, and sources without documents; all of them in one error."""
    problems: list[str] = []
    most = job.params.max_bad_fraction
    for file in job.files():
        bad = sum(results[n].bad for n in file.numbers)
        records = sum(results[n].records for n in file.numbers)
        if bad and bad / records > most:
            examples = islice((record for n in file.numbers for record in _bad_records(job, n)), 3)
            first = "; ".join(f"record {r.record}: {r.reason} {r.excerpt[:60]!r}" for r in examples)
            problems.append(
                f"{file.file.path}: {bad} of {records} records cannot be read ({bad / records:.1%}; "
                f"clean.max_bad_fraction allows {most:.1%}). {first}. Repair the file, its format or its text template"
            )
    for s, source in enumerate(job.sources):
        of_source = [result for unit, result in zip(job.units, results, strict=True) if unit.source == s]
        if not sum(r.documents for r in of_source) and not problems:
            problems.append(
                f"{source.name} contains no document (files: {len(source.files)}, bytes: {source.bytes}, unreadable "
                f"records: {sum(r.bad for r in of_source)}). Check what {source.url} points to, its format "
                f"({source.format}) and its text template"
            )
        for name in source.fields:
            if not any(r.fields[name] for r in of_source) and not problems:
                problems.append(f"no record of {source.name} has the field {name!r}, which its `fields:` names")
    if problems:
        problems = [*encoding_doubts(job, results), *problems]
        raise DataError("\n  - ".join(problems if len(problems) == 1 else ["the corpus is not readable:", *problems]))


# Unreadable records.


def _bad_records(job: Job, number: int, base: int = 0) -> Iterator[UnreadableRecord]:
    """The unreadable records of a unit whose first record has the number `base` in its file."""
    path = job.path(number, "bad.jsonl")
    if not path.exists():
        return
    with open(path, encoding="utf-8") as f:
        for line in f:
            values = json.loads(line)
            yield UnreadableRecord(source=job.source_of(number).name, **{**values, "record": values["record"] + base})


def bad_examples(run: Outcome, most: int) -> list[UnreadableRecord]:
    """The first unreadable records of the corpus."""
    every = (record for n, base in enumerate(run.bases) for record in _bad_records(run.job, n, base))
    return list(islice(every, most))


def write_quarantine(job: Job, bases: list[int], path: Path) -> None:
    """Writes every unreadable record, one per line: source, file, record, byte offset, reason, excerpt."""
    with atomic_write(path, "w") as out:
        for n, base in enumerate(bases):
            for record in _bad_records(job, n, base):
                out.write(json.dumps(record.model_dump()) + "\n")


# Duplicates.


class _Found(NamedTuple):
    file: str
    record: int  # in its unit
    text: str


def count_duplicates(run: Outcome) -> None:
    """Counts the dropped duplicates under their units, and keeps the same few examples of each reason in every run."""
    gone = np.flatnonzero(run.dropped)
    gone = gone[np.argsort(run.ids[gone], kind="stable")]
    kinds = {"exact_duplicate": gone[run.near[gone] == 0], "near_duplicate": gone[run.near[gone] > 0]}
    keepers, copies = np.unique(run.first[gone], return_counts=True)
    largest = np.lexsort((keepers, -copies))[:CLUSTERS]
    texts = _texts(run, {int(i) for k in kinds.values() for i in k[:SAMPLES]} | set(keepers[largest].tolist()))
    for reason, documents in kinds.items():
        for number, count in zip(*np.unique(run.units_of(documents), return_counts=True), strict=True):
            run.results[number].dropped[reason] = int(count)
        for i in documents[:SAMPLES].tolist():
            near = reason == "near_duplicate"
            example = Dropped(
                texts[i].file,
                texts[i].record,
                reason,
                rule="jaccard",
                value=round(float(run.near[i]), 4) if near else 1.0,
                threshold=run.job.params.near_dup_threshold if near else 1.0,
                duplicate_of=f"{int(run.ids[run.first[i]]):016x}",
                excerpt=texts[i].text[:EXCERPT],
            )
            unit = int(run.units_of(np.array([i]))[0])
            run.results[unit].dropped_examples.setdefault(reason, []).append(example)
    run.clusters = [Cluster(int(copies[k]), texts[int(keepers[k])].text[:EXCERPT]) for k in largest]


def _texts(run: Outcome, wanted: set[int]) -> dict[int, _Found]:
    """The documents of these numbers."""
    out = {}
    i = 0
    for n in run.prepared:
        for batch in read_texts(run.job, n, ["file", "record", "text"]):
            for k in (k for k in range(len(batch)) if i + k in wanted):
                file, record, text = (batch.column(c)[k].as_py() for c in range(3))
                out[i + k] = _Found(file, record, text.decode())
            i += len(batch)
    return out


def leakage(run: Outcome) -> Leakage:
    """How similar the held-out documents are to training documents, as far as such pairs were found."""
    held_out = np.array([s in ("val", "test") for s in run.splits], bool)
    train = np.array([s == "train" for s in run.splits], bool)
    sizes = run.group_sizes[run.group_sizes > 1]
    best = np.zeros(len(held_out))
    for a, b in (run.pairs.T, run.pairs.T[::-1]):
        across = held_out[a] & train[b]
        np.maximum.at(best, a[across], run.similarity[across])
    compared = run.job.compares
    return Leakage(
        held_out=int(held_out.sum()),
        similar_in_training={str(s): int((best >= s).sum()) for s in LEAKAGE} if compared else None,
        recall={str(s): round(1 - (1 - s**ROWS) ** BANDS, 4) for s in LEAKAGE} if compared else None,
        groups=len(sizes),
        grouped=int(sizes.sum()),
        largest=int(sizes.max(initial=1)),
    )


# Amounts and examples.


def check_amounts(run: Outcome, splits: Counter[str]) -> None:
    """Refuses a corpus most of which was dropped, or that leaves a split empty.

    Args:
        splits: the documents of each split.
    """
    params = run.job.params
    documents = sum(result.documents for result in run.results)
    dropped = total(result.dropped for result in run.results)
    worst = max(REASONS, key=lambda r: dropped[r])  # of equal counts the first rule in order
    by_reason = ", ".join(f"{r} {dropped[r]}" for r in REASONS if dropped[r]) or "nothing"
    doubts = encoding_doubts(run.job, run.results)
    if doubts:  # what the rules measured is not the text: no hint to loosen them
        advice = f"Dropped: {by_reason}"
    elif dropped:
        advice = f"Dropped: {by_reason}. The rule {worst} dropped most; see {REASONS[worst]}"
    else:
        advice = "No rule dropped any"
    first = "".join(f"{x}. " for x in doubts)
    kept = splits.total()
    if not kept:
        raise DataError(f"{first}every one of the {documents} documents was dropped. {advice}")
    if (share := dropped.total() / documents) > params.max_rejected:
        raise DataError(
            f"{first}{dropped.total()} of {documents} documents were dropped ({share:.1%}; clean.max_rejected allows "
            f"{params.max_rejected:.1%}). {advice}"
        )
    if empty := [s for s in SPLITS if not splits[s]]:
        raise DataError(
            f"{first}no document for {' and '.join(empty)}: {kept} of {documents} documents were kept, and a hash "
            f"draws the split of each (clean.val_fraction {params.val_fraction}, clean.test_fraction "
            f"{params.test_fraction}). Add documents or raise the fractions; a text file is one document unless lines "
            f"that read <|endoftext|> or match the source's `cut` divide it. {advice}"
        )


@dataclass(frozen=True)
class Examples:
    """Examples for the reports: by (source, reason) and by (source, kind of repair)."""

    dropped: dict[tuple[str, str], list[Dropped]]
    repaired: dict[tuple[str, str], list[Repaired]]


def draw_examples(run: Outcome) -> Examples:
    """The same sample for every division into units, in the order of the files; records are numbered in their files."""
    return Examples(
        _merged(run, [result.dropped_examples for result in run.results]),
        _merged(run, [result.repaired_examples for result in run.results]),
    )


def _merged(run: Outcome, of_units: list[dict[str, list[Example]]]) -> dict[tuple[str, str], list[Example]]:
    merged: Samples[tuple[int, str], Example] = Samples(SAMPLES)
    for unit, base, by_kind in zip(run.job.units, run.bases, of_units, strict=True):
        for kind, found in by_kind.items():
            for example in found:
                merged.add((unit.source, kind), replace(example, record=example.record + base))
    return {
        (run.job.sources[source].name, kind): sorted(found, key=lambda e: (e.file, e.record))
        for (source, kind), found in merged.lists().items()
    }
