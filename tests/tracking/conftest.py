"""One real SQLite store for the session, in a folder with a space and non-ASCII letters: making one costs seconds."""

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
    """A store that holds nothing, to be copied by a test that needs one of its own: the session's has what other tests put there."""
    home = tmp_path_factory.mktemp("tables")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("DVC_ROOT", str(home))
        connect(f"sqlite:///{home}/.foundry/mlflow.db")
    return home / ".foundry/mlflow.db"


@pytest.fixture(scope="session")
def uri(root, tables):
    """The store is there: on a busy machine making it takes longer than a run waits for its delivery."""
    store = root / ".foundry/mlflow.db"
    store.parent.mkdir(exist_ok=True)
    shutil.copy(tables, store)
    with pytest.MonkeyPatch.context() as m:
        m.setenv("DVC_ROOT", str(root))
        connect(f"sqlite:///{store}")
    return f"sqlite:///{store}"


@pytest.fixture(autouse=True)
def project(root, monkeypatch):
    """The state folder is that of the project at `root`."""
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (root / ".foundry").mkdir(exist_ok=True)
