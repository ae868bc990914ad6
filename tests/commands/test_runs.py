"""`foundry runs`: which run belongs to which revision, and what the table says where one side is missing."""

import subprocess
import sys

import pytest

from foundry.cli import main
from foundry.commands.runs import cells, table
from foundry.config import ConfigError
from foundry.tracking.listing import Row, dvc_rows, is_current, mlflow_rows, side_by_side
from foundry.tracking.settings import connect


def revision(name, fingerprint, bits=1.5, **more):
    return Row(name=name, revision=name * 10, fingerprint=fingerprint, steps=40, val_bits_per_byte=bits, **more)


def run(run_id, fingerprint, bits=1.5, exp="", status="FINISHED"):
    return Row(
        run_id=run_id,
        run_name=f"lm-{run_id}",
        fingerprint=fingerprint,
        status=status,
        exp_name=exp,
        run_val_bits_per_byte=bits,
        steps=40,
    )


def test_a_revision_gets_the_newest_run_of_its_fingerprint_and_the_rest_comes_after():
    rows = side_by_side(
        [revision("main", "f1"), revision("old", "f1"), revision("gone", "f9")],
        [run("r2", "f1"), run("r1", "f1"), run("r3", "f3")],  # MLflow gives the newest first
    )
    assert [(r.name, r.run_id) for r in rows] == [("main", "r2"), ("old", "r2"), ("gone", ""), ("", "r1"), ("", "r3")]
    assert [r.agree for r in rows] == [True, True, None, None, None]
    assert cells(rows[2])[2] == "not in MLflow" and cells(rows[4])[0] == "-"


def test_an_experiment_is_known_by_its_fingerprint_and_while_it_trains_by_its_name():
    done = revision("done", "f2", experiment=True)
    training = Row(name="training", revision="x" * 40, experiment=True)
    rows = side_by_side(
        [done, training],
        [run("r5", "f5", exp="training", status="RUNNING"), run("r4", "f2"), run("r2", "f2", exp="done")],
    )
    assert [(r.name, r.run_id, r.status) for r in rows[:2]] == [
        ("done", "r2", "FINISHED"),
        ("training", "r5", "RUNNING"),
    ]
    assert [r.run_id for r in rows[2:]] == ["r4"]


def test_an_experiment_that_took_an_earlier_result_from_the_cache_has_that_one_s_run():
    rows = side_by_side([revision("cached", "f2", experiment=True)], [run("r4", "f2", exp="earlier")])
    assert [(r.name, r.run_id) for r in rows] == [("cached", "r4")]


def test_a_killed_run_is_not_shown_beside_the_result_of_a_later_one():
    killed = Row(run_id="r2", run_name="lm-r2", fingerprint="f1", status="KILLED", steps=12)
    rows = side_by_side([revision("main", "f1")], [killed, run("r1", "f1")])
    assert [(r.name, r.run_id, r.status, r.steps) for r in rows] == [
        ("main", "r1", "FINISHED", 40),
        ("", "r2", "KILLED", 12),
    ]
    rows = side_by_side([revision("main", "f1")], [killed])
    assert [(r.run_id, r.steps) for r in rows] == [("", 40), ("r2", 12)]
    experiment = Row(name="long", revision="x" * 40, experiment=True)
    (row,) = side_by_side([experiment], [Row(run_id="r3", fingerprint="f3", status="KILLED", steps=7, exp_name="long")])
    assert (row.status, row.steps, row.val_bits_per_byte) == ("KILLED", 7, None)


def stages(**changed):
    """`dvc.lock` of a shard, a train and an evaluate stage that fit each other."""
    lock = {
        "shard": {
            "params": {"params.yaml": {"shard": {"n": 1}}},
            "deps": [{"path": "code", "md5": "c"}],
            "outs": [{"path": "data", "md5": "d1"}],
        },
        "train": {
            "params": {"params.yaml": {"train": {"steps": 40}, "model.dim": 8}},
            "deps": [{"path": "data", "md5": "d1"}],
            "outs": [{"path": "model", "md5": "m1"}],
        },
        "evaluate": {"deps": [{"path": "model", "md5": "m1"}], "outs": []},
    }
    return {**lock, **changed}


def test_a_report_counts_only_while_it_is_of_these_parameters_and_this_data():
    params = {"shard": {"n": 1}, "train": {"steps": 40}, "model": {"dim": 8}}
    assert is_current(stages(), params) and is_current(stages(), params, "evaluate")
    assert not is_current(stages(), {**params, "train": {"steps": 44}})
    assert not is_current(stages(), {**params, "model": {"dim": 9}})
    assert not is_current(stages(), {**params, "shard": {"n": 2}})  # of a stage before it
    sharded = {**stages()["shard"], "outs": [{"path": "data", "md5": "d2"}]}
    assert not is_current(stages(shard=sharded), params)
    trained = {**stages()["train"], "outs": [{"path": "model", "md5": "m2"}]}
    assert is_current(stages(train=trained), params) and not is_current(stages(train=trained), params, "evaluate")
    assert not is_current({}, params)


def test_a_killed_run_has_the_last_step_that_it_logged(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = connect(uri)
    where = client.create_experiment("foundry", artifact_location=str(tmp_path))
    for i, status in enumerate(["FINISHED", "KILLED", "FAILED", "FINISHED", "KILLED"]):
        made = client.create_run(where, run_name=str(i), tags={"foundry.fingerprint": f"f{i}"}).info.run_id
        client.log_param(made, "train.steps", "600")
        for step in (1, 60, 120)[: 4 - i]:
            client.log_metric(made, "loss", 2.0, step=step)
        client.set_terminated(made, status)
    client.create_run(where, run_name="a sweep")
    rows = {r.run_name: r.steps for r in mlflow_rows(uri, "foundry")}
    assert rows == {"0": 600, "1": 120, "2": 60, "3": 600, "4": None}


def test_different_numbers_for_one_fingerprint_are_shown():
    (row,) = side_by_side([revision("main", "f1", bits=1.5)], [run("r1", "f1", bits=1.5001)])
    assert row.agree is False and cells(row)[5] == "1.5000 ≠ 1.5001"
    title, line = table([cells(row)])
    assert title.index("val bits/byte") == line.index("1.5000 ≠ 1.5001")


def test_without_dvc_s_project_the_runs_are_listed_and_the_missing_side_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="`dvc exp show` failed: "):
        dvc_rows()
    (tmp_path / "params.yaml").write_text(
        "download:\n  sources:\n    - {name: a, url: 'file:corpus/a.txt'}\n"
        "runtime:\n  tracking_uri: http://127.0.0.1:9\n"
    )
    with pytest.raises(SystemExit):
        main(["runs"])
    assert "dvc exp show" in (err := capsys.readouterr().err) and "http://127.0.0.1:9 did not answer" in err
    monkeypatch.setattr("foundry.tracking.listing.mlflow_rows", lambda uri, experiment: [run("r1", "f1")])
    main(["runs"])
    text = capsys.readouterr().out
    assert "lm-r1" in text and "one side is missing: `dvc exp show` failed" in text


def test_the_package_asks_dvc_by_its_command_line_and_imports_it_nowhere():
    code = (
        "import sys, foundry.tracking.listing, foundry.commands.runs\nassert not {'dvc', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
