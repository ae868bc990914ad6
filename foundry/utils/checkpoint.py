"""Crash-safe checkpoints: a folder of tensors (safetensors) and values (JSON), no pickle.

    step-00000200/
      part-00000-00000.safetensors   tensors, or parts of tensors: of process 0, its first file
      state.json                     every other value
      checkpoint.json                the marker: hashes of all files, which file has which part of which tensor, its own hash; written last

A folder is renamed into place when it is complete, so a kill at any moment leaves the earlier checkpoints as they were.
Every file is hashed in the memory from which it is used: what was verified is what is loaded.

Several processes may write one checkpoint, each the parts of the tensors that it has (`write_part`), and any number of processes may read
it, each the parts that it wants. `torch.distributed.checkpoint` is not used for this: its file system format has a pickled `.metadata`,
which would be executed when it is read; its safetensors format reads through maps of files, after which a hash proves nothing, and cuts
only whole files.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.config import CheckpointError
from foundry.utils.files import atomic_dir, atomic_write, read_json, sha256_json, write_json

if TYPE_CHECKING:
    import torch

FORMAT = 2
FILE_BYTES = 256 << 20  # a file ends after this much, so that few tensors are in memory twice
MARKER, STATE = "checkpoint.json", "state.json"


@dataclass(frozen=True)
class Box:
    """The part of a tensor that one process has.

    Attributes:
        offset: where it begins in the whole tensor, by dimension.
        size: its own shape.
        shape: that of the whole tensor.
    """

    offset: tuple[int, ...]
    size: tuple[int, ...]
    shape: tuple[int, ...]

    @staticmethod
    def whole(shape: tuple[int, ...]) -> Box:
        return Box((0,) * len(shape), shape, shape)

    def common(self, other: Box) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
        """What both have, as slices of this part and of the other; None if that is nothing."""
        mine, theirs = [], []
        for a, n, b, m in zip(self.offset, self.size, other.offset, other.size, strict=True):
            begin, end = max(a, b), min(a + n, b + m)
            if begin >= end:
                return None
            mine.append(slice(begin - a, end - a))
            theirs.append(slice(begin - b, end - b))
        return tuple(mine), tuple(theirs)


WantedPart = Callable[
    [str, tuple[int, ...]], Box | None
]  # (name, shape of the whole tensor) → the part wanted; None: all of it


def save_checkpoint(path: str | Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> Path:
    """Writes a checkpoint folder at `path`, by one process.

    Args:
        tensors: any devices; they are copied to the CPU. Names are free, shared storage is not allowed.
        state: JSON values only.

    Raises:
        DiskError: if the disk takes no more; what was there before is as it was.
    """
    path = Path(path)
    with atomic_dir(path, needed=total_bytes(tensors, {})) as tmp:
        write_marker(tmp, [write_part(tmp, 0, tensors, {})], state)
    return path


def total_bytes(tensors: dict[str, torch.Tensor], boxes: dict[str, Box]) -> int:
    """Bytes that a checkpoint takes, with all parts of divided tensors; names, shapes and hashes take about 1 KiB per tensor."""
    return 1024 * len(tensors) + sum(
        t.element_size() * math.prod(boxes[k].shape if k in boxes else t.shape) for k, t in tensors.items()
    )


def write_part(folder: Path, rank: int, tensors: dict[str, torch.Tensor], boxes: dict[str, Box]) -> dict[str, Any]:
    """Writes one process's tensors; returns what the marker says of them.

    Args:
        boxes: of each tensor that is a part, which part; the others are whole, and rank 0 alone writes them.
    """
    from safetensors.torch import save

    record: dict[str, Any] = {"files": {}, "tensors": {}}
    for number, group in enumerate(_groups(rank, tensors, boxes)):
        name = f"part-{rank:05d}-{number:05d}.safetensors"
        data = save({k: tensors[k].detach().cpu().contiguous() for k in group})
        with atomic_write(folder / name) as f:
            f.write(data)
        record["files"][name] = _facts(data)
        for k in group:
            box = boxes.get(k) or Box.whole(tuple(tensors[k].shape))
            record["tensors"][k] = {
                "shape": box.shape,
                "parts": [{"file": name, "offset": box.offset, "size": box.size}],
            }
    return record


def _groups(rank: int, tensors: dict[str, torch.Tensor], boxes: dict[str, Box]) -> Iterator[list[str]]:
    """The names of the tensors of each file."""
    group: list[str] = []
    room = FILE_BYTES
    for name, tensor in tensors.items():
        if (rank and name not in boxes) or (name in boxes and not tensor.numel()):
            continue
        if group and tensor.nbytes > room:
            yield group
            group, room = [], FILE_BYTES
        group.append(name)
        room -= tensor.nbytes
    if group:
        yield group


def write_marker(folder: Path, records: list[dict[str, Any]], state: dict[str, Any]) -> None:
    """Completes a checkpoint whose parts are all written.

    Args:
        records: what `write_part` returned on each process.
    """
    data = json.dumps(state).encode()
    with atomic_write(folder / STATE) as f:
        f.write(data)
    body: dict[str, Any] = {"format": FORMAT, "files": {STATE: _facts(data)}, "tensors": {}}
    for record in records:
        body["files"] |= record["files"]
        for name, entry in record["tensors"].items():
            body["tensors"].setdefault(name, {"shape": entry["shape"], "parts": []})["parts"] += entry["parts"]
    write_json(folder / MARKER, {**body, "sha256": sha256_json(body)})


def load_checkpoint(path: str | Path, device: str = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Reads a checkpoint folder: (whole tensors, state).

    Raises:
        CheckpointError: if a file is missing, cut or changed, or the format is another one.
    """
    tensors, state = read_checkpoint(Path(path), lambda name, shape: None)
    return {k: v.to(device) for k, v in tensors.items()}, state


