"""One real SQLite store for the session, in a folder with a space and non-ASCII letters: making one costs seconds."""

import pytest


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("track") / "Größe 模型"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def uri(root):
    return f"sqlite:///{root}/.foundry/mlflow.db"


@pytest.fixture(autouse=True)
def project(root, monkeypatch):
    """The state folder is that of the project at `root`."""
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (root / ".foundry").mkdir(exist_ok=True)
