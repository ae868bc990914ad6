"""Typed parameters, presets, profiles and error types. Imports nothing else of foundry."""

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
    MissingPackageError,
    TrackingError,
    UnreachableError,
    VocabularyError,
)
from foundry.config.load import describe, load_params, parse_config, parse_yaml, read_yaml, yaml_text
from foundry.config.recipe import TrainConfig
from foundry.config.schema import (
    Config,
    Evaluate,
    Export,
    ModelConfig,
    Runtime,
)
from foundry.config.serving import Serving

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
    "MissingPackageError",
    "ModelConfig",
    "Runtime",
    "Serving",
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
    "load_pair",
    "load_params",
    "parse_config",
    "parse_yaml",
    "read_yaml",
    "yaml_text",
]


_PRESETS = ("get_preset_config", "load_config", "load_pair")  # loaded on first use: no stage depends on the presets


def __getattr__(name: str) -> Any:
    if name in _PRESETS:
        return getattr(import_module("foundry.config.presets"), name)
    raise AttributeError(f"module 'foundry.config' has no attribute {name!r}")
