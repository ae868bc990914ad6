"""What every stage has in common: parameters, timing, and errors that a user can read.

Timings go to `.foundry/timings.jsonl`, never into an out.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from foundry.config import Config, FoundryError, UnreachableError, load_params
from foundry.utils.extras import missing_package
from foundry.utils.files import state_dir
from foundry.utils.log import setup_logging
from foundry.utils.process import die_with_parent


def _process_age() -> float:
    """Seconds since this process was started, including the start of the interpreter."""
    try:
        fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return time.process_time()


def run_stage(name: str, work: Callable[[Config, logging.Logger], None]) -> None:
    """Checks all parameters, then calls `work(config, log)`.

    An error that the user can fix (`FoundryError`) is printed without a traceback; the exit code is 1, or 75
    (EX_TEMPFAIL of sysexits.h) if a retry may succeed. Ctrl-C exits with 130; every other exception keeps its
    traceback.
    """
    die_with_parent()
    startup = _process_age()
    rank = os.environ.get("RANK")  # set in each process of a training with several
    log = setup_logging(name, logging.INFO if rank in (None, "0") else logging.WARNING)
    begin = time.perf_counter()
    try:
        work(load_params(), log)
    except FoundryError as e:
        print(f"error in stage {name}: {e}", file=sys.stderr, flush=True)
        raise SystemExit(os.EX_TEMPFAIL if isinstance(e, UnreachableError) else 1) from None
    except ModuleNotFoundError as e:
        if (missing := missing_package(e)) is None:
            raise
        print(f"error in stage {name}: {missing}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"stage {name} was stopped by Ctrl-C; the same command runs it again", file=sys.stderr, flush=True)
        raise SystemExit(128 + signal.SIGINT) from None
    if rank is not None:
        return
    seconds = time.perf_counter() - begin
    log.info("done in %.1f s (start-up %.1f s)", seconds, startup)
    timings = state_dir() / "timings.jsonl"
    timings.parent.mkdir(parents=True, exist_ok=True)
    with open(timings, "a", encoding="utf-8") as f:
        f.write(json.dumps({"stage": name, "startup_s": round(startup, 3), "work_s": round(seconds, 3)}) + "\n")
