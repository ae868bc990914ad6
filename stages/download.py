"""Stage download: the bytes of every source as published, and a manifest of them → data/raw/."""

from __future__ import annotations

import logging
from pathlib import Path

from foundry.config import Config
from foundry.data.fetch.download import download
from foundry.utils.stage import run_stage


def work(config: Config, log: logging.Logger) -> None:
    download(config, Path("data/raw"), log)


def main() -> None:
    run_stage("download", work)


if __name__ == "__main__":
    main()
