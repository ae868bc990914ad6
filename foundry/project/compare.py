"""Comparing any two models: the one function behind `foundry compare`. Joins evaluation, export and tracking."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from foundry.config import Config, ConfigError, DataError
from foundry.config.section import short_repr
from foundry.evaluation.compare import Comparison, compare_documents
from foundry.evaluation.losses import read_losses
from foundry.tracking import tracking_uri

if TYPE_CHECKING:
    from foundry.models import MiniLLM
    from foundry.tokenizers import Tokenizer

LONGEST_REVISION = 1000  # characters; the system takes about 100,000 in an argument
TABLE = "artifacts/evaluation/documents.parquet"
Load = Callable[[], "tuple[MiniLLM, Tokenizer]"]


@dataclass(frozen=True)
class Side:
    """A model as somebody named it: its losses if they were kept, and how to load it if its weights are there."""

    name: str
    table: pa.Table | None
    load: Load | None


def compare(a: str, b: str, cfg: Config, root: str | Path = ".") -> Comparison:
    """Compares B with A on the same documents.

    Args:
        a, b: a table of losses, a folder (an export, a trained model, a project), `models:/name@alias`, or a DVC revision.
        root: the project; its test split is what models are scored on when their own losses are not of the same text.

    Raises:
        ConfigError: if a name is none of these.
        DataError: if there are no losses on common text and no weights to score.
    """
    root = Path(root)
    with tempfile.TemporaryDirectory(
        prefix="foundry-compare-"
    ) as tmp:  # for what is fetched from MLflow, until it is scored
        return _compared(resolve(a, cfg, root, Path(tmp) / "a"), resolve(b, cfg, root, Path(tmp) / "b"), cfg, root)


def _compared(one: Side, two: Side, cfg: Config, root: Path) -> Comparison:
    if one.table is not None and two.table is not None:
        try:
            return compare_documents(one.table, two.table, cfg.evaluate.bootstrap, cfg.seed)
        except DataError as e:
            if not (one.load and two.load):
                raise DataError(f"{e}, or name folders that hold the weights") from None
    for side in (one, two):
        if side.load is None and side.table is None:
            raise DataError(f"{side.name} has neither losses by document nor weights")
    if one.load and two.load:
        return compare_documents(losses(one, cfg, root), losses(two, cfg, root), cfg.evaluate.bootstrap, cfg.seed)
    tables = [side.table if side.table is not None else losses(side, cfg, root) for side in (one, two)]
    return compare_documents(*tables, cfg.evaluate.bootstrap, cfg.seed)


def resolve(name: str, cfg: Config, root: Path, scratch: Path) -> Side:
    """Finds what a name means.

    Args:
        scratch: a folder for a version's files, which has to stay until the side's model was loaded; made if it is needed.

    Raises:
        ConfigError: telling what was tried.
    """
    if name.startswith("models:/"):
        from foundry.tracking.registry import download

        scratch.mkdir(parents=True)
        return in_folder(download(name, tracking_uri(cfg.runtime), scratch), name)
    if os.path.isfile(name):  # False for a name that no file can have, where Path.is_file raises
        return Side(name, read_losses(Path(name)), None)
    if os.path.isdir(name):
        return in_folder(Path(name), name)
    return Side(name, _of_revision(name, root), None)


def in_folder(folder: Path, name: str) -> Side:
    """What a folder holds of a model: an export, a trained model, a project, a registered version's files."""
    kept = next(
        (
            p
            for p in (folder / "documents.parquet", folder / TABLE, *sorted(folder.rglob("documents.parquet")))
            if p.is_file()
        ),
        None,
    )
    table = read_losses(kept) if kept else None
    for at in (
        folder,
        folder / "hf",
        folder / "artifacts/export/hf",
        *(p.parent for p in sorted(folder.rglob("hf/config.json"))),
    ):
        if (at / "tokenizer.model").is_file() and (at / "config.json").is_file():
            from foundry.export.huggingface import import_huggingface

            return Side(name, table, partial(import_huggingface, at))
    if (folder / "model.safetensors").is_file() and (folder / "config.json").is_file():
        return Side(name, table, partial(_trained, folder))
    if table is None:
        raise ConfigError(f"{name} is a folder without a model: no config.json with weights, no documents.parquet")
    return Side(name, table, None)


def _trained(folder: Path) -> tuple[MiniLLM, Tokenizer]:
    from foundry.models import load_model
    from foundry.tokenizers import Tokenizer

    return load_model(folder), Tokenizer(folder.parent / "tokenizer")


def _of_revision(rev: str, root: Path) -> pa.Table:
    if len(rev) > LONGEST_REVISION:
        raise ConfigError(
            f"{short_repr(rev)} of {len(rev):,} characters is no file, no folder, no models:/name@alias and no revision"
        )
    with tempfile.TemporaryDirectory(prefix="foundry-compare-") as tmp:
        out = Path(tmp) / "documents.parquet"
        command = [sys.executable, "-m", "dvc", "get", str(root.resolve()), TABLE, "--rev", rev, "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=root)
        if done.returncode or not out.exists():
            lines = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
            why = (lines or ["no answer"])[0][:300]
            raise ConfigError(
                f"{rev!r} is no file, no folder, no models:/name@alias, and as a DVC revision it has no {TABLE} here ({why}). "
                "`dvc pull` brings what another machine made; a revision from before this table needs its export folder instead"
            )
        return read_losses(out)


def losses(side: Side, cfg: Config, root: Path) -> pa.Table:
    """Scores a model on the project's test text, in its own tokens, on `runtime.device`.

    Raises:
        ConfigError: if the device is not there.
    """
    import numpy as np

    from foundry.data.tokens.shards import read_clean
    from foundry.evaluation.bits_per_byte import Documents, score
    from foundry.evaluation.losses import losses_table
    from foundry.utils.device import get_device

    device = get_device(cfg.runtime.device)
    model, tokenizer = side.load()
    rows = [r for part in read_clean(root / "data/clean/test", ["doc_id", "text", "source", "lang"]) for r in part]
    tokens = [np.array(tokenizer.encode(r["text"], bos=True, eos=True)) for r in rows]
    sizes = np.array([len(r["text"].encode()) for r in rows], np.int64)
    names = ([r[k] for r in rows] for k in ("source", "lang", "doc_id", "text"))
    documents = Documents(tokens, sizes, np.zeros(len(rows), np.int64), *names)
    return losses_table(documents, score(model.to(device), tokens, model.cfg.max_seq_len))


def noise_floor(names: list[str], cfg: Config, root: str | Path = ".") -> dict[str, float]:
    """How far runs that differ in their seed alone lie apart: {runs, standard_deviation, of_a_difference}, in bits per byte.

    Args:
        names: of three or more such runs, as for `compare`. With none, those that MLflow knows of this recipe.
    """
    if names:
        with tempfile.TemporaryDirectory(prefix="foundry-compare-") as tmp:
            sides = [resolve(n, cfg, Path(root), Path(tmp) / str(i)) for i, n in enumerate(names)]
            tables = [s.table if s.table is not None else losses(s, cfg, Path(root)) for s in sides]
        values = [compare_documents(t, t, 100, 1).overall.bits_a for t in tables]
    else:
        from foundry.tracking.seeds import seed_scores

        values = seed_scores(tracking_uri(cfg.runtime), cfg.runtime.experiment)
    if len(values) < 2:
        return {"runs": len(values)}
    sd = statistics.stdev(values)
    return {"runs": len(values), "standard_deviation": round(sd, 6), "of_a_difference": round(sd * 2**0.5, 6)}
