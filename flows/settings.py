"""The environment of everything that the flows start.

No telemetry, the servers' files under `.foundry/`, and the programs of this Python environment before others.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from foundry.config import MissingPackageError


def project_root() -> Path:
    """The project: FOUNDRY_ROOT, which a deployment sets, or else the folder that contains `flows/`."""
    return Path(os.environ.get("FOUNDRY_ROOT") or Path(__file__).resolve().parents[1]).resolve()


def environment(root: Path) -> dict[str, str]:
    """This process's environment with the project's settings.

    Raises:
        MissingPackageError: if Prefect is not installed.
    """
    if find_spec("prefect") is None:
        raise MissingPackageError("prefect", "ui")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    fixed = {
        "PATH": path,
        "PYTHONUNBUFFERED": "1",
        # Commands of git that only read refresh its index as well; one that is killed while it does so leaves
        # `index.lock`, and the user's next commit fails.
        "GIT_OPTIONAL_LOCKS": "0",
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "true",  # MLflow needs the word, Prefect accepts it as well
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_V2_ENABLED": "false",  # its pages ask an analytics host on each load
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven more processes and 2 GB otherwise
        # Leases kept in memory are lost with the server, and healthy runs crash because of it.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    defaults = {
        "FOUNDRY_ROOT": str(root),
        "PREFECT_HOME": str(root / ".foundry" / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }
    env = {**defaults, **os.environ, **fixed}
    # Prefect's server cannot open a database in a folder that does not exist.
    Path(env["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    return env
