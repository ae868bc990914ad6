"""The command `foundry`. Heavy imports happen inside the subcommands: `foundry --help` is quick."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from foundry.commands import custody, evaluation, export, generation, registry, runs, upkeep
from foundry.commands.project import TypedPath, project_of_here
from foundry.config import ConfigError, FoundryError, describe, load_config
from foundry.config import profiles as profile_table
from foundry.config.version import VERSION
from foundry.utils.dvc_files import repair_dvc
from foundry.utils.files import project_dir, state_dir, write_text
from foundry.utils.log import setup_logging

LONGEST = 6000  # characters of an error: an argument may have 100,000, and is often repeated in it


def check(args: argparse.Namespace) -> None:
    if args.describe:
        for key, default, text in describe():
            print(f"{key}\n    {text}\n    default: {default}")
        return
    from foundry.project.check import checked

    for line in repair_dvc():  # first: what is wrong with the parameters does not keep DVC damaged
        print(line)
    found = checked(load_config(args.params), project_dir(), args.params)
    print(f"{args.params}: every key is known and every value fits")
    for line in found.lines():
        print(line)


def profile(args: argparse.Namespace) -> None:
    if args.name is None:
        for name in profile_table.profile_names():
            active = not profile_table.changes(args.params, name)
            print(f"{name}{'   (active)' if active else ''}")
        return
    rows = profile_table.changes(args.params, args.name)
    if not rows:
        print(f"profile {args.name} is active already")
        return
    text = profile_table.switch(args.params, args.name)
    for key, old, new in rows:
        print(f"  {key}: {old} → {new}")
    stale = profile_table.stages_to_rerun([key for key, _, _ in rows])
    print(f"`dvc repro` will rerun: {', '.join(stale)} (or restore them, if they ran with these values before)")
    if args.dry_run:
        print("nothing was written (--dry-run)")
        return
    write_text(args.params, text)
    print(f"wrote {args.params}: profile {args.name}")


def plan(args: argparse.Namespace) -> None:
    from foundry.models.accounting import train_memory_bytes
    from foundry.project.check import checked
    from foundry.training.plan import make_plan
    from foundry.training.probe import UTILISATION, gpu_seconds, probe_seconds
    from foundry.utils.files import read_json

    if args.gpus is not None and not args.gpu:
        raise ConfigError("--gpus needs --gpu: the time is predicted for GPUs of a kind")
    cfg = profile_table.profile_config(args.profile, args.params) if args.profile else load_config(args.params)
    found = checked(cfg, project_dir(), f"profile {args.profile}" if args.profile else args.params)
    index = Path("data/shards/index.json")
    known = index.exists() and not args.profile
    per_epoch = (
        read_json(index, "data index")["splits"]["train"]["epoch_tokens"]
        if known
        else cfg.train.steps * cfg.train.tokens_per_step
    )
    made = make_plan(cfg.model, cfg.train, per_epoch)
    if args.json:
        print(json.dumps({**made.to_dict(), "will_not_export": found.export, "notes": found.notes}))
        return
    for line in (*made.lines(), *found.lines()):
        print(line)
    rows = max(1, (cfg.runtime.micro_batch_tokens or 4096) // cfg.model.max_seq_len)
    for half in (False, True):
        memory = train_memory_bytes(cfg.model, rows, half, cfg.runtime.recompute, cfg.runtime.loss_chunk)
        print(
            f"memory: about {memory / 2**30:.1f} GiB in {'bfloat16' if half else 'float32'}, {rows} sequences of "
            f"{cfg.model.max_seq_len} tokens at a time"
        )
    if not known:
        print(
            "the number of epochs is known after the shard stage: data/shards is not there yet, or of another profile"
        )
    if args.gpu:
        gpus = 1 if args.gpus is None else args.gpus
        seconds = gpu_seconds(made, args.gpu, gpus)
        print(f"time: about {_hours(seconds)} on {gpus} x {args.gpu}, at {UTILISATION:.0%} of its peak (an assumption)")
    elif args.probe:
        if not known:
            raise ConfigError("a probe needs data/shards: run `dvc repro shard` with these parameters first")
        print(f"time: about {_hours(probe_seconds(cfg))} on this machine (from 20 steps of the run itself)")


def _hours(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def inspect(args: argparse.Namespace) -> None:
    from foundry.data.tokens.loader import DataLoader
    from foundry.tokenizers import Tokenizer
    from foundry.training.resume import SKIPPED
    from foundry.training.skipped import SkippedBatches
    from foundry.utils.files import read_json

    cfg = load_config(args.params)
    T = cfg.model.max_seq_len
    loader = DataLoader("data/shards", cfg.train.tokens_per_step // T, T, cfg.seed, packing=cfg.train.packing)
    if not 1 <= args.step <= cfg.train.steps:
        raise ConfigError(f"--step must lie in 1 to {cfg.train.steps} (train.steps), got {args.step}")
    tokenizer = Tokenizer("artifacts/tokenizer")
    config = Path("artifacts/model/config.json")
    facts = read_json(config, "facts of the model") if config.exists() else {}
    skipped = SkippedBatches(state_dir() / "train" / facts.get("fingerprint", "none") / SKIPPED)
    batch = skipped.batch(args.step - 1)
    print(f"step {args.step} reads batch {batch}: {loader.batch_size} rows of {T} tokens")
    for p in loader.parts(batch):
        text = tokenizer.decode(p.tokens.tolist())
        shown = text if args.full or len(text) <= 100 else f"{text[:70]} … {text[-25:]}"
        print(f"row {p.row}: {p.source} {p.doc_id} ({p.shard}), its tokens {p.begin} to {p.end}: {shown!r}")


def relock(args: argparse.Namespace) -> None:
    from foundry.data.fetch.lockfile import lock_path, relock

    path = lock_path()
    forgotten = relock(load_config(args.params), args.names, path)
    for address in forgotten:
        print(f"  forgot {address}")
    if forgotten:
        print(f"wrote {path}; `dvc repro --force --single-item download` fetches these files and records them anew")
    else:
        print(f"{path} holds nothing of {', '.join(args.names)}")


def info(args: argparse.Namespace) -> None:
    from foundry.utils.device import get_device_info

    for key, value in get_device_info().items():
        print(f"{key}: {value}")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="foundry",
        description="From raw text to a registered language model. Run it in the project's folder or below.",
    )
    p.add_argument("--version", action="version", version=VERSION)
    commands = p.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, call: Callable[[argparse.Namespace], None], text: str, params: bool = False
    ) -> argparse.ArgumentParser:
        s = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        s.set_defaults(call=call)
        if params:
            s.add_argument(
                "--params", action=TypedPath, default="params.yaml", help="parameter file (default: %(default)s)"
            )
        return s

    s = add(
        "check",
        check,
        "check params.yaml: every problem at once, before any work; mend DVC's lock file after a kill",
        params=True,
    )
    s.add_argument("--describe", action="store_true", help="explain every key instead")
    s = add("profile", profile, "list the profiles, or switch params.yaml to one and tell what will rerun", params=True)
    s.add_argument("name", nargs="?", help="smoke, laptop, gpu-124m or gpu-1b; without it the profiles are listed")
    s.add_argument("--dry-run", action="store_true", help="tell what would change, write nothing")
    s = add("plan", plan, "tell what training will do: parameters, tokens, epochs, operations", params=True)
    s.add_argument("--json", action="store_true", help="as one line of JSON")
    s.add_argument("--profile", help="of another profile than params.yaml is in")
    s.add_argument(
        "--probe", action="store_true", help="run 20 steps to predict the time on this machine; nothing is kept"
    )
    s.add_argument("--gpu", help="predict the time on such a GPU from its data sheet: H100, A100, L4, RTX 4090, ...")
    s.add_argument("--gpus", type=int, help="how many of them (default: 1)")
    s = add("inspect", inspect, "print the documents that a training step reads", params=True)
    s.add_argument("--step", type=int, required=True, help="the step, counted from 1 as the logs do")
    s.add_argument("--full", action="store_true", help="all of their text")
    s = add(
        "relock",
        relock,
        "forget recorded hashes of sources: the next download accepts what the publisher has",
        params=True,
    )
    s.add_argument("names", nargs="+", metavar="NAME", help="names of sources in params.yaml")
    evaluation.add_to(add)
    generation.add_to(add)
    registry.add_to(add)
    custody.add_to(add)
    export.add_to(add)
    runs.add_to(add)
    upkeep.add_to(add)
    add("info", info, "tell what device this machine trains on")
    return p


def main(argv: list[str] | None = None) -> None:
    """Entry point: exit code 0, 1 for a user's mistake, 2 for a wrong command line."""
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # a name of a file need not be UTF-8, and a terminal need not know every character
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args = parser().parse_args(argv)
    setup_logging()
    try:
        with contextlib.chdir(project_of_here()):
            args.call(args)
    except FoundryError as e:
        text = str(e)
        print(f"error: {text if len(text) <= LONGEST else f'{text[:LONGEST]} …'}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:  # `foundry check --describe | head`
        sys.stderr.close()
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
