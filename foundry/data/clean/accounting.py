"""Where every record went: in = kept + dropped by reason + quarantined, for each file and in total.

Also what the reports show of the documents that stay: languages, lengths, domains, duplicate clusters.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from foundry.config import DataError
from foundry.data.clean.dedup import BANDS, ROWS
from foundry.data.clean.outcome import Outcome, Result
from foundry.data.clean.prepare import SAMPLES, Counts, Job, Samples, read_rows
from foundry.data.clean.rules import REASONS
from foundry.data.read.records import EXCERPT
from foundry.data.splits import SPLITS
from foundry.utils.files import atomic_write

CLUSTERS, DOMAINS = 20, 50
LEAKAGE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # similarities that the report counts at


def nothing() -> Result:
    return {**Counts().as_json(), "samples": {}}


def add_up(total: Result, more: Result) -> None:
    """Adds the counts of a unit's second pass to those of its first."""
    for key in ("dropped", "repaired"):
        total[key] = dict(Counter(total[key]) + Counter(more[key]))
    for reason, lines in more["samples"].items():
        total["samples"].setdefault(reason, []).extend(lines)


def record_bases(job: Job, results: list[Result]) -> list[int]:
    """The number of each unit's first record in its file (an archive's members are numbered through)."""
    seen = Counter[tuple]()
    bases = []
    for unit, done in zip(job.units, results, strict=True):
        place = (unit.source, unit.file)
        bases.append(seen[place])
        seen[place] += done["documents"] + done["bad"]
    return bases


def by_file(job: Job) -> dict[tuple[int, int], list[int]]:
    """(source, file) → numbers of its units."""
    out: dict[tuple[int, int], list[int]] = {
        (s, f): [] for s, source in enumerate(job.sources) for f in range(len(source.files))
    }
    for n, unit in enumerate(job.units):
        out[unit.source, unit.file].append(n)
    return out


def encoding_doubts(job: Job, results: list[Result]) -> list[str]:
    """What is wrong and what to do, for each source with files most of whose records are not in the encoding that they
    are read in."""
    found: dict[tuple[int, str], list[str]] = {}
    for (s, f), numbers in by_file(job).items():
        records = sum(results[n]["documents"] + results[n]["bad"] for n in numbers)
        guess = next((g for n in numbers if (g := results[n]["encoding"])), "")
        wrong = sum(results[n]["repaired"].get("invalid_utf8", 0) for n in numbers)
        if guess:  # with zero bytes it is text; without a guess a binary record is just that
            wrong += sum(results[n]["bad_reasons"].get("binary", 0) for n in numbers)
        if 2 * wrong > records:
            found.setdefault((s, guess), []).append(job.sources[s].files[f].path)
    doubts = []
    for (s, guess), files in found.items():
        source = job.sources[s]
        more = f" and {len(files) - 1} more file{'s'[: len(files) > 2]}" if len(files) > 1 else ""
        if guess and not source.encoding:
            remedy = f"it looks like {guess}: set `encoding: {guess}` for the source {source.name}"
        else:
            remedy = f"set `encoding:` of the source {source.name} to the one that it is in, or convert the file"
        doubts.append(f"{files[0]}{more}: most of the text is not valid {source.encoding or 'UTF-8'}; {remedy}")
    return doubts


def check_files(job: Job, results: list[Result]) -> None:
    """Refuses files with too many unreadable records, and sources without documents; all of them told together."""
    problems: list[str] = []
    for (s, f), numbers in by_file(job).items():
        bad, documents = (sum(results[n][k] for n in numbers) for k in ("bad", "documents"))
        share = bad / (bad + documents) if bad else 0.0
        if share > job.params.max_bad_fraction:
            told = "; ".join(
                f"record {b['record']}: {b['reason']} {b['excerpt'][:60]!r}" for b in _first_bad(job, numbers)
            )
            problems.append(
                f"{job.sources[s].files[f].path}: {bad} of {bad + documents} records cannot be read ({share:.1%}; "
                f"clean.max_bad_fraction allows {job.params.max_bad_fraction:.1%}). {told}. Mend the file, its format or "
                "its text template"
            )
    for s, source in enumerate(job.sources):
        mine = [done for unit, done in zip(job.units, results, strict=True) if unit.source == s]
        if not sum(done["documents"] for done in mine) and not problems:
            problems.append(
                f"{source.name} holds no document (files: {len(source.files)}, bytes: "
                f"{source.bytes}, unreadable records: {sum(d['bad'] for d in mine)}). Check "
                f"what {source.url} points to, its format ({source.format}) and its text template"
            )
    if problems:
        problems = [*encoding_doubts(job, results), *problems]
        raise DataError(
            "\n  - ".join(problems) if len(problems) == 1 else "\n  - ".join(["the corpus is not readable:", *problems])
        )