def read_checkpoint(path: Path, wanted: WantedPart) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Reads the wanted part of every tensor, from only the files that have some of it: (tensors on the CPU, state).

    Raises:
        CheckpointError: if a file is missing, cut or changed, the format is another one, or parts of a tensor are missing.
    """
    import torch
    from safetensors.torch import load

    marker = _marker(path)
    state = json.loads(_verified(path, STATE, marker))
    tensors: dict[str, torch.Tensor] = {}
    missing: dict[str, int] = {}  # elements of each tensor that no file gave yet
    boxes: dict[str, Box] = {}
    homes: dict[str, list[tuple[str, Box]]] = {}
    for name, entry in marker["tensors"].items():
        shape = tuple(entry["shape"])
        boxes[name] = wanted(name, shape) or Box.whole(shape)
        missing[name] = math.prod(boxes[name].size)
        for part in entry["parts"]:
            homes.setdefault(part["file"], []).append((name, Box(tuple(part["offset"]), tuple(part["size"]), shape)))
    for file, parts in homes.items():
        if not any(boxes[name].common(box) for name, box in parts):
            continue
        held = load(_verified(path, file, marker))
        for name, box in parts:
            if (common := boxes[name].common(box)) is None:
                continue
            if box == boxes[name]:
                tensors[name] = held[name]
            else:
                mine = tensors.setdefault(name, torch.empty(boxes[name].size, dtype=held[name].dtype))
                mine[common[0]] = held[name][common[1]]
            missing[name] -= math.prod(s.stop - s.start for s in common[0])
    if lost := sorted(name for name, n in missing.items() if n):
        raise CheckpointError(f"{path} lacks parts of {', '.join(lost[:3])}: the checkpoint is damaged")
    for name in (
        boxes.keys() - tensors.keys()
    ):  # an empty part: its dtype is that of its tensor, which some other process has
        tensors[name] = torch.empty(boxes[name].size)
    return tensors, state


def verify_checkpoint(path: Path, files: list[str] | None = None) -> None:
    """Compares files with their hashes.

    Args:
        files: which; None for all.

    Raises:
        CheckpointError: if a file is missing, cut or changed, or the format is another one.
    """
    marker = _marker(path)
    for name in marker["files"] if files is None else files:
        _verified(path, name, marker)


def _marker(path: Path) -> dict[str, Any]:
    try:
        marker = read_json(
            path / MARKER, "the marker of a checkpoint; the folder is not a complete checkpoint", CheckpointError
        )
    except OSError as e:
        raise CheckpointError(f"{path / MARKER} cannot be read: {e.strerror}") from None
    if not isinstance(marker, dict) or marker.get("format") != FORMAT:
        seen = marker.get("format") if isinstance(marker, dict) else None
        raise CheckpointError(f"{path} has checkpoint format {seen!r}; this version reads {FORMAT}")
    if sha256_json({k: v for k, v in marker.items() if k != "sha256"}) != marker.get("sha256"):
        raise CheckpointError(f"{path / MARKER} was changed after it was written")
    return marker


def _facts(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _verified(path: Path, name: str, marker: dict[str, Any]) -> bytes:
    """The bytes of a file, which are those that were written."""
    try:
        data = (path / name).read_bytes()
    except OSError as e:
        raise CheckpointError(f"{path / name} cannot be read ({e.strerror}): the checkpoint is damaged") from None
    expected, seen = marker["files"][name], _facts(data)
    if seen != expected:
        raise CheckpointError(
            f"{path / name} was changed after it was written ({seen['bytes']:,} bytes with sha256 {seen['sha256'][:12]}…, "
            f"expected {expected['bytes']:,} with {expected['sha256'][:12]}…)"
        )
    return data
