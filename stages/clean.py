"""Stage clean: data/raw/ → checked, deduplicated documents in three splits in data/clean/, and reports about them."""

from __future__ import annotations

import logging
from pathlib import Path

from foundry.config import Config
from foundry.data.clean.corpus import clean
from foundry.utils.stage import run_stage


def work(config: Config, log: logging.Logger) -> None:
    clean(config.clean, config.runtime, Path("data/raw"), Path("data/clean"), Path("reports"), log)


def main() -> None:
    run_stage("clean", work)


if __name__ == "__main__":
    main()
