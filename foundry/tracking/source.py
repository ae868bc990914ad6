"""Who started a run, from which program, by which command: the columns Source and Created by of MLflow's pages."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import psutil

from foundry.tracking.names import COMMAND
from foundry.tracking.promotion import whoami
from foundry.utils.files import project_dir

PROGRAMS = ("dvc", "foundry", "make", "pytest")  # their name says more than that of the interpreter
LONGEST = 2000  # characters of a command line


def source_tags() -> dict[str, str]:
    """MLflow's own tags for the source and the user, and the command line (DVC's, if DVC started this process)."""
    return {
        "mlflow.source.name": _program(sys.argv[0]),
        "mlflow.source.type": "LOCAL",
        "mlflow.user": whoami(),
        COMMAND: command_line()[:LONGEST],
    }


def command_line() -> str:
    """What was typed: the nearest `dvc` among the parents of this process, else this process; programs without their
    folders.
    """
    try:
        me = psutil.Process()
        lines = [p.cmdline() for p in (me, *me.parents())]
    except psutil.Error:  # a container that hides its processes
        lines = [[sys.executable, *sys.argv]]
    return next((text for line in lines if (text := _plain(line)).split(" ")[0] == "dvc"), _plain(lines[0]))


def _plain(line: list[str]) -> str:
    """Turns `/usr/bin/python3 -m dvc repro` and `/usr/bin/python3 /usr/bin/dvc repro` into `dvc repro`."""
    words = list(line)
    if words and Path(words[0]).name.startswith("python"):
        for i, skipped in ((1, 2), (0, 1)):
            if len(words) > i + 1 and Path(words[i + 1]).name in PROGRAMS and (i == 0 or words[1] == "-m"):
                words = words[skipped:]
                break
    return shlex.join([Path(words[0]).name, *words[1:]]) if words else ""


def _program(path: str) -> str:
    """A file of the project by its relative path, any other file by its name."""
    file = Path(path).resolve()
    return str(file.relative_to(project_dir())) if file.is_relative_to(project_dir()) else file.name
