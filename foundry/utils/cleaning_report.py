"""The schema of `reports/clean.json`. Fields are in the order of the file.

The clean stage writes it; its data card and HTML page, the export and the HTML report of the evaluation read it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from foundry.config import FoundryError
from foundry.utils.files import write_json
from foundry.utils.records import Record


class _Account(Record):
    """A record with a field `incoming`, which is `in` in the file: a keyword of Python."""

    model_config = ConfigDict(populate_by_name=True)


class DocumentAccount(_Account):
    """All documents: `incoming` = `kept` + all of `dropped`.

    Attributes:
        dropped: documents by reason, in the order of the rules.
        repaired: repairs by kind, in alphabetical order.
    """

    incoming: int = Field(alias="in")
    kept: int
    dropped: dict[str, int]
    repaired: dict[str, int]


class SourceAccount(_Account):
    """The records of a source: `records` = `incoming` + `quarantined`; `incoming` = `kept` + all of `dropped`.

    Attributes:
        bytes: of the text that was kept, in UTF-8.
        fields: {name of a field that the source keeps beside the text: kept documents that have it}.
        repaired_fields: repairs of these fields by kind, of all documents.
    """

    records: int
    incoming: int = Field(alias="in")
    kept: int
    dropped: dict[str, int]
    quarantined: int
    repaired: dict[str, int]
    bytes: int
    fields: dict[str, int] = Field(default_factory=dict)
    repaired_fields: dict[str, int] = Field(default_factory=dict)


class UnreadableRecord(Record):
    """A record that could not be read; the lines of `data/clean/quarantine.jsonl` have the same fields.

    Attributes:
        record: its number in the file, from 0.
        offset: where it begins in the decompressed file, in bytes, if that is known.
    """

    source: str
    file: str
    record: int
    offset: int | None
    reason: str
    excerpt: str


class RecordAccount(_Account):
    """All records; the quarantined ones by reason, and the first of them as examples."""

    incoming: int = Field(alias="in")
    quarantined: int
    reasons: dict[str, int]
    examples: list[UnreadableRecord]


class SplitSize(Record):
    documents: int
    bytes: int


class Leakage(Record):
    """How similar documents of the held-out splits are to the most similar training document that was found.

    Attributes:
        held_out: documents of val and test.
        similar_in_training: {similarity: how many of them have a training document that is at least that similar}; None
            if no documents were compared.
        recall: {similarity: share of the pairs of that similarity that is found}; None if no documents were compared.
        groups: groups of similar documents.
        grouped: documents in these groups.
        largest: documents in the largest group.
    """

    held_out: int
    similar_in_training: dict[str, int] | None
    recall: dict[str, float] | None
    groups: int
    grouped: int
    largest: int


class CleanedSource(Record):
    """A source as it was published.

    Attributes:
        sha256: of its file; of the list of paths and hashes if there are several files.
        bytes: of all files, as they were downloaded.
    """

    name: str
    url: str
    member: str | None
    license: str
    attribution: str
    lang: str
    sha256: str
    files: int
    bytes: int


class CleaningReport(Record):
    """What came into the clean stage, and where it went.

    Attributes:
        languages: {BCP 47 tag: documents that were kept}, the most frequent first.
        per_source: {name: account}.
    """

    documents: DocumentAccount
    records: RecordAccount
    splits: dict[str, SplitSize]
    leakage: Leakage
    languages: dict[str, int]
    per_source: dict[str, SourceAccount]
    sources: list[CleanedSource]

    def to_dict(self) -> dict[str, Any]:
        """The JSON value."""
        return self.model_dump(by_alias=True)

    def write(self, path: str | Path) -> None:
        write_json(path, self.to_dict())


def read_cleaning(path: str | Path, error: Callable[[str], Exception] = FoundryError) -> CleaningReport:
    """Reads `reports/clean.json`.

    Raises:
        error: if the file is missing, is not readable JSON, or does not follow the schema.
    """
    return CleaningReport.read(path, "the report of the clean stage; run `dvc repro clean`", error)
