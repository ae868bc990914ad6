"""Logging of the commands and stages: plain lines on standard output, prefixed by the stage.

Standard output may be a pipe whose reader died (a killed `dvc`): writing then is silently given up, since the work must go on
to its checkpoint.
"""

from __future__ import annotations

import logging
import os
import sys


class _Handler(logging.StreamHandler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.stream.write(self.format(record) + "\n")
            self.stream.flush()
        except (BrokenPipeError, ValueError):
            self.stream = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process


def setup_logging(prefix: str = "", level: int = logging.INFO) -> logging.Logger:
    """Sends foundry's log to standard output, each line with `[prefix]`. Idempotent."""
    logger = logging.getLogger("foundry")
    logger.handlers.clear()
    handler = _Handler(sys.stdout)
    handler.setFormatter(logging.Formatter(f"[{prefix}] %(message)s" if prefix else "%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    return logger


def get_logger() -> logging.Logger:
    return logging.getLogger("foundry")


def progress(**kwargs):
    """A tqdm bar: drawn on a terminal; elsewhere (a log file, Prefect) a line every 15 seconds. FOUNDRY_PROGRESS=0 turns it off."""
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    disable = os.environ.get("FOUNDRY_PROGRESS") == "0"
    return tqdm(
        mininterval=0.2 if terminal else 15,
        ascii=None if terminal else True,
        ncols=None if terminal else 100,
        dynamic_ncols=terminal,
        disable=disable,
        **kwargs,
    )
