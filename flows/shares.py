"""The machine divided among trainings that run side by side: cores by CPU affinity, GPUs by CUDA_VISIBLE_DEVICES.

Undivided, each of two trainings starts a thread on every core, and both wait for each other: on two cores they were twenty times slower than one alone.
The division of GPUs was never run: the project's tests have none.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Attributes:
    cores: numbers of CPU cores; empty: all.
    gpus: as CUDA_VISIBLE_DEVICES names them; empty: all.
    """

    cores: frozenset[int] = frozenset()
    gpus: tuple[str, ...] = ()

    @property
    def env(self) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.gpus else {}


WHOLE = Share()


def shares(n: int) -> list[Share]:
    """`n` equal shares; with fewer cores or GPUs than shares, several have the same one."""
    if n == 1:
        return [WHOLE]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    gpus = visible_gpus()
    return [Share(frozenset(_part(cores, i, n)), tuple(_part(gpus, i, n))) for i in range(n)]


def _part(items: list, i: int, n: int) -> list:
    """The i-th of n parts; every item in just one of them where there are enough."""
    if len(items) < n:
        return items[i % len(items) :][:1] if items else []
    return items[i::n]


def visible_gpus() -> list[str]:
    """Those of CUDA_VISIBLE_DEVICES, else all that NVIDIA's driver knows."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [g.strip() for g in told.split(",") if g.strip()]
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        return [str(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:  # no driver
        return []
