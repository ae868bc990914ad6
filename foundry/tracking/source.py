"""Who started a run, from which program, with which command: the columns Source and Created by of MLflow's pages."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import psutil

from foundry.tracking.names import COMMAND
from foundry.tracking.promotion import whoami
from foundry.utils.files import project_dir

PROGRAMS = ("dvc", "foundry", "make", "pytest")  # whose name says more than that of the interpreter


def source_tags() -> dict[str, str]:
    """MLflow's own tags for the source and the user, and the command line: DVC's, where DVC started this process."""
    return {
        "mlflow.source.name": _program(sys.argv[0]),
        "mlflow.source.type": "LOCAL",
        "mlflow.user": whoami(),
        COMMAND: command_line()[:2000],
    }


def command_line() -> str:
    """What was typed: the nearest `dvc` among this process's parents, else this process, without the folders of programs."""
    try:
        me = psutil.Process()
        lines = [p.cmdline() for p in (me, *me.parents())]
    except psutil.Error:  # a container that hides its processes
        lines = [[sys.executable, *sys.argv]]
    return next((text for line in lines if (text := _plain(line)).split(" ")[0] == "dvc"), _plain(lines[0]))


def _plain(line: list[str]) -> str:
    """`/usr/bin/python3 -m dvc repro` and `/usr/bin/python3 /usr/bin/dvc repro` are `dvc repro`."""
    words = list(line)
    if words and Path(words[0]).name.startswith("python"):
        for i, skipped in ((1, 2), (0, 1)):
            if len(words) > i + 1 and Path(words[i + 1]).name in PROGRAMS and (i == 0 or words[1] == "-m"):
                words = words[skipped:]
                break
    return shlex.join([Path(words[0]).name, *words[1:]]) if words else ""


def _program(path: str) -> str:
    """A file of the project by its relative path, another one by its name."""
    file = Path(path).resolve()
    return str(file.relative_to(project_dir())) if file.is_relative_to(project_dir()) else file.name
