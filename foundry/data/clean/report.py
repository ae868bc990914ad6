"""The reports of the clean stage: numbers (`clean.json`), examples (`rejected.jsonl`), a data card and an HTML page.

All are functions of the corpus and the parameters: no times, no paths of this machine, the same bytes for every
division of the work.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from foundry.config import DataError
from foundry.data.clean.accounting import bad_examples, draw_examples, leakage
from foundry.data.clean.card import write_card
from foundry.data.clean.outcome import Outcome
from foundry.data.clean.page import FileAccount, LanguageSize, Lengths, PageData, write_page
from foundry.data.clean.rules import REASONS
from foundry.data.clean.unit import total
from foundry.data.splits import SPLITS
from foundry.utils.cleaning_report import (
    CleanedSource,
    CleaningReport,
    DocumentAccount,
    RecordAccount,
    SourceAccount,
    SplitSize,
)
from foundry.utils.files import atomic_write, sha256_json
from foundry.utils.raw_manifest import RawSource

BAD_EXAMPLES, DOMAINS = 10, 50


def write_reports(run: Outcome, folder: Path) -> CleaningReport:
    """Writes `clean.json`, `rejected.jsonl`, `data_card.md` and `data.html`; returns the first.

    Raises:
        DataError: if the accounts do not balance, which is a defect of the stage: it is reported, not hidden.
    """
    report = _report(run)
    found = draw_examples(run)
    report.write(folder / "clean.json")
    with atomic_write(folder / "rejected.jsonl", "w") as f:
        for (source, _), documents in found.dropped.items():
            for example in documents:
                f.write(json.dumps({"source": source, **example.as_json()}, ensure_ascii=False) + "\n")
    write_card(folder / "data_card.md", report)
    write_page(folder / "data.html", report, found, _page_data(run))
    return report


@dataclass(frozen=True)
class _Account:
    """Where the records of some units went."""

    records: int
    documents: int
    kept: int
    dropped: Counter[str]
    quarantined: int
    repaired: dict[str, int]

    @property
    def by_reason(self) -> dict[str, int]:
        return {reason: self.dropped[reason] for reason in REASONS}


def _account(run: Outcome, numbers: Iterable[int]) -> _Account:
    numbers = list(numbers)
    results = [run.results[n] for n in numbers]
    account = _Account(
        records=sum(r.records for r in results),
        documents=sum(r.documents for r in results),
        kept=sum(run.statistics.kept[n] for n in numbers),
        dropped=total(r.dropped for r in results),
        quarantined=sum(r.bad for r in results),
        repaired=dict(sorted(total(r.repaired for r in results).items())),
    )
    if account.records != account.kept + account.dropped.total() + account.quarantined:
        raise DataError(f"the accounts do not balance, which is a defect of the clean stage: {account}")
    return account


def _report(run: Outcome) -> CleaningReport:
    job, stats = run.job, run.statistics
    whole = _account(run, range(len(job.units)))
    return CleaningReport(
        documents=DocumentAccount(
            incoming=whole.documents, kept=whole.kept, dropped=whole.by_reason, repaired=whole.repaired
        ),
        records=RecordAccount(
            incoming=whole.records,
            quarantined=whole.quarantined,
            reasons=dict(sorted(total(r.bad_reasons for r in run.results).items())),
            examples=bad_examples(run, BAD_EXAMPLES),
        ),
        splits={
            split: SplitSize(
                documents=sum(stats.documents[split, s.name] for s in job.sources),
                bytes=sum(stats.bytes[split, s.name] for s in job.sources),
            )
            for split in SPLITS
        },
        leakage=leakage(run),
        languages=dict(_most_frequent(stats.languages)),
        per_source={source.name: _source_account(run, s, source) for s, source in enumerate(job.sources)},
        sources=[_published(source) for source in job.sources],
    )


def _source_account(run: Outcome, number: int, source: RawSource) -> SourceAccount:
    numbers = [n for n, unit in enumerate(run.job.units) if unit.source == number]
    account = _account(run, numbers)
    return SourceAccount(
        records=account.records,
        incoming=account.documents,
        kept=account.kept,
        dropped=account.by_reason,
        quarantined=account.quarantined,
        repaired=account.repaired,
        bytes=sum(run.statistics.bytes[split, source.name] for split in SPLITS),
        fields={name: run.statistics.fields[source.name, name] for name in source.fields},
        repaired_fields=dict(sorted(total(run.results[n].repaired_fields for n in numbers).items())),
    )


def _published(source: RawSource) -> CleanedSource:
    files = [[f.path, f.sha256] for f in source.files]
    return CleanedSource(
        name=source.name,
        url=source.url,
        member=source.member,
        license=source.license,
        attribution=source.attribution,
        lang=source.lang,
        sha256=source.files[0].sha256 if len(files) == 1 else sha256_json(files),
        files=len(files),
        bytes=source.bytes,
    )


def _most_frequent(counts: Counter[str]) -> list[tuple[str, int]]:
    """Names with their counts, the largest count first; of equal counts in alphabetical order."""
    return sorted(counts.items(), key=lambda x: (-x[1], x[0]))


def _page_data(run: Outcome) -> PageData:
    stats, job = run.statistics, run.job
    accounts = [(file.file.path, _account(run, file.numbers)) for file in job.files()]
    before = total(r.in_chars for r in run.results)
    longest = max([*before, *stats.chars, 1])
    return PageData(
        files=[FileAccount(path, a.records, a.kept, a.dropped.total(), a.quarantined) for path, a in accounts],
        lengths=[Lengths(2**b // 2, before[b], stats.chars[b]) for b in range(1, longest + 1)],
        languages=[LanguageSize(lang, n, stats.language_bytes[lang]) for lang, n in _most_frequent(stats.languages)],
        domains=_most_frequent(stats.domains)[:DOMAINS],
        clusters=run.clusters,
        splits={
            s.name: [SplitSize(documents=stats.documents[k, s.name], bytes=stats.bytes[k, s.name]) for k in SPLITS]
            for s in job.sources
        },
    )
