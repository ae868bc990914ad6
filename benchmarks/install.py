"""Installation into a new environment with empty caches: what `make repro` needs by uv, against everything by pip.

    python -m benchmarks.install [--rounds 2] [--side repro,uv] [--side dev,pip] ...

A side is an extra of pyproject.toml and an installer; its ratio is to the last one. A turn is what the first
`make repro` or `make test` does on a bare machine: it creates the environment and calls `scripts.install`. Most of the
time goes to the network, so that figures of different days cannot be compared. The megabytes are those of the
environment. pip compiles what it installs, uv only if PYTHONDONTWRITEBYTECODE is set.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
import venv
from pathlib import Path
from typing import NamedTuple

from benchmarks.rounds import SECONDS, add_rounds, take_turns

DEFAULT = ("repro,uv", "dev,uv", "dev,pip")


class Turn(NamedTuple):
    seconds: float
    megabytes: float


def turn(extra: str, installer: str) -> Turn:
    """Installs an extra into an environment that is deleted afterwards.

    Raises:
        CalledProcessError: if a command failed.
    """
    with tempfile.TemporaryDirectory(prefix="foundry-install-") as folder:
        environment, caches = Path(folder, "venv"), Path(folder, "caches")
        env = {**os.environ, "PIP_CACHE_DIR": str(caches / "pip"), "UV_CACHE_DIR": str(caches / "uv")}
        begin = time.perf_counter()
        venv.create(environment, symlinks=True, with_pip=True)
        command = [str(environment / "bin/python"), "-m", "scripts.install", "--installer", installer, extra]
        subprocess.run(command, env=env, check=True)
        seconds = time.perf_counter() - begin
        return Turn(seconds, sum(f.lstat().st_blocks for f in environment.rglob("*")) * 512 / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", action="append", metavar="EXTRA,INSTALLER", help=f"default: {' '.join(DEFAULT)}")
    add_rounds(parser, 2)
    args = parser.parse_args()
    sides = [tuple(s.split(",")) for s in args.side or DEFAULT]
    done = take_turns(
        {f"{e}, {i}": lambda e=e, i=i: turn(e, i) for e, i in sides}, args.rounds, SECONDS, lambda t: t.seconds
    )
    notes = {side: f"{results[0].megabytes:,.0f} MB" for side, results in done.results.items()}
    done.print("installation", base=", ".join(sides[-1]), notes=notes)


if __name__ == "__main__":
    main()
