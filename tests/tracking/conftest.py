"""One real SQLite store for the session, in a folder with a space and non-ASCII letters: creating one takes seconds."""

import shutil

import pytest

from foundry.tracking.settings import connect


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("track") / "Größe 模型"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """An empty store, for tests to copy that need one of their own: that of the session has what other tests wrote."""
    home = tmp_path_factory.mktemp("tables")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("DVC_ROOT", str(home))
        connect(f"sqlite:///{home}/.foundry/mlflow.db")
    return home / ".foundry/mlflow.db"


@pytest.fixture(scope="session")
def uri(root, tables):
    """The session's store exists: on a busy machine its creation takes longer than a run waits for its delivery."""
    store = root / ".foundry/mlflow.db"
    store.parent.mkdir(exist_ok=True)
    shutil.copy(tables, store)
    with pytest.MonkeyPatch.context() as m:
        m.setenv("DVC_ROOT", str(root))
        connect(f"sqlite:///{store}")
    return f"sqlite:///{store}"


@pytest.fixture(autouse=True)
def project(root, monkeypatch):
    """Makes `root` the project, so that its `.foundry` is the state folder."""
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (root / ".foundry").mkdir(exist_ok=True)
