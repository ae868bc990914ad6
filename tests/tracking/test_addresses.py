"""Addresses of MLflow: every folder name works, relative addresses belong to the project, impossible ones are refused.

The error for an impossible address has the right form.
"""

from pathlib import Path

import pytest

from foundry.cli import main
from foundry.config import ConfigError, Runtime
from foundry.tracking import tracking_uri
from foundry.tracking.address import portable, resolve, sqlite_path, sqlite_uri
from foundry.tracking.settings import connect, experiment_id

ODD = ("a?b=c&d/e f", "50%20 off", "#1", "Größe 模型", "file:x", "[a]*", "a;b", "'q\"")


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", ODD)
def test_an_address_of_any_folder_names_its_file_and_is_kept_relative(project, name):
    path = project / name / "mlflow.db"
    assert sqlite_path(sqlite_uri(path)) == path and resolve(sqlite_uri(path)) == sqlite_uri(path)
    kept = portable(sqlite_uri(path))
    assert str(project) not in kept and resolve(kept) == sqlite_uri(path)


def test_a_store_in_an_oddly_named_folder_takes_and_gives_back_files_and_makes_no_other_folder(
    project, tables, monkeypatch
):
    """All odd characters are tested at once; the store's tables are copied, because creating them takes seconds."""
    import shutil

    import mlflow

    home = project / "".join(name.replace("/", "") for name in ODD)
    (home / ".foundry").mkdir(parents=True)
    shutil.copy(tables, home / ".foundry/mlflow.db")
    monkeypatch.setenv("DVC_ROOT", str(home))
    before = set(Path.cwd().iterdir())
    own = tracking_uri(Runtime(), home)
    client = connect(own)
    run = client.create_run(experiment_id(client, own, "odd")).info.run_id
    (project / "f.txt").write_text("hello")
    client.log_artifact(run, str(project / "f.txt"))
    got = mlflow.artifacts.download_artifacts(run_id=run, artifact_path="f.txt", tracking_uri=own)
    assert Path(got).read_text() == "hello"
    (stored,) = project.rglob("artifacts/f.txt")
    assert stored.is_relative_to(home / ".foundry/mlartifacts") and set(Path.cwd().iterdir()) == before
    assert {p.name for p in project.iterdir()} == {home.name, "f.txt"}


@pytest.mark.parametrize("where", ["parameter", "environment"])
def test_a_relative_address_is_the_projects_whatever_the_current_folder_is(project, monkeypatch, where):
    (project / "inner").mkdir()
    monkeypatch.chdir(project / "inner")
    address = "sqlite:///sub/mlflow.db"  # the form that MLflow's own message recommends
    if where == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    found = tracking_uri(Runtime(tracking_uri=address if where == "parameter" else None))
    assert found == f"sqlite:///{project}/sub/mlflow.db"
    assert portable(found) == address
    assert resolve("sqlite:///.foundry/mlflow.db") == f"sqlite:///{project}/.foundry/mlflow.db"


def test_a_flows_worktree_has_the_address_of_its_project(project, monkeypatch):
    tree = project / ".foundry/runs/one/tree"
    tree.mkdir(parents=True)
    (tree / ".foundry").symlink_to(project / ".foundry")
    monkeypatch.setenv("DVC_ROOT", str(tree))
    assert resolve("sqlite:///mlflow.db") == f"sqlite:///{project}/mlflow.db"
    assert portable(f"sqlite:///{project}/.foundry/mlflow.db") == "sqlite:///.foundry/mlflow.db"


def test_a_state_folder_that_is_a_link_to_another_disk_does_not_move_the_project(project, tmp_path_factory):
    disk = tmp_path_factory.mktemp("disk") / "state"
    disk.mkdir()
    (project / ".foundry").symlink_to(disk)
    assert resolve("sqlite:///mlflow.db") == f"sqlite:///{project}/mlflow.db"
    assert tracking_uri(Runtime()) == f"sqlite:///{disk}/mlflow.db"
    assert portable(tracking_uri(Runtime())) == "sqlite:///.foundry/mlflow.db"


def test_options_of_an_address_and_databases_stay():
    assert resolve("sqlite:////tmp/x.db?timeout=5") == "sqlite:////tmp/x.db?timeout=5"
    for uri in ("postgresql+psycopg2://me:pw@host/db", "http://127.0.0.1:5000", "https://host/base", "databricks"):
        assert resolve(uri) == uri == portable(uri)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("sqlite://mlflow.db", "write sqlite:///mlflow.db"),
        ("sqlite:mlflow.db", "write sqlite:///mlflow.db"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "lost when the process ends"),
        ("sqlite:////a/b?c/mlflow.db", "sqlite+pysqlite:///file:/a/b%3Fc/mlflow.db"),
        ("sqlite:////tmp", "is a folder; name a file in it, such as sqlite:////tmp/mlflow.db"),
        ("./mlruns", "is a folder"),
        ("file:///tmp/mlruns", "is a folder"),
        ("mlflow.db", "write sqlite:///mlflow.db"),
        ("ftp://x", "write sqlite:///mlflow.db"),
        ("http://", "names no host"),
        ("http://[::1", "not an address of MLflow"),
        ("http://a b", "not an address of MLflow"),
        ("localhost:5000", "http://HOST:PORT"),
    ],
)
def test_check_refuses_an_address_that_can_never_work_and_names_the_right_form(
    project, monkeypatch, capsys, uri, words
):
    import json

    text = "download: {sources: [{name: one, url: 'file:corpus/x'}]}\nruntime: {tracking_uri: %s}\n"
    (project / "params.yaml").write_text(text % json.dumps(uri))
    monkeypatch.chdir(project)
    with pytest.raises(ConfigError) as e:
        tracking_uri(Runtime(tracking_uri=uri))
    assert words in str(e.value) and "runtime.tracking_uri" in str(e.value)
    with pytest.raises(SystemExit):
        main(["check"])
    assert words in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        tracking_uri(Runtime())
