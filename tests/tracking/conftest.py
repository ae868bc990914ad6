"""One real SQLite store for the session, in a folder with a space and non-ASCII letters: making one costs seconds."""

import pytest

from foundry.tracking.settings import connect


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("track") / "Größe 模型"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def uri(root):
    """The store is there: on a busy machine making it takes longer than a run waits for its delivery."""
    with pytest.MonkeyPatch.context() as m:
        m.setenv("DVC_ROOT", str(root))
        connect(f"sqlite:///{root}/.foundry/mlflow.db")
    return f"sqlite:///{root}/.foundry/mlflow.db"


@pytest.fixture(autouse=True)
def project(root, monkeypatch):
    """The state folder is that of the project at `root`."""
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (root / ".foundry").mkdir(exist_ok=True)
