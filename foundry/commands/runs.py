"""DVC's experiments and MLflow's runs in one table: runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from foundry.commands.arguments import Subparsers, add_command, add_json
from foundry.config import ConfigError, FoundryError, TrackingError, load_params

if TYPE_CHECKING:
    from foundry.tracking.listing import Row

MOST = 1_000_000  # commits
TITLES = ("DVC", "revision", "MLflow run", "status", "steps", "val bits/byte", "test bits/byte", "parameters")


def runs(args: argparse.Namespace) -> None:
    from foundry.tracking import tracking_uri
    from foundry.tracking.listing import dvc_rows, mlflow_rows, side_by_side, tag_revisions

    if not 1 <= args.commits <= MOST:
        raise ConfigError(f"the number of commits must lie in [1, {MOST}], got {args.commits}")
    cfg = load_params(args.params)
    uri = tracking_uri(cfg.runtime)
    (dvc, no_dvc), (mlflow, no_mlflow) = (
        _ask(lambda: dvc_rows(commits=args.commits)),
        _ask(lambda: mlflow_rows(uri, cfg.runtime.experiment)),
    )
    if no_dvc and no_mlflow:
        raise TrackingError(f"{no_dvc}; {no_mlflow}")
    rows = side_by_side(dvc, mlflow)
    if args.tag:
        n = tag_revisions(uri, rows)
    if args.json:
        print(json.dumps([r.to_dict() for r in rows]))
        return
    for line in table([cells(r) for r in rows]):
        print(line)
    for note in filter(None, (no_dvc, no_mlflow)):
        print(f"one side is missing: {note}")
    if args.tag:
        print(f"{n} runs in MLflow carry their experiment's name and revision")


def _ask(call: Callable[[], list[Row]]) -> tuple[list[Row], str]:
    """(rows, "") or ([], the error): one side without the other is worth a table."""
    try:
        return call(), ""
    except FoundryError as e:
        return [], str(e)


def cells(row: Row) -> tuple[str, ...]:
    """One line of the table, as text."""
    value = row.run_val_bits_per_byte if row.val_bits_per_byte is None else row.val_bits_per_byte
    shown = "-" if value is None else f"{value:.4f}"
    if row.agree is False:
        shown += f" ≠ {row.run_val_bits_per_byte:.4f}"
    return (
        ("  " if row.experiment else "") + (row.name or "-"),
        row.revision[:7] or "-",
        row.run_name or "not in MLflow",
        row.status.lower() or "-",
        "-" if row.steps is None else str(row.steps),
        shown,
        "-" if row.test_bits_per_byte is None else f"{row.test_bits_per_byte:.4f}",
        ", ".join(f"{k}={v}" for k, v in row.changed.items()) or "-",
    )


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines with aligned columns, the titles first."""
    lines = [TITLES, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(TITLES))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def add_to(subparsers: Subparsers) -> None:
    s = add_command(subparsers, "runs", runs, "list DVC's commits and experiments beside the runs in MLflow")
    s.add_argument("--commits", type=int, default=5, help="the number of newest commits (default: %(default)s)")
    add_json(s)
    text = "also write each experiment's name and revision on its run in MLflow"
    s.add_argument("--tag", action="store_true", help=text)
