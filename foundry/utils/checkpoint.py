"""Crash-safe checkpoints: a folder of tensors (safetensors) and values (JSON), without pickle.

    step-00000200/
      part-00000-00000.safetensors   tensors, or parts of tensors: the first file of process 0
      state.json                     all other values
      checkpoint.json                the marker, written last: the hashes of all files, which file contains which part
                                     of which tensor, and its own hash

A folder is renamed into place when it is complete, so that a kill at any moment leaves the earlier checkpoints
unchanged. Every file is hashed in the memory from which it is used: what was verified is what is loaded.

Several processes may write one checkpoint, each the parts of the tensors that it has (`write_part`), and any number of
processes may read it, each the parts that it wants. `torch.distributed.checkpoint` is not used for this: its file
system format has a pickled `.metadata`, which would be executed when it is read; its safetensors format reads through
maps of files, after which a hash proves nothing, and cuts only complete files.
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
from foundry.utils.records import Record

if TYPE_CHECKING:
    import torch

FORMAT = 2
FILE_BYTES = 256 << 20  # a file ends after this much, so that few tensors are in memory twice
MARKER, STATE = "checkpoint.json", "state.json"


@dataclass(frozen=True)
class Box:
    """The part of a tensor that one process has.

    Attributes:
        offset: where it begins in the full tensor, by dimension.
        size: its own shape.
        shape: the shape of the full tensor.
    """

    offset: tuple[int, ...]
    size: tuple[int, ...]
    shape: tuple[int, ...]

    @staticmethod
    def full(shape: tuple[int, ...]) -> Box:
        """The box that contains all of a tensor."""
        return Box((0,) * len(shape), shape, shape)

    def overlap(self, other: Box) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
        """What both boxes contain, as slices of this part and of the other; None if that is nothing."""
        mine, theirs = [], []
        for a, n, b, m in zip(self.offset, self.size, other.offset, other.size, strict=True):
            begin, end = max(a, b), min(a + n, b + m)
            if begin >= end:
                return None
            mine.append(slice(begin - a, end - a))
            theirs.append(slice(begin - b, end - b))
        return tuple(mine), tuple(theirs)


class FileEntry(Record):
    """What the marker records of a file."""

    sha256: str
    bytes: int

    @classmethod
    def of(cls, data: bytes) -> FileEntry:
        return cls(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


class PartEntry(Record):
    """Where a part of a tensor is: its file, and its box in the full tensor."""

    file: str
    offset: list[int]
    size: list[int]


class TensorEntry(Record):
    """What the marker records of a tensor: the shape of the full tensor, and its parts."""

    shape: list[int]
    parts: list[PartEntry]


class Contents(Record):
    """The files of a checkpoint and the tensors in them: those of one process, or of the complete checkpoint."""

    files: dict[str, FileEntry]
    tensors: dict[str, TensorEntry]


# (name, shape of the full tensor) → the part that is wanted; None: all of it
WantedPart = Callable[[str, tuple[int, ...]], Box | None]


def save_checkpoint(path: str | Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> Path:
    """Writes a checkpoint folder at `path`, by one process.

    Args:
        tensors: on any device; they are copied to the CPU. They must not share storage.
        state: JSON values only.

    Raises:
        DiskError: if the disk is full; an earlier checkpoint at `path` is unchanged.
    """
    path = Path(path)
    with atomic_dir(path, needed=total_bytes(tensors, {})) as tmp:
        write_marker(tmp, [write_part(tmp, 0, tensors, {})], state)
    return path


def total_bytes(tensors: dict[str, torch.Tensor], boxes: dict[str, Box]) -> int:
    """Bytes of a checkpoint with all parts of divided tensors; names, shapes and hashes take about 1 KiB per tensor."""
    return 1024 * len(tensors) + sum(
        t.element_size() * math.prod(boxes[k].shape if k in boxes else t.shape) for k, t in tensors.items()
    )


def write_part(folder: Path, rank: int, tensors: dict[str, torch.Tensor], boxes: dict[str, Box]) -> Contents:
    """Writes the tensors of one process; returns what the marker has to record of them.

    Args:
        boxes: by the name of each tensor that is a part: which part. The other tensors are full, and only rank 0 writes
            them.
    """
    from safetensors.torch import save

    contents = Contents(files={}, tensors={})
    for number, group in enumerate(_groups(rank, tensors, boxes)):
        name = f"part-{rank:05d}-{number:05d}.safetensors"
        data = save({k: tensors[k].detach().cpu().contiguous() for k in group})
        with atomic_write(folder / name) as f:
            f.write(data)
        contents.files[name] = FileEntry.of(data)
        for k in group:
            box = boxes.get(k) or Box.full(tuple(tensors[k].shape))
            part = PartEntry(file=name, offset=list(box.offset), size=list(box.size))
            contents.tensors[k] = TensorEntry(shape=list(box.shape), parts=[part])
    return contents


def _groups(rank: int, tensors: dict[str, torch.Tensor], boxes: dict[str, Box]) -> Iterator[list[str]]:
    """The names of the tensors of each file."""
    group: list[str] = []
    left = FILE_BYTES
    for name, tensor in tensors.items():
        if (rank and name not in boxes) or (name in boxes and not tensor.numel()):
            continue
        if group and tensor.nbytes > left:
            yield group
            group, left = [], FILE_BYTES
        group.append(name)
        left -= tensor.nbytes
    if group:
        yield group


def write_marker(folder: Path, contents: list[Contents], state: dict[str, Any]) -> None:
    """Completes a checkpoint whose parts are all written.

    Args:
        contents: what `write_part` returned on each process.
        state: JSON values only.
    """
    data = json.dumps(state).encode()
    with atomic_write(folder / STATE) as f:
        f.write(data)
    complete = Contents(files={STATE: FileEntry.of(data)}, tensors={})
    for one in contents:
        complete.files.update(one.files)
        for name, entry in one.tensors.items():
            complete.tensors.setdefault(name, TensorEntry(shape=entry.shape, parts=[])).parts.extend(entry.parts)
    body = {"format": FORMAT, **complete.model_dump()}
    write_json(folder / MARKER, {**body, "sha256": sha256_json(body)})


def load_checkpoint(path: str | Path, device: str = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Reads a checkpoint folder: (full tensors, state).

    Raises:
        CheckpointError: if a file is missing, cut or changed, or the checkpoint has another format.
    """
    tensors, state = read_checkpoint(Path(path), lambda name, shape: None)
    return {k: v.to(device) for k, v in tensors.items()}, state


