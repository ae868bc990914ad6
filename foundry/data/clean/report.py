"""The reports of the clean stage: numbers (`clean.json`), examples (`rejected.jsonl`), a card and a page to look at.

All are functions of the corpus and the parameters: no times, no paths of this machine, the same bytes for every division of
the work.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from foundry.config import DataError
from foundry.data.clean.accounting import DOMAINS, by_file, leakage, merged_samples
from foundry.data.clean.card import write_card
from foundry.data.clean.outcome import Outcome, Result
from foundry.data.clean.page import write_page
from foundry.data.clean.rules import REASONS
from foundry.data.splits import SPLITS
from foundry.utils.files import atomic_write, sha256_json, write_json

BAD_EXAMPLES = 10


def write_reports(run: Outcome, folder: Path) -> dict[str, Any]:
    """Writes `clean.json`, `rejected.jsonl`, `data_card.md` and `data.html`; returns the content of the first.

    Raises:
        DataError: if the accounts do not balance (a defect of ours, told rather than hidden).
    """
    report = _numbers(run)
    samples = merged_samples(run)
    write_json(folder / "clean.json", report)
    with atomic_write(folder / "rejected.jsonl", "w") as f:
        for (source, kind), examples in samples.items():
            if kind.startswith("dropped "):
                for example in examples:
                    f.write(json.dumps({"source": source, **example}, ensure_ascii=False) + "\n")
    write_card(folder / "data_card.md", report)
    write_page(folder / "data.html", report, samples, _details(run))
    return report


def _sum(results: list[Result], key: str) -> Counter[str]:
    return sum((Counter(done[key]) for done in results), Counter[str]())


def _numbers(run: Outcome) -> dict[str, Any]:
    job, stats = run.job, run.statistics

    def amounts(numbers: list[int]) -> dict[str, Any]:
        results = [run.results[n] for n in numbers]
        dropped, repaired = _sum(results, "dropped"), _sum(results, "repaired")
        account = {
            "records": sum(done["documents"] + done["bad"] for done in results),
            "in": sum(done["documents"] for done in results),
            "kept": sum(stats.kept[n] for n in numbers),
            "dropped": {r: dropped[r] for r in REASONS},
            "quarantined": sum(done["bad"] for done in results),
        }
        if account["records"] != account["kept"] + dropped.total() + account["quarantined"]:
            raise DataError(f"the accounts do not balance, which is a defect of the clean stage: {account}")
        return {**account, "repaired": dict(sorted(repaired.items()))}

    units = range(len(job.units))
    sources = [(s, source, [n for n in units if job.units[n].source == s]) for s, source in enumerate(job.sources)]
    total = amounts(list(units))
    bad = _sum(run.results, "bad_reasons")
    return {
        "documents": {k: v for k, v in total.items() if k not in ("records", "quarantined")},
        "records": {
            "in": total["records"],
            "quarantined": total["quarantined"],
            "reasons": dict(sorted(bad.items())),
            "examples": _bad_examples(run),
        },
        "splits": {
            split: {
                "documents": sum(stats.documents[split, s.name] for s in job.sources),
                "bytes": sum(stats.bytes[split, s.name] for s in job.sources),
            }
            for split in SPLITS
        },
        "leakage": leakage(run),
        "languages": dict(sorted(stats.languages.items(), key=lambda x: (-x[1], x[0]))),
        "per_source": {
            source.name: {
                **amounts(numbers),
                "bytes": sum(stats.bytes[split, source.name] for split in SPLITS),
            }
            for _, source, numbers in sources
        },
        "sources": [
            {
                **{k: getattr(source, k) for k in ("name", "url", "member", "license", "attribution", "lang")},
                "sha256": files[0][1] if len(files) == 1 else sha256_json(files),
                "files": len(files),
                "bytes": source.bytes,
            }
            for _, source, _ in sources
            for files in [[[f.path, f.sha256] for f in source.files]]
        ],
    }


def _bad_examples(run: Outcome) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for n, base in enumerate(run.bases):
        path = run.job.path(n, "bad.jsonl")
        if path.exists():
            with open(path, encoding="utf-8") as f:
                for _, line in zip(range(BAD_EXAMPLES - len(out)), f, strict=False):
                    item = json.loads(line)
                    out.append(
                        {
                            "source": run.job.sources[run.job.units[n].source].name,
                            **item,
                            "record": item["record"] + base,
                        }
                    )
    return out


def _details(run: Outcome) -> dict[str, Any]:
    """What the page shows beyond the numbers: the account of each file, lengths, languages, domains, clusters."""
    stats, job = run.statistics, run.job
    files = []
    for (s, f), numbers in by_file(job).items():
        results = [run.results[n] for n in numbers]
        files.append(
            {
                "file": job.sources[s].files[f].path,
                "records": sum(done["documents"] + done["bad"] for done in results),
                "kept": sum(stats.kept[n] for n in numbers),
                "dropped": sum(sum(done["dropped"].values()) for done in results),
                "quarantined": sum(done["bad"] for done in results),
            }
        )
    before = Counter({int(k): v for k, v in _sum(run.results, "in_chars").items()})
    return {
        "files": files,
        "lengths": [(2**b // 2, before[b], stats.chars[b]) for b in range(1, max([*before, *stats.chars, 1]) + 1)],
        "languages": [
            (k, n, stats.language_bytes[k]) for k, n in sorted(stats.languages.items(), key=lambda x: (-x[1], x[0]))
        ],
        "domains": sorted(stats.domains.items(), key=lambda x: (-x[1], x[0]))[:DOMAINS],
        "clusters": run.clusters,
        "by_split": [
            (s.name, [(stats.documents[split, s.name], stats.bytes[split, s.name]) for split in SPLITS])
            for s in job.sources
        ],
    }
