"""`reports/train.json` has one schema: the committed report is read and written again byte for byte."""

import json
from pathlib import Path

import pytest

from foundry.config import DataError
from foundry.models.training_report import TrainingReport, read_training

COMMITTED = Path(__file__).resolve().parents[2] / "reports/train.json"


def test_the_committed_report_is_read_and_written_again_byte_for_byte(tmp_path):
    report = read_training(COMMITTED)
    assert report.skipped_batches is None and report.tokens == report.steps * report.tokens_per_step
    report.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == COMMITTED.read_bytes()


def test_skipped_batches_are_between_the_facts_and_the_losses(tmp_path):
    value = json.loads(COMMITTED.read_text())
    skipped = [{"step": 3, "reason": "spike", "batches": [1, 2]}]
    report = TrainingReport.model_validate({**value, "skipped_batches": skipped})
    report.write(tmp_path / "train.json")
    again = json.loads((tmp_path / "train.json").read_text())
    assert again == {**value, "skipped_batches": skipped}
    keys = list(again)
    assert keys[keys.index("skipped_batches") - 1 :][:3] == ["index_sha256", "skipped_batches", "loss"]


def test_a_report_without_a_number_is_refused_with_its_name(tmp_path):
    value = json.loads(COMMITTED.read_text())
    del value["val_bits_per_byte"]
    (tmp_path / "train.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match=r"schema \(val_bits_per_byte: Field required\).*dvc repro train"):
        read_training(tmp_path / "train.json", DataError)