def read_checkpoint(path: Path, wanted: WantedPart) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Reads the wanted part of every tensor, and only the files that contain some of it: (tensors on the CPU, state).

    Raises:
        CheckpointError: if a file is missing, cut or changed, the checkpoint has another format, or parts of a tensor
            are missing.
    """
    import torch
    from safetensors.torch import load

    contents = _read_marker(path)
    state = json.loads(_verified(path, STATE, contents))
    tensors: dict[str, torch.Tensor] = {}
    missing: dict[str, int] = {}  # by tensor: elements that no file has given yet
    boxes: dict[str, Box] = {}
    parts_of: dict[str, list[tuple[str, Box]]] = {}  # by file
    for name, entry in contents.tensors.items():
        shape = tuple(entry.shape)
        boxes[name] = wanted(name, shape) or Box.full(shape)
        missing[name] = math.prod(boxes[name].size)
        for part in entry.parts:
            parts_of.setdefault(part.file, []).append((name, Box(tuple(part.offset), tuple(part.size), shape)))
    for file, parts in parts_of.items():
        if not any(boxes[name].overlap(box) for name, box in parts):
            continue
        loaded = load(_verified(path, file, contents))
        for name, box in parts:
            if (common := boxes[name].overlap(box)) is None:
                continue
            if box == boxes[name]:
                tensors[name] = loaded[name]
            else:
                mine = tensors.setdefault(name, torch.empty(boxes[name].size, dtype=loaded[name].dtype))
                mine[common[0]] = loaded[name][common[1]]
            missing[name] -= math.prod(s.stop - s.start for s in common[0])
    if incomplete := sorted(name for name, n in missing.items() if n):
        raise CheckpointError(f"{path} lacks parts of {', '.join(incomplete[:3])}: the checkpoint is damaged")
    # What is still absent is an empty part: only the processes that have some of the tensor know its dtype.
    for name in boxes.keys() - tensors.keys():
        tensors[name] = torch.empty(boxes[name].size)
    return tensors, state


def verify_checkpoint(path: Path, files: list[str] | None = None) -> None:
    """Compares files with their hashes.

    Args:
        files: their names; None for all.

    Raises:
        CheckpointError: if a file is missing, cut or changed, or the checkpoint has another format.
    """
    contents = _read_marker(path)
    for name in contents.files if files is None else files:
        _verified(path, name, contents)


def _read_marker(path: Path) -> Contents:
    what = "the marker of a checkpoint; the folder is not a complete checkpoint"
    marker = read_json(path / MARKER, what, CheckpointError)
    if not isinstance(marker, dict) or marker.get("format") != FORMAT:
        seen = marker.get("format") if isinstance(marker, dict) else None
        raise CheckpointError(f"{path} has checkpoint format {seen!r}; this version reads {FORMAT}")
    if sha256_json({k: v for k, v in marker.items() if k != "sha256"}) != marker.get("sha256"):
        raise CheckpointError(f"{path / MARKER} was changed after it was written")
    return Contents.model_validate({"files": marker["files"], "tensors": marker["tensors"]})


def _verified(path: Path, name: str, contents: Contents) -> bytes:
    """The bytes of a file, if they are those that were written."""
    try:
        data = (path / name).read_bytes()
    except OSError as e:
        raise CheckpointError(f"{path / name} cannot be read ({e.strerror}): the checkpoint is damaged") from None
    expected, seen = contents.files[name], FileEntry.of(data)
    if seen != expected:
        raise CheckpointError(
            f"{path / name} was changed after it was written ({seen.bytes:,} bytes with sha256 {seen.sha256[:12]}…, "
            f"expected {expected.bytes:,} with {expected.sha256[:12]}…)"
        )
    return data
