"""Crash-safe checkpoints: a folder of tensors (safetensors) and values (JSON), no pickle.

    step-00000200/
      tensors.safetensors   every tensor of the state, by name
      state.json            every other value
      checkpoint.json       the marker: format, hashes of the two files; written last

A folder is renamed into place when it is whole, so a kill at any moment leaves the former checkpoints as they were.
Loading checks both hashes before anything is read.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.config import CheckpointError
from foundry.utils.files import atomic_dir, read_json, sha256_file

if TYPE_CHECKING:
    import torch

FORMAT = 1
_FILES = ("tensors.safetensors", "state.json")


def save_checkpoint(path: str | Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> Path:
    """Writes a checkpoint folder at `path`.

    Args:
        tensors: any devices; they are copied to the CPU. Names are free, shared storage is not allowed.
        state: JSON values only.
    """
    from safetensors.torch import save_file

    path = Path(path)
    with atomic_dir(path) as tmp:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, tmp / _FILES[0])
        os.chmod(tmp / _FILES[0], 0o644)  # save_file makes 0600
        (tmp / _FILES[1]).write_text(json.dumps(state), encoding="utf-8")
        marker = {"format": FORMAT, "sha256": {name: sha256_file(tmp / name) for name in _FILES}}
        (tmp / "checkpoint.json").write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    return path


def load_checkpoint(path: str | Path, device: str = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Reads a checkpoint folder: (tensors, state).

    Raises:
        CheckpointError: if a file is missing, cut or changed, or the format is another one.
    """
    from safetensors.torch import load

    path = Path(path)
    verify_checkpoint(path)
    tensors = load((path / _FILES[0]).read_bytes())
    return {k: v.to(device) for k, v in tensors.items()}, json.loads((path / _FILES[1]).read_text(encoding="utf-8"))


def verify_checkpoint(path: Path) -> None:
    """Compares every file with its hash.

    Raises:
        CheckpointError: if a file is missing, cut or changed, or the format is another one.
    """
    marker = read_json(
        path / "checkpoint.json", "the marker of a checkpoint; the folder is not a whole checkpoint", CheckpointError
    )
    if marker.get("format") != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {marker.get('format')!r}; this version reads {FORMAT}")
    for name in _FILES:
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name} is missing: the checkpoint is damaged, delete the folder")
        seen = sha256_file(path / name)
        if seen != marker["sha256"][name]:
            raise CheckpointError(
                f"{path / name} was changed after it was written (sha256 {seen[:12]}…, expected {marker['sha256'][name][:12]}…): "
                "delete the folder; the one before it is used"
            )
