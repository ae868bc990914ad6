"""The environment of everything that the flows start: no telemetry, servers' files under `.foundry/`, the environment's own programs first."""

import os
import sys
from pathlib import Path


def project_root() -> Path:
    """The project: FOUNDRY_ROOT (set by a deployment), else the folder above this one."""
    return Path(os.environ.get("FOUNDRY_ROOT") or Path(__file__).resolve().parents[1]).resolve()


def environment(root: Path) -> dict[str, str]:
    """This process's environment with the project's settings."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    fixed = {
        "PATH": path,
        "PYTHONUNBUFFERED": "1",
        # Reading commands of git refresh its index on the way: killed then, they leave `index.lock`, which stops the user's next commit.
        "GIT_OPTIONAL_LOCKS": "0",
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "true",  # MLflow wants the word, Prefect takes it as well
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_V2_ENABLED": "false",  # its pages ask an analytics host on each load
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven more processes and 2 GB otherwise
        # Leases kept in memory are lost with the server, and healthy runs are crashed for it.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    defaults = {
        "FOUNDRY_ROOT": str(root),
        "PREFECT_HOME": str(root / ".foundry" / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }
    env = {**defaults, **os.environ, **fixed}
    Path(env["PREFECT_HOME"]).mkdir(
        parents=True, exist_ok=True
    )  # its server cannot open a database in a folder that is not there
    return env
