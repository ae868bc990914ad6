"""A toy pipeline in a folder with a space and non-ASCII letters, and one Prefect server for the session."""

import os

import pytest
from toy import make_toy


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A repository of four stages; a file `todo-NAME` makes a stage sleep, fail or die."""
    root = make_toy(tmp_path / "Größe 模型")
    monkeypatch.setenv("FOUNDRY_ROOT", str(root))
    return root


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory):
    """Prefect's own test server with a database of its own; it costs seconds, so there is one."""
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    from prefect.testing.utilities import prefect_test_harness

    import flows.pretrain  # noqa: F401 - sets the environment before prefect reads it

    with prefect_test_harness(server_startup_timeout=180):
        yield
