"""What the tests of the clean stage share: a run on sources of the current folder, and its results read back."""

import hashlib
import json
import logging
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from foundry.config import DataError, parse_config
from foundry.data.clean.corpus import clean
from foundry.data.fetch.download import download
from foundry.data.splits import SPLITS

LOG = logging.getLogger("foundry")
RAW, OUT, FIELDS, REPORTS = Path("data/raw"), Path("data/clean"), Path("data/fields"), Path("reports")
MINE = {"name": "mine", "url": "file:corpus/*.jsonl", "lang": "en", "license": "CC0-1.0", "attribution": "me"}


def run(*sources, runtime=None, **rules):
    """Downloads and cleans in one process unless `runtime` says otherwise; returns the report as JSON."""
    config = parse_config(
        {"download": {"sources": list(sources)}, "clean": rules, "runtime": {"workers": 1, **(runtime or {})}}
    )
    download(config, RAW, LOG)
    return clean(config.clean, config.runtime, RAW, OUT, FIELDS, REPORTS, LOG).to_dict()


def rows(split=None):
    return [
        r
        for s in SPLITS
        if split in (None, s)
        for p in sorted((OUT / s).iterdir())
        for r in pq.read_table(p).to_pylist()
    ]


def texts():
    return [r["text"] for r in rows()]


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def rejected():
    return lines(REPORTS / "rejected.jsonl")


def quarantined():
    return lines(OUT / "quarantine.jsonl")


def digests():
    return {
        p.as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for f in (OUT, FIELDS, REPORTS)
        for p in sorted(f.rglob("*"))
        if p.is_file()
    }


def refused(message, *sources, **rules):
    """The error of a run that must leave nothing behind."""
    with pytest.raises(DataError, match=message) as e:
        run(*sources, **rules)
    assert not OUT.exists() and not (REPORTS / "clean.json").exists()
    return str(e.value)
