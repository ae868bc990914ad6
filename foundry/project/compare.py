"""Compares any two models. Behind `foundry compare`; joins evaluation, export and tracking."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from foundry.chat.measures import Draws, paired
from foundry.chat.table import read_answers
from foundry.config import Config, ConfigError, DataError
from foundry.config.section import short_repr
from foundry.evaluation.compare import Comparison, compare_documents
from foundry.evaluation.losses import read_losses
from foundry.export.manifest import NAME as PROOF
from foundry.export.manifest import read_record
from foundry.project.registration import ANSWERS, EVALUATIONS
from foundry.tracking import tracking_uri
from foundry.utils.chat_report import Paired

if TYPE_CHECKING:
    from foundry.models import MiniLLM
    from foundry.tokenizers import Tokenizer

LONGEST_REVISION = 1000  # characters; the system takes about 100,000 in an argument
TABLE = "artifacts/evaluation/documents.parquet"
Load = Callable[[], "tuple[MiniLLM, Tokenizer]"]


@dataclass(frozen=True)
class Side:
    """A model to compare.

    Attributes:
        name: as it was given.
        table: its losses by document; None if they were not kept.
        load: loads the model and its tokenizer; None if its weights are not there.
        answers: to the prompts of the chat data's test split; None if it was not trained to answer.
    """

    name: str
    table: pa.Table | None
    load: Load | None
    answers: pa.Table | None = None


def compare(a: str, b: str, cfg: Config, root: str | Path = ".") -> Comparison:
    """Compares B with A on the same documents.

    Args:
        a, b: a table of losses, a folder (an export, a trained model, a project), `models:/name@alias`, or a DVC
            revision.
        root: the project; models are scored on its test split if their own losses are not of the same text.

    Raises:
        ConfigError: if a name is none of these.
        DataError: if there are no losses on the same text and no weights to score.
    """
    root = Path(root)
    with tempfile.TemporaryDirectory(prefix="foundry-compare-") as tmp:  # keeps what MLflow has until it is scored
        return _compared(resolve(a, cfg, root, Path(tmp) / "a"), resolve(b, cfg, root, Path(tmp) / "b"), cfg, root)


def compare_answers(a: str, b: str, cfg: Config, root: str | Path = ".") -> Paired | None:
    """Compares B with A by their answers to the same prompts; None if one of them has none.

    Args:
        a, b: a table of answers, a folder (an export of a chat model, a registered version), or `models:/name@alias`.

    Raises:
        ConfigError: if a name is none of these.
        DataError: if both have answers to different prompts.
    """
    root = Path(root)
    with tempfile.TemporaryDirectory(prefix="foundry-compare-") as tmp:
        sides = [_answers(n, cfg, root, Path(tmp) / str(i)) for i, n in enumerate((a, b))]
        if sides[0] is None or sides[1] is None:
            return None
        return paired(sides[0], sides[1], (a, b), Draws(cfg.chat_evaluate.bootstrap, cfg.seed))


def _answers(name: str, cfg: Config, root: Path, scratch: Path) -> pa.Table | None:
    if name.startswith("models:/"):
        return resolve(name, cfg, root, scratch).answers
    path = Path(name)
    if os.path.isdir(name):
        return _answers_of(path)
    return read_answers(path) if os.path.isfile(name) and path.name == ANSWERS else None


def _answers_of(folder: Path) -> pa.Table | None:
    """The answers of the model in a folder: beside its files, or in the evaluation of the project that exported it."""
    kept = next((p for p in (folder / ANSWERS, *sorted(folder.rglob(ANSWERS))) if p.is_file()), None)
    if kept is None and (folder / PROOF).is_file() and (chat := read_record(folder).chat):
        _, tables = EVALUATIONS[chat.stage]
        kept = folder.resolve().parents[2] / tables / chat.stage / ANSWERS
    return read_answers(kept) if kept and kept.is_file() else None


def _compared(one: Side, two: Side, cfg: Config, root: Path) -> Comparison:
    if one.table is not None and two.table is not None:
        try:
            return compare_documents(one.table, two.table, cfg.evaluate.bootstrap, cfg.seed)
        except DataError as e:
            if not (one.load and two.load):
                raise DataError(f"{e}, or name folders that contain the weights") from None
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
        scratch: a folder for the files of a registered version, created if it is needed; it has to exist until the
            model is loaded.

    Raises:
        ConfigError: if it means nothing; the message says what was tried.
    """
    if name.startswith("models:/"):
        from foundry.tracking.registry import download

        scratch.mkdir(parents=True)
        folder = download(name, tracking_uri(cfg.runtime), scratch)
        return replace(in_folder(folder, name), answers=_answers_of(folder))
    if os.path.isfile(name):  # False for an impossible file name, for which Path.is_file raises
        return Side(name, read_losses(Path(name)), None)
    if os.path.isdir(name):
        return in_folder(Path(name), name)
    return Side(name, _of_revision(name, root), None)