def _first_bad(job: Job, numbers: list[int]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for n in numbers:
        path = job.path(n, "bad.jsonl")
        if path.exists():
            with open(path, encoding="utf-8") as f:
                out += [json.loads(line) for _, line in zip(range(3 - len(out)), f, strict=False)]
    return out


def write_quarantine(job: Job, bases: list[int], path: Path) -> None:
    """Every unreadable record: source, file, record, byte offset, reason, excerpt; one a line."""
    with atomic_write(path, "w") as out:
        for n, base in enumerate(bases):
            bad = job.path(n, "bad.jsonl")
            if bad.exists():
                with open(bad, encoding="utf-8") as f:
                    for line in f:
                        item = json.loads(line)
                        item["record"] += base
                        out.write(json.dumps({"source": job.sources[job.units[n].source].name, **item}) + "\n")


def rows_in(job: Job, number: int) -> int:
    return sum(len(batch) for batch in read_rows(job, number))


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
            run.results[number]["dropped"][reason] = int(count)
        for i in documents[:SAMPLES].tolist():
            file, record, text = texts[i]
            near = reason == "near_duplicate"
            example = {
                "file": file,
                "record": record,
                "reason": reason,
                "rule": "jaccard",
                "value": round(float(run.near[i]), 4) if near else 1.0,
                "threshold": run.job.params.near_dup_threshold if near else 1.0,
                "duplicate_of": f"{int(run.ids[run.first[i]]):016x}",
                "excerpt": text[:EXCERPT],
            }
            samples = run.results[int(run.units_of(np.array([i]))[0])]["samples"]
            samples.setdefault(f"dropped {reason}", []).append(json.dumps(example, ensure_ascii=False))
    run.clusters = [{"copies": int(copies[k]), "excerpt": texts[int(keepers[k])][2][:EXCERPT]} for k in largest]


def leakage(run: Outcome) -> dict[str, Any]:
    """How similar documents of the held-out splits are to the most similar training document that was found.

    Returns:
        {held_out: documents of val and test, similar_in_training: {similarity: how many of them have a training document at least
        that similar}, recall: {similarity: share of the pairs that similar which are found}, groups: groups of similar documents,
        grouped: documents in them, largest: documents in the largest}; similar_in_training and recall are None where no
        documents were compared.
    """
    held_out = np.array([s in ("val", "test") for s in run.splits], bool)
    train = np.array([s == "train" for s in run.splits], bool)
    sizes = run.group_sizes[run.group_sizes > 1]
    best = np.zeros(len(held_out))
    for a, b in (run.pairs.T, run.pairs.T[::-1]):
        across = held_out[a] & train[b]
        np.maximum.at(best, a[across], run.similarity[across])
    compared = run.job.compares
    return {
        "held_out": int(held_out.sum()),
        "similar_in_training": {str(s): int((best >= s).sum()) for s in LEAKAGE} if compared else None,
        "recall": {str(s): round(1 - (1 - s**ROWS) ** BANDS, 4) for s in LEAKAGE} if compared else None,
        "groups": len(sizes),
        "grouped": int(sizes.sum()),
        "largest": int(sizes.max(initial=1)),
    }


def _texts(run: Outcome, wanted: set[int]) -> dict[int, tuple[str, int, str]]:
    """{document: (file, record in the unit, text)}"""
    out = {}
    i = 0
    for n in run.prepared:
        for batch in read_rows(run.job, n, ["file", "record", "text"]):
            for k in (k for k in range(len(batch)) if i + k in wanted):
                file, record, text = (batch.column(c)[k].as_py() for c in range(3))
                out[i + k] = (file, record, text.decode())
            i += len(batch)
    return out


def check_amounts(run: Outcome, splits: Counter[str]) -> None:
    """Refuses a corpus that was mostly dropped, or that leaves a split empty."""
    params = run.job.params
    total = sum(done["documents"] for done in run.results)
    dropped = sum((Counter(done["dropped"]) for done in run.results), Counter[str]())
    worst = max(REASONS, key=lambda r: dropped[r])  # of equal counts the first rule in order
    told = ", ".join(f"{r} {dropped[r]}" for r in REASONS if dropped[r]) or "nothing"
    most = f"Dropped: {told}. The rule {worst} dropped most; see {REASONS[worst]}" if dropped else "No rule dropped any"
    doubts = encoding_doubts(run.job, run.results)
    if doubts:  # what the rules measured is not the text: no hint to loosen them
        most = f"Dropped: {told}"
    first = "".join(f"{x}. " for x in doubts)
    kept = splits.total()
    if not kept:
        raise DataError(f"{first}every one of the {total} documents was dropped. {most}")
    if (share := dropped.total() / total) > params.max_rejected:
        raise DataError(
            f"{first}{dropped.total()} of {total} documents were dropped ({share:.1%}; clean.max_rejected allows "
            f"{params.max_rejected:.1%}). {most}"
        )
    if empty := [s for s in SPLITS if not splits[s]]:
        raise DataError(
            f"{first}no document for {' and '.join(empty)}: {kept} of {total} documents were kept, and a hash draws each one's split "
            f"(clean.val_fraction {params.val_fraction}, clean.test_fraction {params.test_fraction}). Add documents or raise "
            "the fractions; a text file is one document unless lines that read <|endoftext|> or match the source's `cut` "
            f"divide it. {most}"
        )


def merged_samples(run: Outcome) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """{(source, kind): examples}: the same sample for every division into units; records numbered in their files."""
    merged = Samples(SAMPLES)
    for unit, base, done in zip(run.job.units, run.bases, run.results, strict=True):
        for kind, lines in done["samples"].items():
            for line in lines:
                example = json.loads(line)
                example["record"] += base
                merged.add(f"{unit.source:05d} {kind}", example)
    out = {}
    for key, lines in merged.lines().items():
        number, kind = key.split(" ", 1)
        examples = sorted((json.loads(x) for x in lines), key=lambda e: (e["file"], e["record"]))
        out[run.job.sources[int(number)].name, kind] = examples
    return out
