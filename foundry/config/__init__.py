"""Typed parameters, presets and profiles. Imports nothing of foundry."""

from importlib import import_module
from typing import Any

from foundry.config.corpus import Clean, Download, Shard, Source, TokenizerParams
from foundry.config.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DiskError,
    ExportError,
    FoundryError,
    LockError,
    TrackingError,
    UnreachableError,
    VocabularyError,
)
from foundry.config.load import describe, load_config, parse_config, parse_yaml, read_yaml, yaml_text
from foundry.config.schema import (
    Config,
    Evaluate,
    Export,
    ModelConfig,
    Runtime,
    TrainConfig,
)

__all__ = [
    "CheckpointError",
    "Clean",
    "Config",
    "ConfigError",
    "DataError",
    "DiskError",
    "Download",
    "Evaluate",
    "Export",
    "ExportError",
    "FoundryError",
    "LockError",
    "ModelConfig",
    "Runtime",
    "Shard",
    "Source",
    "TokenizerParams",
    "TrackingError",
    "TrainConfig",
    "UnreachableError",
    "VocabularyError",
    "describe",
    "get_preset_config",
    "load_config",
    "parse_config",
    "parse_yaml",
    "read_yaml",
    "yaml_text",
]


def __getattr__(name: str) -> Any:
    if name == "get_preset_config":  # on first use: no stage depends on the profiles
        return import_module("foundry.config.presets").get_preset_config
    raise AttributeError(f"module 'foundry.config' has no attribute {name!r}")
