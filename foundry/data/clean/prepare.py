"""The two passes over a unit: records of one piece of a raw file to judged documents with their keys, pure functions.

The first pass reads, repairs and judges every record. The second pass is needed only where lines that many documents
have are removed: what is judged by the final text then waits for it. See `unit` for the files that a pass writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from foundry.config import Clean
from foundry.data.clean.decontaminate import Contamination
from foundry.data.clean.dedup import BANDS, band_keys, comparable, exact_key
from foundry.data.clean.language import identify
from foundry.data.clean.markup import Treatment, strip_html
from foundry.data.clean.normalize import fix_mojibake, normalize, without_meta_space
from foundry.data.clean.repeats import PIECES, limits, piece_hashes, without
from foundry.data.clean.rules import Rules, Verdict
from foundry.data.clean.scrub import scrub
from foundry.data.clean.unit import SAMPLES, TEXTS, Dropped, Job, Repaired, Samples, UnitResult, read_texts
from foundry.data.read.encoding import guess_encoding, repair
from foundry.data.read.records import EXCERPT, Bad, Document
from foundry.data.read.units import read_unit
from foundry.data.schema import doc_id
from foundry.data.text.grams import Words, read_words
from foundry.data.text.words import squeezed
from foundry.utils.files import atomic_write, write_array

FOREIGN = 1 << 14  # bytes of a unit that its encoding is guessed from
BATCH_DOCUMENTS, BATCH_BYTES = 1024, 8 << 20
JUDGED_DOCUMENTS, JUDGED_CHARS = 256, 1 << 20  # that are judged at once


@dataclass(frozen=True)
class Preparation:
    """The task of preparing a unit; `most`: documents of it that are read (0: all)."""

    number: int
    most: int = 0


def prepare_unit(job: Job, task: Preparation) -> UnitResult:
    """First pass: reads, repairs and judges the records of a unit. A unit that has its marker is not read again.

    Where no second pass follows, the text is final: evaluation text is looked for in it, and it gets the keys by which
    similar documents are found.
    """
    marker = job.path(task.number, "json")
    if marker.exists():
        return UnitResult.read(marker)
    params, source = job.params, job.source_of(task.number)
    rules, eval_sets = _tools(job.root, params.model_dump_json())
    notes, field_notes = _Notes(), _Notes()
    counted = [kind for kind, limit in limits(params).items() if limit]
    hashes: dict[str, list[int]] = {kind: [] for kind in PIECES}
    foreign = bytearray()
    waiting: list[Text] = []
    size = 0  # characters of those that wait
    with (
        _text_writer(job, task.number, "arrow", notes, eval_sets, final=not job.counts_repeats) as texts,
        atomic_write(job.path(task.number, "bad.jsonl"), "w") as bad,
    ):

        def judge() -> None:
            """Applies the rules to the documents that wait, and writes those that pass."""
            for item, judgement in zip(waiting, rules.apply_all([(x.text, x.lang) for x in waiting]), strict=True):
                text = judgement.text
                if judgement.verdict:
                    notes.drop(judgement.verdict, item.file, item.record, text)
                    continue
                texts.add(item if text is item.text else item._replace(text=text), judgement.words)
                for kind in counted:
                    hashes[kind] += sorted(piece_hashes(text, *PIECES[kind]))
            waiting.clear()

        for item in read_unit(job.raw, job.sources, job.units[task.number], job.limits):
            if not foreign or (len(foreign) < FOREIGN and b"\0" not in item.sample + foreign):
                foreign += item.sample  # of UTF-16, whose line ends are cut in the middle, only the first record
            if isinstance(item, Bad):
                notes.result.bad += 1
                notes.result.bad_reasons[item.reason] += 1
                place = {"file": item.file, "record": item.record, "offset": item.offset, "reason": item.reason}
                bad.write(json.dumps({**place, "excerpt": item.excerpt}) + "\n")
                continue
            notes.result.documents += 1
            notes.result.fields.update((item.fields or {}).keys())
            notes.result.in_chars[len(item.text).bit_length()] += 1
            if item.repaired:
                notes.result.repaired["invalid_utf8"] += 1
            text = _repaired(item.text, item, params, source.html, notes)
            lang, verdict = _language(item, text, source.lang, params)
            if verdict:
                notes.drop(verdict, item.file, item.record, text)
            else:
                fields = _kept_fields(item, params, source.html, field_notes)
                waiting.append(Text(text, item.record, item.file, lang, _domain(item.url), fields))
                size += len(text)
            if len(waiting) == JUDGED_DOCUMENTS or size >= JUDGED_CHARS:
                judge()
                size = 0
            if notes.result.documents == task.most:
                break
        judge()
    notes.result.repaired_fields = field_notes.result.repaired
    if foreign:
        notes.result.encoding = guess_encoding(bytes(foreign)) or ""
    if job.counts_repeats:
        for kind, found in hashes.items():
            write_array(job.path(task.number, f"{kind}.npy"), np.array(found, np.uint64))
    return notes.finish(marker)


def finish_unit(job: Job, number: int) -> UnitResult:
    """Second pass: removes the lines and paragraphs that too many documents have, and judges what is left.

    It does what `prepare_unit` left for the final text: documents that became too short are dropped, evaluation text is
    looked for, and the keys of similar documents are computed.

    Returns:
        what this pass dropped and repaired. A unit that has its second marker is not read again.
    """
    marker = job.path(number, "final.json")
    if marker.exists():
        return UnitResult.read(marker)
    _, eval_sets = _tools(job.root, job.params.model_dump_json())
    repeated = {kind: np.load(job.folder / f"{kind}.npy") for kind in PIECES}
    least = job.params.min_chars
    notes = _Notes()
    with _text_writer(job, number, "final.arrow", notes, eval_sets, final=True) as texts:
        for batch in read_texts(job, number, list(Text._fields), "arrow"):
            left: list[Text] = []
            for row in batch.to_pylist():
                file, record = row["file"], row["record"]
                before = text = row["text"].decode()
                for kind in ("paragraphs", "lines"):
                    shorter, removed = without(text, *PIECES[kind], repeated[kind])
                    if removed:
                        notes.repair(f"repeated_{kind}", file, record, text, shorter, removed)
                    text = shorter
                if len(text) < least:
                    notes.drop(Verdict("too_short", "min_chars", len(text), least), file, record, before)
                    continue
                left.append(Text(**{**row, "text": text}))
            for item, words in zip(left, read_words([item.text for item in left]), strict=True):
                texts.add(item, words)
    result = notes.finish(marker)
    job.path(number, "arrow").unlink()
    return result


@lru_cache(maxsize=1)
def _tools(root: Path, params_json: str) -> tuple[Rules, Contamination | None]:
    """What a process makes once for all units: the rules and the n-grams of the evaluation sets."""
    params = Clean.model_validate_json(params_json)
    eval_sets = Contamination(params.decontaminate, root, params.decontaminate_ngram) if params.decontaminate else None
    return Rules(params, root), eval_sets


class _Notes:
    """What a pass over a unit counts, and its examples."""

    def __init__(self) -> None:
        self.result = UnitResult()
        self._dropped: Samples[str, Dropped] = Samples(SAMPLES)
        self._repaired: Samples[str, Repaired] = Samples(SAMPLES)

    def drop(self, verdict: Verdict, file: str, record: int, text: str) -> None:
        self.result.dropped[verdict.reason] += 1
        value, threshold = (round(x, 4) if isinstance(x, float) else x for x in (verdict.value, verdict.threshold))
        example = Dropped(file, record, verdict.reason, verdict.rule, value, threshold, None, text[:EXCERPT])
        self._dropped.add(verdict.reason, example)

    def repair(self, kind: str, file: str, record: int, before: str, after: str, times: int = 1) -> None:
        self.result.repaired[kind] += times
        self.example(kind, file, record, before, after)

    def example(self, kind: str, file: str, record: int, before: str, after: str) -> None:
        """The text around the first difference."""
        differ = (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b)
        at = next(differ, min(len(before), len(after)))
        shown = slice(max(0, at - 30), at + 70)
        self._repaired.add(kind, Repaired(file, record, before[shown], after[shown]))

    def finish(self, marker: Path) -> UnitResult:
        """Writes the marker, by which the pass over the unit is finished."""
        self.result.dropped_examples = self._dropped.lists()
        self.result.repaired_examples = self._repaired.lists()
        self.result.write(marker)
        return self.result


def _repaired(text: str, item: Document, params: Clean, treatment: Treatment, notes: _Notes) -> str:
    """A text of a document after all repairs that are switched on."""
    if params.fix_mojibake and (fixed := fix_mojibake(text)) != text:
        notes.repair("mojibake", item.file, item.record, text, fixed)
        text = fixed
    if params.strip_html and (stripped := strip_html(text, treatment)) != text:
        notes.repair("html", item.file, item.record, text, stripped)
        text = stripped
    if params.normalize:
        text = text.strip()  # white space around a text is not worth an example
        if (normal := normalize(text)) != text:
            notes.repair("normalized", item.file, item.record, text, normal)
            text = normal
    text = without_meta_space(text)
    if params.scrub:
        before = text
        text, found = scrub(text, params.scrub)
        for kind, n in found.items():
            notes.result.repaired[f"scrubbed_{kind}"] += n
        if found:
            notes.example("scrubbed", item.file, item.record, before, text)
    return text


def _kept_fields(item: Document, params: Clean, treatment: Treatment, notes: _Notes) -> str:
    """The fields that the source keeps as JSON, their strings repaired as the text is; empty if it keeps none."""
    if item.fields is None:
        return ""

    def repaired(value: Any) -> Any:
        if isinstance(value, str):
            return _repaired(repair(value)[0], item, params, treatment, notes)
        if isinstance(value, list):
            return [repaired(v) for v in value]
        if isinstance(value, dict):
            return {repair(str(k))[0]: repaired(v) for k, v in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(repaired(item.fields), ensure_ascii=False, default=str)


def _language(item: Document, text: str, lang: str, params: Clean) -> tuple[str, Verdict | None]:
    """The language of a repaired text, which is the source's unless it has to be identified, and why the text is
    dropped for its language or its bytes (None: it is not)."""
    score = 1.0
    if params.languages or (lang == "und" and params.identify_language):
        lang, score = identify(text, params.min_language_score)
    if item.repaired and params.invalid_utf8 == "reject":
        return lang, Verdict("invalid_utf8", "invalid_utf8", 1, 0)
    if params.languages and lang not in params.languages:
        return lang, Verdict("language", f"languages ({lang})", round(score, 3), params.min_language_score)
    return lang, None


def _domain(url: str) -> str:
    if not url:
        return ""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


class Text(NamedTuple):
    """A document that passed the rules; the fields are columns of `TEXTS`."""

    text: str
    record: int
    file: str
    lang: str
    domain: str
    fields: str


@contextmanager
def _text_writer(
    job: Job, number: int, kind: str, notes: _Notes, eval_sets: Contamination | None, final: bool
) -> Iterator[_TextWriter]:
    with atomic_write(job.path(number, kind)) as f, pa.ipc.new_file(f, TEXTS) as writer:
        texts = _TextWriter(writer, notes, eval_sets if final else None, near=final and job.compares)
        yield texts
        texts.flush()


class _TextWriter:
    """Writes the documents of a unit in batches.

    Args:
        notes: where a document with evaluation text is counted.
        eval_sets: if given, documents that share n-grams with them are dropped.
        near: whether to compute the keys by which similar documents are found.
    """

    def __init__(self, writer: Any, notes: _Notes, eval_sets: Contamination | None, near: bool) -> None:
        self._writer, self._notes, self._eval_sets, self._near = writer, notes, eval_sets, near
        self._rows: list[tuple] = []
        self._numbers: list[np.ndarray] = []
        self._bytes = 0

    def add(self, item: Text, words: Words) -> None:
        if self._eval_sets and (shared := self._eval_sets.shared(words.numbers)):
            verdict = Verdict("contaminated", f"{self._eval_sets.n}-grams of evaluation sets", shared, 0)
            self._notes.drop(verdict, item.file, item.record, item.text)
            return
        data = item.text.encode()
        key = int.from_bytes(exact_key(squeezed(item.text))[:8], "little")
        self._rows.append((data, *item[1:], int(doc_id(data), 16), key))
        if self._near:
            self._numbers.append(comparable(item.text, words))
        self._bytes += len(data) + len(item.fields)
        if len(self._rows) == BATCH_DOCUMENTS or self._bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._rows:
            return
        columns = [pa.array(c, f.type) for c, f in zip(zip(*self._rows, strict=True), TEXTS, strict=False)]
        keys = band_keys(self._numbers) if self._near else np.zeros((len(self._rows), BANDS), np.uint64)
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(keys.ravel()), BANDS))
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=TEXTS))
        self._rows, self._numbers, self._bytes = [], [], 0
