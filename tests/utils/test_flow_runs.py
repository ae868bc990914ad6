"""The note of a flow's run: written as it is read, in the order of the keys that the file always had."""

import json

import pytest

from foundry.config import DataError
from foundry.utils.flow_runs import BuildNote, StageOutcome, TrialNote, read_note, write_note

COMMON = {"commit": "a" * 40, "isolated": True, "flow_run": "0a1b2c3d-9"}
STAGES = [
    {"stage": "train", "state": "Completed", "seconds": 2.5, "why": "forced", "message": ""},
    {"stage": "export", "state": "Failed", "seconds": "", "why": "", "message": "the reason"},
]
BUILD = {**COMMON, "name": "a name", "options": {"target": "train"}, "stages": STAGES}
TRIAL = {**COMMON, "trial": "sweep-1-0", "parameters": {"train.lr": 0.1, "model.n_layers": 2}, "metric": 1.5}


def test_a_note_is_read_as_it_was_written_and_the_bytes_are_those_of_the_plain_values(tmp_path):
    assert read_note(tmp_path) is None
    outcomes = [StageOutcome(**s) for s in STAGES]
    for note, value in ((BuildNote(**{**BUILD, "stages": outcomes}), BUILD), (TrialNote(**TRIAL), TRIAL)):
        write_note(tmp_path, note)
        assert (tmp_path / "run.json").read_text() == json.dumps(value, indent=2) + "\n"
        assert read_note(tmp_path) == note
    assert [o.completed for o in outcomes] == [True, False]


@pytest.mark.parametrize("text", ["[]", "{}", '{"commit": 1}', "{cut off", json.dumps({**TRIAL, "metric": "x"})])
def test_a_damaged_note_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(DataError, match=r"run\.json"):
        read_note(tmp_path)
