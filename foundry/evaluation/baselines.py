"""What general compressors need for the same bytes, in bits per byte: the yardstick of a small language model.

`alone` compresses the test text by itself; `given_train` is the size of train and test together minus that of train, so
the compressor has read what the model was trained on. PPMd (Shkarin 2002, variant H as in 7-Zip) is the strongest of
the fast ones on text: a model that needs more bits has learned less than a table of contexts.

The compressors need seconds of every core and know nothing of the model, so they run in processes beside its
evaluation, and the sizes of the same texts are kept in `.foundry/baselines/`: another model on the same data costs
nothing.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyppmd

from foundry.config import FoundryError
from foundry.data.tokens.shards import read_texts
from foundry.evaluation import compressors
from foundry.utils.evaluation_report import CompressedSize
from foundry.utils.files import make_folder, sha256_json, state_dir, write_json
from foundry.utils.records import Record

MAX_TRAIN_BYTES = 64 << 20  # from the end of the training text: what fits into xz's largest dictionary
PROBE_BYTES = 1 << 16  # of the test text, see `_key`


class KeptSizes(Record):
    """A file of `.foundry/baselines/`.

    Attributes:
        sizes: {compressor: [compressed bytes of the test text by itself, and after the training text]}.
        sha256: of the sizes, so that a damaged file is noticed.
    """

    sizes: dict[str, list[int]]
    sha256: str

    @classmethod
    def of(cls, sizes: dict[str, list[int]]) -> Self:
        return cls(sizes=sizes, sha256=sha256_json(sizes))


def last_bytes(parts: Sequence[Path], most: int = MAX_TRAIN_BYTES) -> bytes:
    """The end of the text of `part-*.parquet` files, with an empty line after each document.

    Reads one part at a time, and only the parts that it needs.
    """
    data = b""
    for part in reversed(parts):
        if len(data) >= most:
            break
        data = b"".join(text.encode() + b"\n\n" for text in read_texts(part)) + data
    return data[-most:]


@contextmanager
def compressing(train: bytes, test: bytes) -> Iterator[Callable[[], dict[str, CompressedSize]]]:
    """Compresses in the background while the block runs, unless the sizes of these texts are known.

    Args:
        train: what the compressors have read before the test text.

    Yields:
        A function that waits for the sizes and returns the bits per byte of the test text by compressor. It raises a
        `FoundryError` if a compressor died.

    Raises:
        ValueError: if there is no test text.
    """
    if not test:
        raise ValueError("the test text is empty")
    path, test_bytes = state_dir() / "baselines" / f"{_key(train, test)}.json", len(test)
    if known := kept(path):
        yield lambda: _bits_per_byte(known, test_bytes)
        return
    command = [sys.executable, "-m", compressors.__name__, str(len(train))]
    text = train + test
    del train, test  # the block that follows takes as long as the evaluation
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
        ThreadPoolExecutor(1) as thread,
    ):
        answer = thread.submit(process.communicate, text)

        def result() -> dict[str, CompressedSize]:
            out, _ = answer.result()
            if process.returncode:
                raise FoundryError(
                    f"the compressors died with exit code {process.returncode} (perhaps because memory ran out): run "
                    "the same command again, or set evaluate.baselines to false"
                )
            sizes = json.loads(out)
            keep(path, sizes)
            return _bits_per_byte(sizes, test_bytes)

        try:
            yield result
        finally:
            process.kill()  # does nothing if it has ended


def _key(train: bytes, test: bytes) -> str:
    """The identity of the sizes: both texts, and the versions of the compressors.

    No module knows the version of the library behind `lzma`: another one shows itself by other bytes of a probe.
    """
    probe = lzma.compress(test[:PROBE_BYTES], preset=compressors.XZ_PRESET)
    hashes = [hashlib.sha256(data).hexdigest() for data in (train, test, probe)]
    return sha256_json([*hashes, pa.__version__, pyppmd.__version__])


def keep(path: Path, sizes: dict[str, list[int]]) -> None:
    """Writes a file of sizes, atomically."""
    make_folder(path.parent)
    write_json(path, KeptSizes.of(sizes).model_dump())


def kept(path: Path) -> dict[str, list[int]] | None:
    """The sizes in a file; None if there is none, or it is damaged. The file is then the newest of its folder."""
    try:
        found = KeptSizes.read(path, "sizes of compressed texts")
    except FoundryError:
        return None
    if found != KeptSizes.of(found.sizes):
        return None
    os.utime(path)  # `foundry gc` removes what was not used for some days
    return found.sizes


def _bits_per_byte(sizes: dict[str, list[int]], test_bytes: int) -> dict[str, CompressedSize]:
    return {
        name: CompressedSize(alone=round(8 * alone / test_bytes, 4), given_train=round(8 * given / test_bytes, 4))
        for name, (alone, given) in sizes.items()
    }
