"""Device, files, hashing, logging, processes. May import only `foundry.config`.

The names are imported on first use. The package's own code imports from the modules, so that a stage depends only on
the modules that it uses.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "atomic_dir": "files",
    "atomic_write": "files",
    "get_device": "device",
    "get_device_info": "device",
    "get_logger": "log",
    "load_checkpoint": "checkpoint",
    "progress": "log",
    "save_checkpoint": "checkpoint",
    "setup_logging": "log",
    "sha256_file": "files",
    "sha256_json": "files",
    "sha256_tree": "files",
    "state_dir": "files",
    "write_json": "files",
    "write_text": "files",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'foundry.utils' has no attribute {name!r}")
    return getattr(import_module(f"foundry.utils.{_HOME[name]}"), name)
