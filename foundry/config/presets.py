"""Pairs of architecture and recipe for the Python interface: presets, and YAML files that contain such a pair.

    model_config, train_config = get_preset_config("small")
    model_config, train_config = load_pair("mine.yaml")     # sections `model` and `training`

`small` (about 2 million parameters) and `medium` (10 million) train on a CPU; `rtx5060` and `m4pro` (70 million) on one
GPU. The profiles of the pipeline (`smoke`, `laptop`, `gpu-124m`, ...) are available by their names, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from foundry.config.errors import ConfigError
from foundry.config.load import listing, parse_config, read_yaml
from foundry.config.profiles import profile_names, profile_values
from foundry.config.recipe import TrainConfig
from foundry.config.schema import Config, ModelConfig
from foundry.config.section import short_repr

Pair = tuple[ModelConfig, TrainConfig]

MODELS = {
    "small": dict(vocab_size=2048, dim=192, n_layers=4, n_heads=6, n_kv_heads=3, ffn_dim=512, max_seq_len=256),
    "medium": dict(vocab_size=4096, dim=320, n_layers=8, n_heads=5, n_kv_heads=5, ffn_dim=832, max_seq_len=256),
    "70m": dict(vocab_size=16_384, dim=640, n_layers=13, n_heads=10, n_kv_heads=5, ffn_dim=1792, max_seq_len=1024),
}
_GPU = dict(batch_size=32, learning_rate=2e-3, max_iters=20_000, eval_interval=500, warmup_steps=200)
PRESETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "small": (MODELS["small"], dict(batch_size=8, learning_rate=5e-3, max_iters=1000, eval_interval=100)),
    "medium": (MODELS["medium"], dict(batch_size=16, learning_rate=3e-3, max_iters=3000, eval_interval=250)),
    "rtx5060": (MODELS["70m"], _GPU),
    "m4pro": ({**MODELS["70m"], "max_seq_len": 512}, _GPU),
}


def get_preset_config(name: str) -> Pair:
    """(architecture, recipe) of a preset or of a profile of the pipeline.

    Raises:
        ConfigError: for an unknown name; the message lists the known ones.
    """
    return parse_pair(preset_values(name), f"preset {name}")


def preset_values(name: str) -> dict[str, dict[str, Any]]:
    """The sections `model` and `training` of a preset or of a profile, as a file with such a pair has them.

    Raises:
        ConfigError: for an unknown name; the message lists the known ones.
    """
    if name in PRESETS:
        model, training = PRESETS[name]
        return {"model": dict(model), "training": dict(training)}
    if name not in profile_names():
        raise ConfigError(f"unknown preset {name!r}; presets are {', '.join([*PRESETS, *profile_names()])}")
    values = profile_values(name)
    sections = {s: {k.split(".")[1]: v for k, v in values.items() if k.startswith(f"{s}.")} for s in ("model", "train")}
    return {"model": {"vocab_size": values["tokenizer.vocab_size"], **sections["model"]}, "training": sections["train"]}


def load_pair(path: str | Path) -> Pair:
    """(architecture, recipe) of a YAML file with the sections `model` and `training`.

    Raises:
        ConfigError: listing every problem.
    """
    return parse_pair(read_yaml(path), str(path))


def load_config(path: str | Path = "params.yaml") -> Config | Pair:
    """Reads either kind of file, for interactive use: `load_pair` if it has a section `training`, else `load_params`.

    Raises:
        ConfigError: listing every problem.
    """
    data = read_yaml(path)
    if isinstance(data, dict) and "training" in data and "download" not in data:
        return parse_pair(data, str(path))
    return parse_config(data, str(path))


def parse_pair(data: Any, origin: str) -> Pair:
    """(architecture, recipe) of parsed YAML with the sections `model` and `training`.

    Args:
        origin: names the data in the error.

    Raises:
        ConfigError: listing every problem.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{origin}: expected are the sections model and training, got {short_repr(data)}")
    known = ("model", "training")
    problems = [f"{name}: unknown section; known: model, training" for name in data if name not in known]
    made: list[Any] = []
    for section, kind in (("model", ModelConfig), ("training", TrainConfig)):
        try:
            made.append(kind.model_validate(data.get(section) or {}))
        except ValidationError as e:
            for error in e.errors():
                key = ".".join(map(str, (section, *error["loc"])))
                message = error["msg"].removeprefix("Value error, ")
                problems.append(f"{key}: {message}, got {short_repr(error['input'])}")
    if problems:
        raise ConfigError(listing(origin, problems))
    return made[0], made[1]
