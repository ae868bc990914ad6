"""Foundry: from raw text to a registered, served language model by one command.

The public names are imported on first use, so that `import foundry` is quick and a stage that does no tensor work never
imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from foundry.config.version import VERSION as __version__

_HOME = {
    "Config": "foundry.config",
    "DataLoader": "foundry.data.tokens.textfile",
    "Generator": "foundry.inference",
    "MiniLLM": "foundry.models",
    "ModelConfig": "foundry.config",
    "Tokenizer": "foundry.tokenizers",
    "TrainConfig": "foundry.config",
    "Trainer": "foundry.training",
    "get_device": "foundry.utils",
    "get_preset_config": "foundry.config",
    "load_config": "foundry.config",
}

__all__ = [*sorted(_HOME), "__version__"]

if TYPE_CHECKING:
    from foundry.config import Config, ModelConfig, TrainConfig, get_preset_config, load_config
    from foundry.data.tokens.textfile import DataLoader
    from foundry.inference import Generator
    from foundry.models import MiniLLM
    from foundry.tokenizers import Tokenizer
    from foundry.training import Trainer
    from foundry.utils import get_device


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'foundry' has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
