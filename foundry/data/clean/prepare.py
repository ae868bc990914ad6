"""A unit of cleaning: records of one piece of a raw file to judged documents with their keys, a pure function.

What a unit leaves in the work folder, the marker last, so that a killed run keeps its finished units:
`NNNNN.arrow` (the documents that passed, uncompressed Arrow IPC, memory-mapped later), `NNNNN.bad.jsonl` (every unreadable
record with its place), `NNNNN.lines.npy` and `.paragraphs.npy` where those are counted, `NNNNN.json` (counts and examples).
Examples are samples by hash: the same ones however the corpus is cut into units.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from foundry.config import Clean
from foundry.data.clean.decontaminate import Contamination
from foundry.data.clean.dedup import BANDS, band_keys, comparable, exact_key
from foundry.data.clean.language import identify
from foundry.data.clean.markup import Treatment, strip_html
from foundry.data.clean.normalize import fix_mojibake, normalize, without_meta_space
from foundry.data.clean.repeats import LINE_CHARS, PARAGRAPH_CHARS, piece_hashes, without
from foundry.data.clean.rules import Rules, Verdict
from foundry.data.clean.scrub import scrub
from foundry.data.manifest import RawSource
from foundry.data.read.encoding import guess_encoding
from foundry.data.read.records import EXCERPT, Bad, Document
from foundry.data.read.streams import Limits
from foundry.data.read.units import Unit, read_unit
from foundry.data.schema import doc_id
from foundry.data.text.words import gram_words
from foundry.utils.files import atomic_write, read_json, write_array, write_json

FOREIGN = 1 << 14  # bytes of a unit that its encoding is guessed from
SAMPLES = 40  # examples of each reason that a unit keeps
BATCH_DOCUMENTS, BATCH_BYTES = 1024, 8 << 20
ROWS = pa.schema(
    [
        ("text", pa.large_binary()),
        ("record", pa.int64()),
        ("file", pa.string()),
        ("lang", pa.string()),
        ("domain", pa.string()),
        ("id", pa.uint64()),
        ("exact", pa.uint64()),
        ("bands", pa.list_(pa.uint64(), BANDS)),
    ]
)


@dataclass(frozen=True)
class Job:
    """What every worker needs to know."""

    raw: Path
    root: Path
    folder: Path
    sources: tuple[RawSource, ...]
    units: list[Unit]
    params: Clean
    limits: Limits

    def path(self, number: int, kind: str) -> Path:
        return self.folder / f"{number:05d}.{kind}"

    @property
    def compares(self) -> bool:
        """Whether similar documents are looked for."""
        return self.params.near_dedup != "ignore" or self.params.split_similarity < 1

    @property
    def counts_repeats(self) -> bool:
        return bool(self.params.max_line_documents or self.params.max_paragraph_documents)

    @property
    def rows(self) -> str:
        """The kind of file that holds a unit's documents in the end."""
        return "final.arrow" if self.counts_repeats else "arrow"


