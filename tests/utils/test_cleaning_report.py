"""`reports/clean.json` has one schema: what is read is written again byte for byte, and what does not follow it is
refused."""

import json
from pathlib import Path

import pytest

from foundry.config import DataError
from foundry.utils.cleaning_report import CleaningReport, read_cleaning

COMMITTED = Path(__file__).resolve().parents[2] / "reports/clean.json"


def test_the_committed_report_is_read_and_written_again_byte_for_byte(tmp_path):
    report = read_cleaning(COMMITTED)
    documents = report.documents
    assert documents.incoming == documents.kept + sum(documents.dropped.values()) > 0 and report.sources
    report.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == COMMITTED.read_bytes()


@pytest.mark.parametrize(
    "change, reported",
    [
        (lambda r: r.pop("splits"), r"\(splits: Field required\)"),
        (lambda r: r["documents"].pop("in"), r"\(documents.in: Field required\)"),
        (lambda r: r["sources"][0].update(files="2"), r"\(sources.0.files: Input should be a valid integer"),
        (lambda r: r["leakage"].update(surprise=1), r"\(leakage.surprise: Extra inputs are not permitted\)"),
    ],
)
def test_a_report_that_does_not_follow_the_schema_is_refused_with_its_key(tmp_path, change, reported):
    value = json.loads(COMMITTED.read_text())
    change(value)
    path = tmp_path / "clean.json"
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match=rf"clean.json does not follow its schema {reported}.*dvc repro clean"):
        read_cleaning(path, DataError)


def test_what_was_not_compared_is_null(tmp_path):
    value = json.loads(COMMITTED.read_text())
    value["leakage"] |= {"similar_in_training": None, "recall": None}
    assert CleaningReport.model_validate(value).to_dict() == value
