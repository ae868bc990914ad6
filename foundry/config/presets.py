"""Ready pairs of architecture and recipe for the Python interface, and YAML files that hold such a pair.

    model_config, train_config = get_preset_config("small")
    model_config, train_config = load_config("mine.yaml")     # sections `model` and `training`

`small` (about 2 million parameters) and `medium` (10 million) train on a CPU; `rtx5060` and `m4pro` (70 million) on one GPU. The profiles
of the pipeline (`smoke`, `laptop`, `gpu-124m`, ...) are there by their names as well.
"""

from __future__ import annotations

from typing import Any

from foundry.config.errors import ConfigError
from foundry.config.load import parse_pair
from foundry.config.profiles import profile_names, profile_values
from foundry.config.schema import ModelConfig, TrainConfig

_70M = {"vocab_size": 16_384, "dim": 640, "n_layers": 13, "n_heads": 10, "n_kv_heads": 5, "ffn_dim": 1792}
PRESETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "small": (
        {"vocab_size": 2048, "dim": 192, "n_layers": 4, "n_heads": 6, "n_kv_heads": 3, "ffn_dim": 512, "max_seq_len": 256},
        {"batch_size": 8, "learning_rate": 5e-3, "max_iters": 1000, "eval_interval": 100},
    ),
    "medium": (
        {"vocab_size": 4096, "dim": 320, "n_layers": 8, "n_heads": 5, "n_kv_heads": 5, "ffn_dim": 832, "max_seq_len": 256},
        {"batch_size": 16, "learning_rate": 3e-3, "max_iters": 3000, "eval_interval": 250},
    ),
    "rtx5060": (
        {**_70M, "max_seq_len": 1024},
        {"batch_size": 32, "learning_rate": 2e-3, "max_iters": 20_000, "eval_interval": 500, "warmup_steps": 200},
    ),
    "m4pro": (
        {**_70M, "max_seq_len": 512},
        {"batch_size": 32, "learning_rate": 2e-3, "max_iters": 20_000, "eval_interval": 500, "warmup_steps": 200},
    ),
}  # fmt: skip


def get_preset_config(name: str) -> tuple[ModelConfig, TrainConfig]:
    """(architecture, recipe) of a preset or of a profile of the pipeline.

    Raises:
        ConfigError: for an unknown name; the known ones are listed.
    """
    if name in PRESETS:
        model, train = PRESETS[name]
        return parse_pair({"model": model, "training": train}, f"preset {name}")
    if name not in profile_names():
        raise ConfigError(f"unknown preset {name!r}; presets are {', '.join([*PRESETS, *profile_names()])}")
    values = profile_values(name)
    sections = {s: {k.split(".")[1]: v for k, v in values.items() if k.startswith(f"{s}.")} for s in ("model", "train")}
    model = {"vocab_size": values["tokenizer.vocab_size"], **sections["model"]}
    return parse_pair({"model": model, "training": sections["train"]}, f"profile {name}")