class Samples:
    """The examples of smallest hash for each reason: a sample that does not depend on order or units."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.heaps: dict[str, list[tuple[int, str]]] = {}

    def add(self, reason: str, example: dict[str, Any]) -> None:
        line = json.dumps(example, ensure_ascii=False).encode("utf-8", "replace").decode()
        content = json.dumps(
            {k: v for k, v in example.items() if k != "record"}
        ).encode()  # a record's number depends on the unit
        rank = -int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
        heap = self.heaps.setdefault(reason, [])
        if len(heap) < self.size:
            heapq.heappush(heap, (rank, line))
        elif (rank, line) > heap[0]:
            heapq.heapreplace(heap, (rank, line))

    def lines(self) -> dict[str, list[str]]:
        return {reason: [line for _, line in sorted(heap, reverse=True)] for reason, heap in sorted(self.heaps.items())}


@dataclass
class Counts:
    documents: int = 0
    bad: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    bad_reasons: Counter[str] = field(default_factory=Counter)
    in_chars: Counter[str] = field(default_factory=Counter)  # log2 of the characters as they came
    encoding: str = ""  # that the bytes which are not UTF-8 are likely in

    def as_json(self) -> dict[str, Any]:
        return {k: dict(sorted(v.items())) if isinstance(v, Counter) else v for k, v in vars(self).items()}


@lru_cache(maxsize=1)
def _tools(root: Path, params_json: str) -> tuple[Rules, Contamination | None]:
    params = Clean.model_validate_json(params_json)
    eval_sets = Contamination(params.decontaminate, root, params.decontaminate_ngram) if params.decontaminate else None
    return Rules(params, root), eval_sets


def prepare_unit(job: Job, task: tuple[int, int]) -> dict[str, Any]:
    """Reads, mends and judges the records of unit `task[0]`, at most `task[1]` documents of it (0: all).

    Returns:
        the content of its marker; where that exists, nothing is done again.
    """
    number, most = task
    marker = job.path(number, "json")
    if marker.exists():
        return read_json(marker, "a finished unit")
    unit, params = job.units[number], job.params
    source = job.sources[unit.source]
    lang = source.lang
    rules, eval_sets = _tools(job.root, params.model_dump_json())
    counts, samples = Counts(), Samples(SAMPLES)
    lines: list[set[int]] = []
    paragraphs: list[set[int]] = []
    foreign = bytearray()
    with (
        _writing(job, number, eval_sets, None if job.counts_repeats else (counts, samples)) as rows,
        atomic_write(job.path(number, "bad.jsonl"), "w") as bad,
    ):
        for item in read_unit(job.raw, job.sources, unit, job.limits):
            if not foreign or (len(foreign) < FOREIGN and b"\0" not in item.sample + foreign):
                foreign += item.sample  # of UTF-16, which is cut amid its line ends, the first record only
            if isinstance(item, Bad):
                counts.bad += 1
                counts.bad_reasons[item.reason] += 1
                place = {"file": item.file, "record": item.record, "offset": item.offset, "reason": item.reason}
                bad.write(json.dumps({**place, "excerpt": item.excerpt}) + "\n")
                continue
            counts.documents += 1
            counts.in_chars[str(len(item.text).bit_length())] += 1
            text = _mended(item, params, source.html, counts, samples)
            said, score = lang, 1.0
            if params.languages or (lang == "und" and params.identify_language):
                said, score = identify(text, params.min_language_score)
            verdict: Verdict | None = None
            words: list[str] = []
            if item.repaired and params.invalid_utf8 == "reject":
                verdict = Verdict("invalid_utf8", "invalid_utf8", 1, 0)
            elif params.languages and said not in params.languages:
                verdict = Verdict("language", f"languages ({said})", round(score, 3), params.min_language_score)
            else:
                text, words, verdict = rules.apply(text, said)
            if verdict:
                drop(counts, samples, verdict, item.file, item.record, text)
                continue
            rows.add(item, said, text, words)
            if job.counts_repeats:
                lines.append(piece_hashes(text, "\n", LINE_CHARS) if params.max_line_documents else set())
                paragraphs.append(
                    piece_hashes(text, "\n\n", PARAGRAPH_CHARS) if params.max_paragraph_documents else set()
                )
            if counts.documents == most:
                break
    if foreign:
        counts.encoding = guess_encoding(bytes(foreign)) or ""
    for kind, found in (("lines", lines), ("paragraphs", paragraphs)):
        if job.counts_repeats:
            write_array(job.path(number, f"{kind}.npy"), np.fromiter((h for s in found for h in sorted(s)), np.uint64))
    return _finish(job, number, "json", counts, samples)


def finish_unit(job: Job, number: int) -> dict[str, Any]:
    """Removes the lines and paragraphs that stand in too many documents, then does what `prepare_unit` left for after that."""
    marker = job.path(number, "final.json")
    if marker.exists():
        return read_json(marker, "a finished unit")
    params = job.params
    _, eval_sets = _tools(job.root, params.model_dump_json())
    repeated = {k: np.load(job.folder / f"{k}.npy") for k in ("lines", "paragraphs")}
    counts, samples = Counts(), Samples(SAMPLES)
    with _writing(job, number, eval_sets, (counts, samples), "final.arrow") as rows:
        for batch in read_rows(job, number, ["text", "record", "file", "lang", "domain"], "arrow"):
            for row in batch.to_pylist():
                text = row["text"].decode()
                for kind, separator, least in (("paragraphs", "\n\n", PARAGRAPH_CHARS), ("lines", "\n", LINE_CHARS)):
                    before, (text, removed) = text, without(text, separator, least, repeated[kind])
                    if removed:
                        counts.repaired[f"repeated_{kind}"] += removed
                        _example(samples, f"repeated_{kind}", row["file"], row["record"], before, text)
                if len(text) < params.min_chars:
                    verdict = Verdict("too_short", "min_chars", len(text), params.min_chars)
                    drop(counts, samples, verdict, row["file"], row["record"], row["text"].decode())
                    continue
                rows.add_row(row["file"], row["record"], row["lang"], row["domain"], text, gram_words(text))
    done = _finish(job, number, "final.json", counts, samples)
    job.path(number, "arrow").unlink()
    return done


def _finish(job: Job, number: int, kind: str, counts: Counts, samples: Samples) -> dict[str, Any]:
    done = {**counts.as_json(), "samples": samples.lines()}
    write_json(job.path(number, kind), done)
    return done


def read_rows(
    job: Job, number: int, columns: list[str] | None = None, kind: str | None = None
) -> Iterator[pa.RecordBatch]:
    """The record batches of a unit's documents, memory-mapped."""
    with pa.memory_map(str(job.path(number, kind or job.rows))) as source:
        reader = pa.ipc.open_file(source)
        for i in range(reader.num_record_batches):
            batch = reader.get_batch(i)
            yield batch.select(columns) if columns else batch


