"""Stage clean: data/raw/ → checked, deduplicated documents in data/clean/, fields in data/fields/, and reports."""

from __future__ import annotations

import logging
from pathlib import Path

from foundry.config import Config
from foundry.data.clean.corpus import clean
from foundry.utils.stage import run_stage


def work(config: Config, log: logging.Logger) -> None:
    clean(config.clean, config.runtime, Path("data/raw"), Path("data/clean"), Path("data/fields"), Path("reports"), log)


def main() -> None:
    run_stage("clean", work)


if __name__ == "__main__":
    main()
