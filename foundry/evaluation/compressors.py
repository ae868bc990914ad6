"""Sizes of a text by general compressors, in a process of its own: `python -m foundry.evaluation.compressors BYTES`.

Reads the training text (so many BYTES) and after it the test text from its standard input, and prints {compressor:
[compressed bytes of the test text by itself, and after the training text]} as JSON. The compressors run side by side,
each in a fork of this process, and give way to other work: whoever starts them computes meanwhile.
"""

from __future__ import annotations

import json
import lzma
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import pyppmd

from foundry.utils.process import as_worker

PPMD_MEMORY = 256 << 20  # bytes of its model; more changes nothing at these sizes
XZ_PRESET = 9 | lzma.PRESET_EXTREME
ZSTD_LEVEL = 22  # the highest; its window is 128 MiB


def xz_sizes(train: bytes, test: bytes) -> tuple[int, int]:
    """Compressed bytes of the test text: (by itself, of both texts less those of the training text).

    The training text is compressed once, not twice: a fork of this process ends its stream there, to learn the size,
    while this process appends the test text. So only a process without other threads may call this.
    """
    alone = len(lzma.compress(test, preset=XZ_PRESET))
    encoder = lzma.LZMACompressor(preset=XZ_PRESET)
    encoder.compress(train)
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, b"%d" % len(encoder.flush()))
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        rest_of_train = int(pipe.read())
    os.waitpid(child, 0)
    return alone, len(encoder.compress(test)) + len(encoder.flush()) - rest_of_train


def zstd_sizes(train: bytes, test: bytes) -> tuple[int, int]:
    """The same by zstd, which compresses each text as a whole: a stream of unknown length would be of another size."""
    import pyarrow as pa

    def size(data: bytes) -> int:
        return len(pa.Codec("zstd", compression_level=ZSTD_LEVEL).compress(data, asbytes=True))

    with ThreadPoolExecutor(2) as pool:  # pyarrow releases the interpreter's lock
        both, before = pool.map(size, (train + test, train))
    return size(test), both - before


def ppmd_sizes(train: bytes, test: bytes, order: int) -> tuple[int, int]:
    """The same by PPMd: (by itself, after the training text)."""
    alone = pyppmd.Ppmd7Encoder(order, PPMD_MEMORY)
    size = len(alone.encode(test)) + len(alone.flush())
    if not train:
        return size, size
    both = pyppmd.Ppmd7Encoder(order, PPMD_MEMORY)
    both.encode(train)  # a few of its bytes are still in the range coder and count for the test: negligible here
    return size, len(both.encode(test)) + len(both.flush())


COMPRESSORS: dict[str, Callable[[bytes, bytes], tuple[int, int]]] = {
    "xz": xz_sizes,
    "zstd_22": zstd_sizes,
    "ppmd_order_6": partial(ppmd_sizes, order=6),
    "ppmd_order_8": partial(ppmd_sizes, order=8),
}


_texts: tuple[bytes, bytes]  # of a fork: training text and test text


def _start(train: bytes, test: bytes) -> None:
    global _texts
    as_worker()
    _texts = train, test


def _sizes(name: str) -> tuple[int, int]:
    return COMPRESSORS[name](*_texts)


def main(train_bytes: int) -> None:
    as_worker()
    os.nice(10)
    data = sys.stdin.buffer.read()
    texts = data[:train_bytes], data[train_bytes:]
    fork = multiprocessing.get_context("fork")  # which copies no text
    with ProcessPoolExecutor(len(COMPRESSORS), fork, _start, texts) as pool:
        print(json.dumps(dict(zip(COMPRESSORS, pool.map(_sizes, COMPRESSORS), strict=True))))


if __name__ == "__main__":
    main(int(sys.argv[1]))
