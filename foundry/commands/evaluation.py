"""Evaluation: compare."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from foundry.commands.arguments import Subparsers, TypedPath, add_command, add_json
from foundry.config import TrackingError, load_params

if TYPE_CHECKING:
    from foundry.utils.chat_report import Paired


def compare(args: argparse.Namespace) -> None:
    from foundry.project import compare as comparison
    from foundry.project.registration import ANSWERS

    cfg = load_params(args.params)
    answers = comparison.compare_answers(args.a, args.b, cfg)
    if answers and args.a.endswith(ANSWERS):  # tables of answers: there are no models to score
        print(answers.model_dump_json() if args.json else "\n".join(answer_lines(answers)))
        return
    done = comparison.compare(args.a, args.b, cfg)
    try:
        noise = comparison.noise_floor(args.seeds, cfg)
    except TrackingError as e:
        noise = comparison.NoiseFloor(0, why=str(e))
    if args.json:
        chat = {"answers": answers.model_dump()} if answers else {}
        print(json.dumps({**done.to_dict(), "noise": noise.to_dict(), **chat}))
        return
    print(f"{args.b} against {args.a}")
    if answers:
        print("\n".join(answer_lines(answers)))
        print("on plain test text:")
    print(done.sentence())
    for source, d in done.by_source.items():
        bits = f"{d.bits_b:.4f} against {d.bits_a:.4f}, {d.value:+.4f} ({d.low:+.4f} to {d.high:+.4f})"
        print(f"  {source}: {bits}, {d.documents} documents")
    if noise.of_a_difference is None:
        print("noise between seeds: not known; train twice with another `seed`, or name such runs with --seeds")
        return
    floor = 2 * noise.of_a_difference
    small = abs(done.overall.value) < floor
    print(
        f"noise between seeds: {noise.standard_deviation:.4f} bits per byte "
        f"(standard deviation of {noise.runs} runs); two runs of one recipe differ by up to {floor:.4f}, "
        "and this difference is " + ("within that: with another seed it may be reversed" if small else "beyond that")
    )


def answer_lines(pair: Paired) -> list[str]:
    """A comparison of answers, for a person."""
    from foundry.chat.measures import sentence

    tasks = [
        f"  {task}: {100 * i.value:+.1f} points ({100 * i.low:+.1f} to {100 * i.high:+.1f})"
        for task, i in pair.tasks.items()
    ]
    return [sentence(pair), *tasks]


def add_to(subparsers: Subparsers) -> None:
    s = add_command(subparsers, "compare", compare, "compare two models on the same documents: is the second better?")
    text = (
        "a folder (export, trained model, project), a documents.parquet or answers.parquet, models:/NAME@ALIAS, or a "
        "DVC revision"
    )
    s.add_argument("a", action=TypedPath, metavar="A", help=text)
    s.add_argument("b", action=TypedPath, metavar="B", help="the same; the verdict is about B")
    text = "runs of one recipe with other seeds: the noise between seeds (default: those in MLflow)"
    s.add_argument("--seeds", action=TypedPath, nargs="+", default=[], metavar="RUN", help=text)
    add_json(s)
