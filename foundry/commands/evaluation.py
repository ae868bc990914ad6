"""Comparing models."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from foundry.commands.project import TypedPath
from foundry.config import TrackingError, load_config


def compare(args: argparse.Namespace) -> None:
    from foundry.project.compare import compare as run
    from foundry.project.compare import noise_floor

    cfg = load_config(args.params)
    done = run(args.a, args.b, cfg)
    try:
        noise = noise_floor(args.seeds, cfg)
    except TrackingError as e:
        noise = {"runs": 0, "why": str(e)}
    if args.json:
        print(json.dumps({**done.to_dict(), "noise": noise}))
        return
    print(f"{args.b} against {args.a}")
    print(done.sentence())
    for source, d in done.by_source.items():
        print(
            f"  {source}: {d.bits_b:.4f} against {d.bits_a:.4f}, {d.value:+.4f} ({d.low:+.4f} to {d.high:+.4f}), {d.documents} documents"
        )
    if noise["runs"] < 2:
        print("noise between seeds: not known; train twice with another `seed`, or name such runs with --seeds")
        return
    floor = 2 * noise["of_a_difference"]
    small = abs(done.overall.value) < floor
    print(
        f"noise between seeds: {noise['standard_deviation']:.4f} bits per byte (standard deviation of {noise['runs']} runs); two runs of one recipe "
        f"lie up to {floor:.4f} apart, this difference is {'within that: another seed may turn it round' if small else 'beyond that'}"
    )


def add_to(add: Callable[..., argparse.ArgumentParser]) -> None:
    s = add("compare", compare, "compare two models on the same documents: is the second better?", params=True)
    what = "a folder (export, trained model, project), a documents.parquet, models:/NAME@ALIAS, or a DVC revision"
    s.add_argument("a", action=TypedPath, metavar="A", help=what)
    s.add_argument("b", action=TypedPath, metavar="B", help="the same; the verdict is of B")
    s.add_argument(
        "--seeds",
        action=TypedPath,
        nargs="+",
        default=[],
        metavar="RUN",
        help="runs of one recipe with other seeds: the noise floor (default: those in MLflow)",
    )
    s.add_argument("--json", action="store_true", help="as one line of JSON")
