"""`reports/evaluate.json` has one schema: a report is read and written byte for byte, or refused with its key."""

import json
from pathlib import Path

import pytest

from foundry.config import DataError
from foundry.utils.evaluation_report import EvaluationReport, HarnessMetric, HarnessScore, read_evaluation

COMMITTED = Path(__file__).resolve().parents[2] / "reports/evaluate.json"


def test_the_committed_report_is_read_and_written_again_byte_for_byte(tmp_path):
    report = read_evaluation(COMMITTED)
    assert report.test.bits_per_byte.low < report.test.bits_per_byte.value < report.test.bits_per_byte.high
    assert report.tasks and report.contamination and report.ppmd and report.harness is None
    report.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == COMMITTED.read_bytes()


def test_what_was_not_measured_is_absent_and_what_does_not_exist_is_null(tmp_path):
    value = json.loads(COMMITTED.read_text())
    for name in ("contamination", "baselines", "uniform"):
        del value[name]
    value["test"]["not_in_training"] = None
    report = EvaluationReport.model_validate(value)
    assert report.contamination is None and report.ppmd is None
    assert report.to_dict() == value and list(report.to_dict()) == list(value)


def test_metrics_of_the_harness_are_beside_the_number_of_examples():
    score = HarnessScore(n=2, acc=HarnessMetric(value=0.5, stderr=None), acc_norm={"value": 0.25, "stderr": 0.1})
    assert list(score.metrics) == ["acc", "acc_norm"] and score.metrics["acc_norm"].stderr == 0.1
    row = {"n": 2, "acc": {"value": 0.5, "stderr": None}, "acc_norm": {"value": 0.25, "stderr": 0.1}}
    assert score.model_dump(exclude_unset=True) == row and HarnessScore.model_validate(row) == score


@pytest.mark.parametrize(
    "change, reported",
    [
        (lambda r: r.pop("test"), r"\(test: Field required\)"),
        (lambda r: r["test"]["bits_per_byte"].pop("low"), r"\(test.bits_per_byte.low: Field required\)"),
        (lambda r: r["test"].update(documents="many"), r"\(test.documents: Input should be a valid integer"),
        (lambda r: r.update(surprise=1), r"\(surprise: Extra inputs are not permitted\)"),
        (lambda r: r["tasks"]["cloze"].update(score=float("nan")), r"\(tasks.cloze.score: Input should be a finite"),
    ],
)
def test_a_report_that_does_not_follow_the_schema_is_refused_with_its_key(tmp_path, change, reported):
    value = json.loads(COMMITTED.read_text())
    change(value)
    path = tmp_path / "evaluate.json"
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match=rf"evaluate.json does not follow its schema {reported}.*dvc repro evaluate"):
        read_evaluation(path, DataError)
    with pytest.raises(DataError, match=r"none\.json does not exist: the evaluation"):
        read_evaluation(tmp_path / "none.json", DataError)
