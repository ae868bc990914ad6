"""A training process for the tests: `python runner.py SHARDS STATE OUT [key=value ...]` trains a tiny model and saves it.

Keys are fields of Runtime, or `steps`, `dropout`, `optimizer`.
"""

import sys
from pathlib import Path

from foundry.config import FoundryError, ModelConfig, Runtime, TrainConfig
from foundry.models import save_model
from foundry.training import Trainer
from foundry.utils.distributed import world
from foundry.utils.files import write_json
from foundry.utils.log import setup_logging
from foundry.utils.process import die_with_parent


def main() -> None:
    shards, state, out, *pairs = sys.argv[1:]
    given = dict(p.split("=") for p in pairs)
    steps, dropout = int(given.pop("steps", 30)), float(given.pop("dropout", 0.1))
    optimizer = given.pop("optimizer", "muon")
    runtime = Runtime(
        **{
            "threads": 1,
            "checkpoint_interval": 4,
            "device": "cpu",
            **{k: int(v) if v.isdigit() else v for k, v in given.items()},
        }
    )
    model = ModelConfig(
        vocab_size=400, dim=32, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=32, dropout=dropout
    )
    train = TrainConfig(
        steps=steps,
        tokens_per_step=256,
        warmup_steps=2,
        log_interval=1,
        eval_interval=10,
        eval_tokens=600,
        optimizer=optimizer,
        decay_fraction=0.5,
    )
    die_with_parent()
    setup_logging()
    try:
        with world(runtime) as here:
            trainer = Trainer.from_shards(model, train, shards, seed=3, runtime=runtime, world=here, state=Path(state))
            trainer.on_metrics = lambda step, metrics: print(f"step {step}", flush=True)
            result = trainer.fit()
            if here.main:
                save_model(out, result.model, result.facts)
                write_json(f"{out}.curve.json", [result.curve, result.validations])
    except FoundryError as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
