"""A training process for the tests: `python runner.py SHARDS STATE OUT [key=value ...]` trains a tiny model
and saves it.

Keys are fields of Runtime, TrainConfig or ModelConfig; `slow_save=1`: every checkpoint takes a while and prints when it
begins; `track=ADDRESS`: the run is tracked by the MLflow server there; `overflow=STEP`: in that step a gradient of the
last rank is infinite.
"""

import json
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

from foundry.config import FoundryError, ModelConfig, Runtime, TrainConfig
from foundry.models import save_model
from foundry.tracking import Tracker
from foundry.training import Trainer, checkpoints
from foundry.training.setup import Session
from foundry.utils import checkpoint
from foundry.utils.distributed import world
from foundry.utils.events import MetricsCallback
from foundry.utils.files import open_to_write
from foundry.utils.log import setup_logging
from foundry.utils.process import die_with_parent


def value(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False}.get(text, text)


def slow_down_saving() -> None:
    written = checkpoint.atomic_write

    def slowly(path: Path) -> AbstractContextManager:
        print(f"saving {path}", flush=True)
        time.sleep(0.15)
        return written(path)

    checkpoint.atomic_write = slowly


class Printed(MetricsCallback):
    """Prints the steps."""

    def log(self, step: int, metrics: dict) -> None:
        print(f"step {step}", flush=True)

    def back_to(self, step: int) -> None:
        print(f"back to step {step}", flush=True)


def overflow(trainer: Trainer, step: int) -> None:
    start = trainer.session

    def started() -> Session:
        session = start()
        state = session.state
        last = trainer.world.rank == trainer.world.size - 1
        state.model.tok_embeddings.weight.register_hook(
            lambda g: g * float("inf") if last and state.step == step else g
        )
        return session

    trainer.session = started


def fill_the_disk(rank: int) -> None:
    """Has the last process's parts of checkpoints written to a device that takes nothing."""
    written = checkpoints.write_part

    def full(folder: Path, number: int, *rest: object) -> dict:
        if number == rank:
            with open_to_write("/dev/full") as f:
                f.write(b"x")
        return written(folder, number, *rest)

    checkpoints.write_part = full


def tracked(trainer: Trainer, address: str | None) -> Tracker:
    return Tracker(
        trainer.folder,
        uri=address or "sqlite:///unused.db",
        experiment="runner",
        run_name="r",
        fingerprint=trainer.fingerprint,
        params={"seed": 3},
        enabled=bool(address),
    )


def main() -> None:
    shards, state, out, *pairs = sys.argv[1:]
    given = {k: value(v) for k, _, v in (p.partition("=") for p in pairs)}
    if given.pop("slow_save", 0):
        slow_down_saving()
    address = given.pop("track", None)
    infinite = given.pop("overflow", None)
    if (rank := given.pop("full_disk", None)) is not None:
        fill_the_disk(rank)

    def fields(kind: type, **defaults: object) -> dict:
        return {**defaults, **{k: given[k] for k in given if k in kind.model_fields}}

    runtime = Runtime(**fields(Runtime, threads=1, checkpoint_interval=4, device="cpu", precision="float32"))
    model = ModelConfig(
        **fields(
            ModelConfig,
            vocab_size=400,
            dim=32,
            n_layers=2,
            n_heads=2,
            n_kv_heads=1,
            ffn_dim=48,
            max_seq_len=32,
            dropout=0.1,
        )
    )
    train = TrainConfig(
        **fields(
            TrainConfig,
            steps=30,
            tokens_per_step=256,
            warmup_steps=2,
            log_interval=1,
            eval_interval=10,
            eval_tokens=600,
            decay_fraction=0.5,
        )
    )
    die_with_parent()
    setup_logging()
    try:
        with world(runtime) as here:
            trainer = Trainer.from_shards(model, train, shards, seed=3, runtime=runtime, world=here, state=Path(state))
            if infinite is not None:
                overflow(trainer, infinite)
            with tracked(trainer, address) as tracker:
                trainer.callbacks += [tracker, Printed()]
                result = trainer.fit()
            if result.model is not None:
                print(f"process {here.rank} has the trained model", flush=True)
            if here.main:
                save_model(out, result.model, result.facts)
                Path(f"{out}.curve.json").write_text(json.dumps([result.curve, result.validations]))
    except FoundryError as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
