"""What general compressors need for the same bytes, in bits per byte: the yardstick of a small language model.

`alone` compresses the test text by itself; `given_train` is the size of train and test together minus that of train, so
the compressor has read what the model was trained on. PPMd (Shkarin 2002, variant H as in 7-Zip) is the strongest of
the fast ones on text: a model that needs more bits has learned less than a table of contexts.
"""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyppmd

from foundry.data.tokens.shards import read_texts
from foundry.utils.evaluation_report import CompressedSize

PPMD_ORDERS = (6, 8)
PPMD_MEMORY = 256 << 20  # bytes of its model; more changes nothing at these sizes
MAX_TRAIN_BYTES = 64 << 20  # from the end of the training text: what fits into xz's largest dictionary


def xz_size(data: bytes) -> int:
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def zstd_size(data: bytes) -> int:
    """At level 22, the highest; its window is 128 MiB."""
    return len(pa.Codec("zstd", compression_level=22).compress(data, asbytes=True))


def ppmd_sizes(train: bytes, test: bytes, order: int) -> tuple[int, int]:
    """Compressed bytes of the test text: (by itself, after the training text)."""
    alone = pyppmd.Ppmd7Encoder(order, PPMD_MEMORY)
    size = len(alone.encode(test)) + len(alone.flush())
    if not train:
        return size, size
    both = pyppmd.Ppmd7Encoder(order, PPMD_MEMORY)
    both.encode(train)  # a few of its bytes are still in the range coder and count for the test: negligible here
    return size, len(both.encode(test)) + len(both.flush())


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


def baselines(train: bytes, test: bytes) -> dict[str, CompressedSize]:
    """Bits per byte of the test text by compressor; `train` is what they have read before it.

    Raises:
        ValueError: if there is no test text.
    """
    if not test:
        raise ValueError("the test text is empty")
    with ThreadPoolExecutor(4) as pool:  # both compressors release the interpreter's lock
        xz = [pool.submit(xz_size, data) for data in (train + test, train, test)]
        zstd = [pool.submit(zstd_size, data) for data in (train + test, train, test)]
        ppmd = {order: pool.submit(ppmd_sizes, train, test, order) for order in PPMD_ORDERS}
        sizes = {
            name: (sized[2].result(), sized[0].result() - sized[1].result())
            for name, sized in (("xz", xz), ("zstd_22", zstd))
        }
        sizes |= {f"ppmd_order_{order}": future.result() for order, future in ppmd.items()}
    return {
        name: CompressedSize(alone=round(8 * alone / len(test), 4), given_train=round(8 * given / len(test), 4))
        for name, (alone, given) in sizes.items()
    }