def in_folder(folder: Path, name: str) -> Side:
    """Finds a model in a folder: an export, a trained model, a project, or the files of a registered version.

    Raises:
        ConfigError: if the folder contains no model.
    """
    tables = (folder / "documents.parquet", folder / TABLE, *sorted(folder.rglob("documents.parquet")))
    kept = next((p for p in tables if p.is_file()), None)
    table = read_losses(kept) if kept else None
    exports = (p.parent for p in sorted(folder.rglob("hf/config.json")))
    for at in (folder, folder / "hf", folder / "artifacts/export/hf", *exports):
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
            f"{short_repr(rev)} of {len(rev):,} characters is not a file, a folder, models:/name@alias or a revision"
        )
    with tempfile.TemporaryDirectory(prefix="foundry-compare-") as tmp:
        out = Path(tmp) / "documents.parquet"
        command = [sys.executable, "-m", "dvc", "get", str(root.resolve()), TABLE, "--rev", rev, "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=root)
        if done.returncode or not out.exists():
            lines = done.stderr.strip().splitlines() or ["no answer"]
            errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
            why = (errors or lines[-1:])[0][:300]
            raise ConfigError(
                f"{rev!r} is not a file, a folder or models:/name@alias, and as a DVC revision it has no {TABLE} here "
                f"({why}). `dvc pull` fetches what another machine made; for a revision without this table, name its "
                "export folder instead"
            )
        return read_losses(out)


def losses(side: Side, cfg: Config, root: Path) -> pa.Table:
    """Scores a model on the project's test text, in its own tokens, on `runtime.device`.

    Raises:
        ConfigError: if the device is not available.
    """
    import numpy as np

    from foundry.data.tokens.shards import read_clean
    from foundry.evaluation.bits_per_byte import score
    from foundry.evaluation.documents import Documents
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


@dataclass(frozen=True)
class NoiseFloor:
    """How much runs of one recipe differ that differ only in their seed.

    Attributes:
        runs: how many such runs are known; with fewer than two there are no numbers.
        standard_deviation: of the runs, in bits per byte.
        of_a_difference: standard deviation of the difference of two such runs, in bits per byte.
        why: why no runs are known.
    """

    runs: int
    standard_deviation: float | None = None
    of_a_difference: float | None = None
    why: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for `--json`; what is None is left out."""
        return {k: v for k, v in asdict(self).items() if v is not None}


def noise_floor(names: list[str], cfg: Config, root: str | Path = ".") -> NoiseFloor:
    """Measures the noise between seeds.

    Args:
        names: three or more runs that differ only in their seed, named as for `compare`. Without any, the runs of this
            recipe in MLflow are used.

    Raises:
        TrackingError: if MLflow is asked and cannot be reached.
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
        return NoiseFloor(len(values))
    sd = statistics.stdev(values)
    return NoiseFloor(len(values), round(sd, 6), round(sd * 2**0.5, 6))
