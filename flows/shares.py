"""The machine divided among trainings that run side by side: cores by CPU affinity, GPUs by CUDA_VISIBLE_DEVICES.

Without a division, each of two trainings starts a thread on every core, and both wait for each other: on two cores each
was twenty times slower than by itself. The division of GPUs was never run: the project's tests have none.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """A part of the machine.

    Attributes:
        cores: numbers of CPU cores; empty for all.
        gpus: as CUDA_VISIBLE_DEVICES names them; empty for all.
    """

    cores: frozenset[int] = frozenset()
    gpus: tuple[str, ...] = ()

    @property
    def env(self) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.gpus else {}


WHOLE_MACHINE = Share()


def shares(n: int) -> list[Share]:
    """`n` equal shares; if there are fewer cores or GPUs than shares, several shares have the same one."""
    if n == 1:
        return [WHOLE_MACHINE]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    gpus = visible_gpus()
    return [Share(frozenset(_part(cores, i, n)), tuple(_part(gpus, i, n))) for i in range(n)]


def _part(items: list, i: int, n: int) -> list:
    """The i-th of n parts; if there are enough items, each is in exactly one part."""
    if len(items) < n:
        return items[i % len(items) :][:1] if items else []
    return items[i::n]


def visible_gpus() -> list[str]:
    """The GPUs of CUDA_VISIBLE_DEVICES; if it is not set, all that NVIDIA's driver lists."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [g.strip() for g in named.split(",") if g.strip()]
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        return [str(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:  # no driver
        return []
