"""What training will do, before it begins: plan, inspect, info."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from foundry.commands.arguments import Subparsers, add_command, add_json
from foundry.config import ConfigError, load_params, profiles
from foundry.utils.files import project_dir


def plan(args: argparse.Namespace) -> None:
    from foundry.project.forecast import SHARDS, forecast, time_here, time_on_gpus

    if args.gpus is not None and not args.gpu:
        raise ConfigError("--gpus needs --gpu: the time is predicted for GPUs of one kind")
    if args.profile:
        cfg, origin = profiles.profile_config(args.profile, args.params), f"profile {args.profile}"
    else:
        cfg, origin = load_params(args.params), args.params
    found = forecast(cfg, project_dir(), origin, shards=None if args.profile else SHARDS)
    if args.json:
        print(json.dumps(found.to_dict()))
        return
    for line in found.lines():
        print(line)
    if args.gpu:
        print(time_on_gpus(found.plan, args.gpu, 1 if args.gpus is None else args.gpus))
    elif args.probe:
        if not found.sharded:
            raise ConfigError("a probe needs data/shards: run `dvc repro shard` with these parameters first")
        print(time_here(cfg))


def inspect(args: argparse.Namespace) -> None:
    from foundry.project.inspection import answer_lines, conversation_lines, lines

    cfg, root = load_params(args.params), Path(".")
    if args.stage == "sft":
        colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        found = conversation_lines(cfg, root, args.step, args.full, colours)
    elif args.stage == "rl":
        found = answer_lines(cfg, root, args.step, args.full)
    else:
        found = lines(cfg, root, args.step, args.full)
    for line in found:
        print(line)


def info(args: argparse.Namespace) -> None:
    from foundry.utils.device import get_device_info

    for key, value in get_device_info().items():
        print(f"{key}: {value}")


def add_to(subparsers: Subparsers) -> None:
    s = add_command(subparsers, "plan", plan, "print what training will do: parameters, tokens, epochs, operations")
    add_json(s)
    s.add_argument("--profile", help="plan this profile instead of the one that params.yaml has")
    text = "run 20 steps to predict the time on this machine; nothing is kept"
    s.add_argument("--probe", action="store_true", help=text)
    text = "predict the time on such a GPU from its data sheet: H100, A100, L4, RTX 4090, ..."
    s.add_argument("--gpu", help=text)
    s.add_argument("--gpus", type=int, help="the number of these GPUs (default: 1)")
    s = add_command(subparsers, "inspect", inspect, "print what a step of a training reads")
    text = "train: documents; sft: conversations, with what is learnt of them in colour; rl: answers with their rewards"
    s.add_argument("--stage", choices=("train", "sft", "rl"), default="train", help=text)
    s.add_argument("--step", type=int, required=True, help="the step, counted from 1 as in the log")
    s.add_argument("--full", action="store_true", help="print their text in full")
    add_command(subparsers, "info", info, "print the device that this machine trains on", params=False)
