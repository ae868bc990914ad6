"""Logging of the commands and stages: plain lines on standard output, with the stage as prefix.

Standard output may be a pipe whose reader has died (a killed `dvc`). Log lines are then dropped silently, because the
work has to continue until its checkpoint.
"""

from __future__ import annotations

import logging
import os
import sys


class _Handler(logging.StreamHandler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")  # a progress bar has to be cleared while a line is printed
        try:
            if tqdm:
                tqdm.tqdm.write(self.format(record), file=self.stream)
            else:
                self.stream.write(self.format(record) + "\n")
            self.stream.flush()
        except (BrokenPipeError, ValueError):
            self.stream = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process


class _Lines:
    """Standard error that is not a terminal: each state of a progress bar becomes a line."""

    def write(self, text: str) -> None:
        if text := text.strip("\r\n "):
            try:
                sys.stderr.write(text + "\n")
            except BrokenPipeError:
                sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process

    def flush(self) -> None:
        sys.stderr.flush()


def setup_logging(prefix: str = "", level: int = logging.INFO) -> logging.Logger:
    """Sends Foundry's log to standard output, each line with `[prefix]`. May be called again."""
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
    """A tqdm bar: drawn on a terminal; elsewhere (a log file, Prefect) a line every 15 seconds.

    FOUNDRY_PROGRESS=0 turns it off.
    """
    from tqdm import tqdm

    disable = os.environ.get("FOUNDRY_PROGRESS") == "0"
    if sys.stderr.isatty():
        return tqdm(mininterval=0.2, dynamic_ncols=True, disable=disable, **kwargs)
    return tqdm(mininterval=15, ascii=True, ncols=160, disable=disable, file=_Lines(), **kwargs)
