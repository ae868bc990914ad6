"""The clean stage's work: raw files to checked, deduplicated documents in three splits.

Guarantees: documents in = kept + dropped, by reason; unreadable records are counted beside them; no two documents that
stay are duplicates that the deduplication can see, so none straddles the splits; a document's split depends on its text
alone; equal inputs and parameters give equal bytes. One process, streaming: memory holds hashes and numbers, texts wait
in a spool on disk.
"""

from __future__ import annotations

import json
import logging
from array import array
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from foundry.config import Clean, DataError
from foundry.data.card import write_card
from foundry.data.dedup import NearDuplicates, exact_key
from foundry.data.formats import EXCERPT, Bad, Document, read_file
from foundry.data.manifest import read_manifest, verified
from foundry.data.normalize import fix_mojibake, normalize, strip_html
from foundry.data.rules import REASONS, judge, units
from foundry.data.schema import SPLITS, PartWriter, doc_id, split_of
from foundry.data.spool import Spool
from foundry.data.template import Template
from foundry.utils.files import atomic_dir, atomic_write, sha256_json, state_dir, write_json
from foundry.utils.log import progress

BAD_EXAMPLES = 10
REPAIRS = ("invalid_utf8", "mojibake", "html")


@dataclass
class Counts:
    """What happened to the records of one source."""

    documents: int = 0
    bad: int = 0
    kept: int = 0
    bytes: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)  # of bad records


def clean(rules: Clean, raw: Path, out: Path, reports: Path, log: logging.Logger) -> dict[str, Any]:
    """Cleans `raw` into `out/{train,val,test}` and writes `clean.json`, `rejected.jsonl` and `data_card.md` into
    `reports`.

    Returns:
        the content of `clean.json`.

    Raises:
        DataError: if the corpus is empty, damaged, loses too much, or leaves a split empty; nothing is written then.
    """
    sources = read_manifest(raw)
    with Spool(state_dir() / "spool") as spool, atomic_write(reports / "rejected.jsonl", "w") as rejected:
        work = _Cleaning(sources, rules, spool, rejected)
        with progress(desc="clean", unit="doc") as bar:
            for number in range(len(sources)):
                work.read_source(number, raw, bar.update)
        log.info("read %d documents, %d passed the rules", sum(c.documents for c in work.counts), len(spool))
        kept = work.drop_near_duplicates()
        work.check_amounts(kept)
        splits = work.write(kept, out)
    report = _report(sources, work.counts, splits)
    write_json(reports / "clean.json", report)
    write_card(reports / "data_card.md", report)
    for split, s in splits.items():
        log.info("%-5s %7d documents, %8.2f MB in %s", split, s["documents"], s["bytes"] / 1e6, out / split)
    dropped = ", ".join(f"{n} {reason}" for reason, n in report["documents"]["dropped"].items() if n)
    log.info(
        "dropped %s; %d unreadable records; see %s",
        dropped or "nothing",
        report["records"]["bad"],
        reports / "rejected.jsonl",
    )
    return report


