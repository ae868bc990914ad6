"""Device, files, hashing, logging, processes. May import `foundry.config` alone; heavy imports happen inside functions."""

from foundry.utils.checkpoint import load_checkpoint, save_checkpoint
from foundry.utils.device import get_device, get_device_info
from foundry.utils.files import (
    atomic_dir,
    atomic_write,
    read_json,
    sha256_file,
    sha256_json,
    sha256_tree,
    state_dir,
    write_json,
    write_text,
)
from foundry.utils.log import get_logger, progress, setup_logging

__all__ = [
    "atomic_dir",
    "atomic_write",
    "get_device",
    "get_device_info",
    "get_logger",
    "load_checkpoint",
    "progress",
    "read_json",
    "save_checkpoint",
    "setup_logging",
    "sha256_file",
    "sha256_json",
    "sha256_tree",
    "state_dir",
    "write_json",
    "write_text",
]