def drop(counts: Counts, samples: Samples, verdict: Verdict, file: str, record: int, text: str) -> None:
    counts.dropped[verdict.reason] += 1
    example = {"file": file, "record": record, "reason": verdict.reason, "rule": verdict.rule}
    measured = {"value": _number(verdict.value), "threshold": _number(verdict.threshold)}
    samples.add(f"dropped {verdict.reason}", {**example, **measured, "excerpt": text[:EXCERPT]})


def _number(x: float) -> float:
    return round(x, 4) if isinstance(x, float) else x


def _mended(item: Document, params: Clean, treatment: Treatment, counts: Counts, samples: Samples) -> str:
    text = item.text
    if item.repaired:
        counts.repaired["invalid_utf8"] += 1

    def step(name: str, mend: Callable[[str], str]) -> None:
        nonlocal text
        before, text = text, mend(text)
        if text != before:
            counts.repaired[name] += 1
            _example(samples, name, item.file, item.record, before, text)

    if params.fix_mojibake:
        step("mojibake", fix_mojibake)
    if params.strip_html:
        step("html", lambda text: strip_html(text, treatment))
    if params.normalize:
        text = text.strip()  # what lies around a text is not worth an example
        step("normalized", normalize)
    text = without_meta_space(text)
    if params.scrub:
        before = text
        text, found = scrub(text, params.scrub)
        for kind, n in found.items():
            counts.repaired[f"scrubbed_{kind}"] += n
        if found:
            _example(samples, "scrubbed", item.file, item.record, before, text)
    return text


def _example(samples: Samples, name: str, file: str, record: int, before: str, after: str) -> None:
    at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    start = max(0, at - 30)
    shown = {"before": before[start : at + 70], "after": after[start : at + 70]}
    samples.add(f"repaired {name}", {"file": file, "record": record, **shown})


def _domain(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


@contextmanager
def _writing(
    job: Job, number: int, eval_sets: Contamination | None, final: tuple[Counts, Samples] | None, kind: str = "arrow"
) -> Iterator[_Rows]:
    with atomic_write(job.path(number, kind)) as f, pa.ipc.new_file(f, ROWS) as writer:
        rows = _Rows(writer, eval_sets, final, final is not None and job.compares)
        yield rows
        rows.flush()


class _Rows:
    """Writes the documents of a unit in batches; `final` (where to count) tells that their text will not change any more."""

    def __init__(
        self, writer: Any, eval_sets: Contamination | None, final: tuple[Counts, Samples] | None, near: bool
    ) -> None:
        self._writer, self.eval_sets, self.final, self.near = writer, eval_sets, final, near
        self._rows: list[tuple] = []
        self._words: list[list[str]] = []
        self._bytes = 0

    def add(self, item: Document, lang: str, text: str, words: list[str]) -> None:
        self.add_row(item.file, item.record, lang, _domain(item.url), text, words)

    def add_row(self, file: str, record: int, lang: str, domain: str, text: str, words: list[str]) -> None:
        if self.final and self.eval_sets and (shared := self.eval_sets.shared(words)):
            verdict = Verdict("contaminated", f"{self.eval_sets.n}-grams of evaluation sets", shared, 0)
            drop(*self.final, verdict, file, record, text)
            return
        data = text.encode()
        key = int.from_bytes(exact_key(text)[:8], "little")
        self._rows.append((data, record, file, lang, domain, int(doc_id(data), 16), key))
        self._words.append(comparable(text, words) if self.near else [])
        self._bytes += len(data)
        if len(self._rows) == BATCH_DOCUMENTS or self._bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._rows:
            return
        columns = [pa.array(c, f.type) for c, f in zip(zip(*self._rows, strict=True), ROWS, strict=False)]
        keys = band_keys(self._words) if self.near else np.zeros((len(self._rows), BANDS), np.uint64)
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(keys.ravel()), BANDS))
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=ROWS))
        self._rows, self._words, self._bytes = [], [], 0