class _Cleaning:
    """One run: the documents that passed so far (texts in a spool, the rest in flat arrays) and the counts."""

    def __init__(self, sources: list[dict[str, Any]], rules: Clean, spool: Spool, rejected: IO[str]) -> None:
        self.sources, self.rules, self.spool, self.rejected = sources, rules, spool, rejected
        self.counts = [Counts() for _ in sources]
        self.seen: dict[bytes, int] = {}
        self.bad_here: list[Bad] = []  # the first of the file being read
        self.near = NearDuplicates() if rules.near_dedup else None
        self.hashes, self.records = array("Q"), array("Q")
        self.origins, self.files = array("L"), array("L")

    def read_source(self, number: int, raw: Path, advance: Any) -> None:
        """First pass: every record is read, normalised and judged; what passes goes to the spool."""
        source, count = self.sources[number], self.counts[number]
        template = Template(source["text"])
        for f, file in enumerate(source["files"]):
            path, documents, bad, self.bad_here = verified(raw, file), count.documents, count.bad, []
            for item in read_file(path, file["path"], source["format"], template, source["member"]):
                if isinstance(item, Bad):
                    self._bad(number, item)
                else:
                    advance()
                    self._document(number, f, item)
                    if count.documents == self.rules.max_documents:
                        break
            self._check_file(file["path"], count, count.documents - documents, count.bad - bad)
            if count.documents == self.rules.max_documents:
                break
        if not count.documents:
            raise DataError(
                f"{source['name']} holds no document ({len(source['files'])} files, {count.bad} unreadable records). "
                f"Check what {source['url']} points to, its format ({source['format']}) and its text template"
            )

    def _bad(self, number: int, item: Bad) -> None:
        count = self.counts[number]
        count.bad += 1
        place = {"source": self.sources[number]["name"], "file": item.file, "record": item.record}
        if len(count.examples) < BAD_EXAMPLES:
            count.examples.append({**place, "offset": item.offset, "reason": item.reason, "excerpt": item.excerpt})
        if len(self.bad_here) < 3:
            self.bad_here.append(item)
        self._reject(place, item.reason, item.excerpt)

    def _document(self, number: int, file: int, item: Document) -> None:
        count = self.counts[number]
        count.documents += 1
        text = self._mended(item, count)
        words = units(text)
        rejected = item.repaired and self.rules.invalid_utf8 == "reject"
        reason = "invalid_utf8" if rejected else judge(text, words, self.rules)
        more: dict[str, Any] = {}
        if reason is None and self.rules.exact_dedup:
            first = self.seen.setdefault(exact_key(text), len(self.spool))
            if first != len(self.spool):
                reason, more = "exact_duplicate", {"duplicate_of": self.name(first)}
        if reason is not None:
            count.dropped[reason] += 1
            self._reject(
                {"source": self.sources[number]["name"], "file": item.file, "record": item.record}, reason, text, more
            )
            return
        data = text.encode()
        self.hashes.append(int(doc_id(data), 16))
        self.origins.append(number)
        self.files.append(file)
        self.records.append(item.record)
        self.spool.append(data)
        if self.near:
            self.near.add(words)

    def _mended(self, item: Document, count: Counts) -> str:
        text = item.text
        count.repaired["invalid_utf8"] += item.repaired
        for rule, name, mend in (
            (self.rules.fix_mojibake, "mojibake", fix_mojibake),
            (self.rules.strip_html, "html", strip_html),
        ):
            if rule:
                before, text = text, mend(text)
                count.repaired[name] += text != before
        return normalize(text)

    def _check_file(self, shown: str, count: Counts, documents: int, bad: int) -> None:
        share = bad / (bad + documents) if bad else 0.0
        if share > self.rules.max_bad_records:
            told = "; ".join(f"record {b.record}: {b.reason} {b.excerpt[:60]!r}" for b in self.bad_here)
            raise DataError(
                f"{shown}: {bad} of {bad + documents} records cannot be read ({share:.1%}; clean.max_bad_records "
                f"allows {self.rules.max_bad_records:.1%}). {told}. "
                "Mend the file, its format or its text template"
            )

    def _reject(self, place: dict[str, Any], reason: str, text: str, more: dict[str, Any] | None = None) -> None:
        line = {**place, "reason": reason, **(more or {}), "excerpt": text[:EXCERPT]}
        # Escaped: an excerpt of an unreadable record may hold what UTF-8 cannot.
        self.rejected.write(json.dumps(line, ensure_ascii=not _encodable(line["excerpt"])) + "\n")

    def name(self, i: int) -> str:
        return f"{self.hashes[i]:016x}"

    def drop_near_duplicates(self) -> list[int]:
        """Second pass; returns the numbers of the documents that stay."""
        found = (
            self.near.find(lambda i: self.spool.read(i).decode(), self.rules.near_dup_threshold) if self.near else {}
        )
        for i, (other, similarity) in sorted(found.items()):
            source = self.sources[self.origins[i]]
            self.counts[self.origins[i]].dropped["near_duplicate"] += 1
            place = {
                "source": source["name"],
                "file": source["files"][self.files[i]]["path"],
                "record": self.records[i],
            }
            more = {"duplicate_of": self.name(other), "similarity": round(similarity, 4)}
            self._reject(place, "near_duplicate", self.spool.read(i).decode(), more)
        return [i for i in range(len(self.spool)) if i not in found]

    def split(self, i: int) -> str:
        return split_of(self.name(i), self.rules.val_fraction, self.rules.test_fraction)

    def check_amounts(self, kept: list[int]) -> None:
        """Refuses a corpus that was mostly dropped, or that leaves a split empty."""
        total = sum(c.documents for c in self.counts)
        dropped = sum((c.dropped for c in self.counts), Counter())
        # Of equal counts the first rule in order.
        worst = max(REASONS, key=lambda r: dropped[r])
        told = ", ".join(f"{r} {dropped[r]}" for r in REASONS if dropped[r]) or "nothing"
        most = (
            f"Dropped: {told}. The rule {worst} dropped most; see {REASONS[worst]}"
            if dropped
            else "No rule dropped any"
        )
        if not kept:
            raise DataError(f"every one of the {total} documents was dropped. {most}")
        share = dropped.total() / total
        if share > self.rules.max_rejected:
            raise DataError(
                f"{dropped.total()} of {total} documents were dropped ({share:.1%}; clean.max_rejected allows "
                f"{self.rules.max_rejected:.1%}). {most}"
            )
        sizes = Counter(self.split(i) for i in kept)
        if empty := [s for s in SPLITS if not sizes[s]]:
            raise DataError(
                f"no document for {' and '.join(empty)}: {len(kept)} of {total} documents were kept, and a hash draws "
                f"each one's split (clean.val_fraction {self.rules.val_fraction}, clean.test_fraction "
                f"{self.rules.test_fraction}). Add documents or raise the fractions; a text file is one document "
                f"unless lines that read <|endoftext|> cut it. {most}"
            )

    def write(self, kept: list[int], out: Path) -> dict[str, dict[str, int]]:
        """Third pass: the splits, each in the order of sources, files and records."""
        with atomic_dir(out) as folder, ExitStack() as stack:
            writers = {s: stack.enter_context(PartWriter(folder / s)) for s in SPLITS}
            for i in kept:
                source, count, data = self.sources[self.origins[i]], self.counts[self.origins[i]], self.spool.read(i)
                writers[self.split(i)].add(self.name(i), data, source["name"], source["lang"])
                count.kept += 1
                count.bytes += len(data)
            stack.close()
            return {s: {"documents": w.documents, "bytes": w.bytes} for s, w in writers.items()}


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _report(sources: list[dict[str, Any]], counts: list[Counts], splits: dict[str, dict[str, int]]) -> dict[str, Any]:
    def amounts(some: list[Counts]) -> dict[str, Any]:
        return {
            "in": sum(c.documents for c in some),
            "kept": sum(c.kept for c in some),
            "dropped": {r: sum(c.dropped[r] for c in some) for r in REASONS},
            "repaired": {r: sum(c.repaired[r] for c in some) for r in REPAIRS},
        }

    return {
        "documents": amounts(counts),
        "splits": splits,
        "per_source": {
            s["name"]: {**amounts([c]), "bytes": c.bytes, "bad": c.bad} for s, c in zip(sources, counts, strict=True)
        },
        "records": {
            "bad": sum(c.bad for c in counts),
            "examples": [e for c in counts for e in c.examples][:BAD_EXAMPLES],
        },
        "sources": [
            {
                **{k: s[k] for k in ("name", "url", "member", "license", "attribution", "lang")},
                "sha256": files[0][1] if len(files) == 1 else sha256_json(files),
                "files": len(files),
                "bytes": sum(f["bytes"] for f in s["files"]),
            }
            for s in sources
            for files in [[[f["path"], f["sha256"]] for f in s["files"]]]
        ],
    }
