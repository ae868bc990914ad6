"""The commands find their project as git does, and a typed path means what it means where it was typed."""

from pathlib import Path

import pytest

from foundry import cli
from foundry.commands.arguments import project_of_here

PARAMS = "seed: SEED\ndownload: {sources: [{name: one, url: 'file:corpus/x'}]}\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    root = tmp_path / "project"
    (root / "data/deep").mkdir(parents=True)
    (root / "params.yaml").write_text(PARAMS.replace("SEED", "1"))
    (root / "dvc.yaml").write_text("stages: {}\n")
    return root


def run(capsys, *args):
    code = 0
    try:
        cli.main(list(args))
    except SystemExit as e:
        code = e.code or 0
    return code, *capsys.readouterr()


def test_a_command_below_the_project_works_in_the_project_and_leaves_the_folder_as_it_was(project, monkeypatch, capsys):
    monkeypatch.chdir(project / "data/deep")
    assert project_of_here() == project
    code, out, _ = run(capsys, "check")
    assert code == 0 and out.startswith("params.yaml: every key is known")
    assert Path.cwd() == project / "data/deep"
    assert not (project / "data/deep/.foundry").exists()


def test_a_folder_with_parameters_of_its_own_is_a_project_and_outside_of_one_nothing_is_searched(
    project, monkeypatch, capsys
):
    (project / "data/params.yaml").write_text("x: [")
    monkeypatch.chdir(project / "data")
    assert run(capsys, "check")[0] == 1  # its own, which is no valid file
    monkeypatch.chdir(project / "data/deep")  # above it is no dvc.yaml, so the project is the one further up
    assert project_of_here() == project
    (project / "dvc.yaml").unlink()
    assert project_of_here() == project / "data/deep"
    code, _, err = run(capsys, "check")
    assert code == 1 and "params.yaml does not exist: run the command in the project's folder" in err


def test_the_folder_that_dvc_names_is_not_left(project, monkeypatch):
    monkeypatch.chdir(project / "data/deep")
    monkeypatch.setenv("DVC_ROOT", str(project))
    assert project_of_here() == project / "data/deep"


def test_a_typed_path_is_relative_to_where_it_was_typed_and_a_default_to_the_project(project, monkeypatch, capsys):
    (project / "data/mine.yaml").write_text(PARAMS.replace("SEED", "-1"))
    monkeypatch.chdir(project / "data/deep")
    code, _, err = run(capsys, "check", "--params", "../mine.yaml")
    assert code == 1 and "data/mine.yaml has 1 problem" in err
    assert run(capsys, "check", "--params", "params.yaml")[0] == 0  # none here: the project's
    seen = cli.parser().parse_args(["compare", "../mine.yaml", "HEAD~1", "--seeds", "../mine.yaml", "models:/a@b"])
    assert (seen.a, seen.b, seen.seeds) == ("data/mine.yaml", "HEAD~1", ["data/mine.yaml", "models:/a@b"])
    assert cli.parser().parse_args(["backup", "new"]).folder == "data/deep/new"
    assert cli.parser().parse_args(["backup", str(project / "new")]).folder == "new"
    (project / "data/deep/artifacts/export").mkdir(parents=True)
    assert cli.parser().parse_args(["trace"]).where == "artifacts/export"
    assert cli.parser().parse_args(["trace", "artifacts/export"]).where == "data/deep/artifacts/export"


def test_paths_are_as_typed_in_the_project_itself(project, monkeypatch):
    monkeypatch.chdir(project)
    for text in ("data", "./data", str(project / "data"), "nothing"):
        assert cli.parser().parse_args(["verify", text]).where == text
        assert cli.parser().parse_args(["backup", text]).folder == text


def test_every_argument_that_names_a_path_is_typed():
    """An argument that somebody adds as a path is found by its words."""
    import argparse

    from foundry.commands.arguments import TypedPath

    (commands,) = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    words = ("folder", "file")
    untyped = [
        f"{name} {action.dest}"
        for name, sub in commands.choices.items()
        for action in sub._actions
        if action.nargs != 0
        and not isinstance(action, TypedPath)
        and any(w in f"{action.dest} {action.help}" for w in words)
    ]
    assert untyped == ["profile name", "plan profile"]  # they speak of the profile in the file
