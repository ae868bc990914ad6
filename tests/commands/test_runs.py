"""`foundry runs`: which run belongs to which revision, and what the table says where one side is missing."""

import subprocess
import sys

import pytest

from foundry.cli import main
from foundry.commands.runs import cells, table
from foundry.config import ConfigError
from foundry.tracking.listing import Row, dvc_rows, side_by_side


def revision(name, fingerprint, bits=1.5, **more):
    return Row(name=name, revision=name * 10, fingerprint=fingerprint, steps=40, val_bits_per_byte=bits, **more)


def run(run_id, fingerprint, bits=1.5, exp="", status="FINISHED"):
    return Row(
        run_id=run_id, run_name=f"lm-{run_id}", fingerprint=fingerprint, status=status, exp_name=exp, run_val_bits_per_byte=bits, steps=40
    )  # fmt: skip


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


def test_different_numbers_for_one_fingerprint_are_shown():
    (row,) = side_by_side([revision("main", "f1", bits=1.5)], [run("r1", "f1", bits=1.5001)])
    assert row.agree is False and cells(row)[5] == "1.5000 ≠ 1.5001"
    title, line = table([cells(row)])
    assert title.index("val bits/byte") == line.index("1.5000 ≠ 1.5001")


def test_without_dvc_s_project_the_runs_are_listed_and_the_missing_side_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="`dvc exp show` failed: "):
        dvc_rows()
    (tmp_path / "params.yaml").write_text(
        "download:\n  sources:\n    - {name: a, url: 'file:corpus/a.txt'}\nruntime:\n  tracking_uri: http://127.0.0.1:9\n"
    )
    with pytest.raises(SystemExit):
        main(["runs"])
    assert "dvc exp show" in (told := capsys.readouterr().err) and "http://127.0.0.1:9 did not answer" in told
    monkeypatch.setattr("foundry.tracking.listing.mlflow_rows", lambda uri, experiment: [run("r1", "f1")])
    main(["runs"])
    text = capsys.readouterr().out
    assert "lm-r1" in text and "one side is missing: `dvc exp show` failed" in text


def test_the_package_asks_dvc_by_its_command_line_and_imports_it_nowhere():
    code = (
        "import sys, foundry.tracking.listing, foundry.commands.runs\nassert not {'dvc', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
