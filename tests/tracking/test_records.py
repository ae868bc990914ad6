"""Files and tags that one process writes and another reads: the same bytes as ever, and one clear error if damaged."""

import json

import pytest

from foundry.config import FoundryError
from foundry.tracking import DatasetRef
from foundry.tracking.address import RunRef
from foundry.tracking.backup import BackedUpModel, BackedUpRun, BackedUpVersion, Registry, _known
from foundry.tracking.delivery import RUN, RunSpec
from foundry.tracking.promotion import Champion, line_as_text
from foundry.tracking.spool import Logged, Return, parse_line
from foundry.utils.files import write_json

SPEC = {
    "uri": "sqlite:///.foundry/mlflow.db",
    "experiment": "e",
    "run_name": "r",
    "fingerprint": "f",
    "params": {"train.lr": "0.1"},
    "tags": {"b": "模型", "a": "1"},
    "datasets": [{"name": "data/shards", "digest": "d", "path": "data/shards", "context": "train"}],
    "key": "k",
    "home": "",
}


def test_a_run_is_recorded_under_the_same_keys_in_the_same_order(tmp_path, root):
    data = [DatasetRef(name="data/shards", digest="d", path="data/shards")]
    uri = f"sqlite:///{root}/.foundry/mlflow.db"
    spec = RunSpec(**{**SPEC, "uri": uri, "datasets": data})
    spec.save(tmp_path)
    assert (tmp_path / RUN).read_text(encoding="utf-8") == json.dumps(SPEC, indent=2, ensure_ascii=False) + "\n"
    assert RunSpec.load(tmp_path) == spec
    RunRef(uri=uri, run_id="7").save(tmp_path / "id.json")
    assert json.loads((tmp_path / "id.json").read_text()) == {"uri": SPEC["uri"], "run_id": "7"}
    assert RunRef.load(tmp_path / "id.json") == RunRef(uri=uri, run_id="7")


def test_a_backup_lists_models_under_the_same_keys_in_the_same_order(tmp_path):
    run = BackedUpRun(params={"a": "1"}, metrics={"loss": 0.5}, tags={})
    version = BackedUpVersion(
        version="1", description=None, tags={}, run_id="r", created=5, source="s3://x 1f", run=run
    )
    lost = version.model_copy(update={"version": "2", "run": None})
    model = BackedUpModel(name="lm", description="d", tags={}, aliases={"champion": 1}, versions=[version, lost])
    value = Registry(uri="http://x", models=[model]).model_dump()
    rows = [
        {"version": "1", "description": None, "tags": {}, "run_id": "r", "created": 5, "source": "s3://x 1f"},
        {"version": "2", "description": None, "tags": {}, "run_id": "r", "created": 5, "source": "s3://x 1f"},
    ]
    rows[0]["run"], rows[1]["run"] = {"params": {"a": "1"}, "metrics": {"loss": 0.5}, "tags": {}}, None
    known = {"name": "lm", "description": "d", "tags": {}, "aliases": {"champion": 1}, "versions": rows}
    assert json.dumps(value) == json.dumps({"uri": "http://x", "models": [known]})
    write_json(tmp_path / "registry.json", value)
    assert _known(tmp_path) == {("lm", "1"): "s3://x 1f", ("lm", "2"): "s3://x 1f"}


@pytest.mark.parametrize("text", ["", "{cut", "[]", "7", "null", "{}", '{"uri": 1}', '{"uri": "x", "models": [1]}'])
@pytest.mark.parametrize(("name", "read"), [(RUN, RunSpec.load), ("registry.json", _known)])
def test_a_damaged_record_is_an_error_that_names_the_file(tmp_path, name, read, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(FoundryError, match=name):
        read(tmp_path)


def test_lines_of_the_spool_and_of_champions_are_written_as_ever_and_read_back():
    point, back = Logged(5, 2, {"loss": 0.5}), Return(1, 6)
    assert (point.line(), back.line()) == (b'{"t": 5, "s": 2, "m": {"loss": 0.5}}\n', b'{"back": 1, "t": 6}\n')
    assert [parse_line(record.line()) for record in (point, back)] == [point, back]
    assert [parse_line(line) for line in (b'{"t": 5, "s"', b"7\n", b"[]\n", b'{"t": 1, "s": 2, "m": 3}\n')] == [
        None
    ] * 4
    line = line_as_text([Champion("3", "größer", "Ada", "today")])
    assert line == '[{"version": "3", "why": "größer", "who": "Ada", "when": "today"}]'
