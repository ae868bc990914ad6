"""System metrics of a run: CPU, memory, disk and, where there are any, GPUs, under the names that MLflow draws on its
System page.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from foundry.tracking.spool import SYSTEM, Spool
from foundry.utils.log import get_logger

PERIOD = 10.0  # seconds


class SystemMetrics(threading.Thread):
    """A thread that samples into a spool until it is stopped, and once more then.

    The steps count the samples, over all resumes.

    Args:
        folder: its disk is measured.
        period: seconds between two samples.
    """

    def __init__(self, spool: Spool, folder: Path, period: float = PERIOD) -> None:
        super().__init__(daemon=True, name="system-metrics")
        self._spool, self._folder, self._period = spool, folder, period
        self._stop_asked = threading.Event()

    def run(self) -> None:
        try:
            gpus = _gpus()
            psutil.cpu_percent()  # the first value in a process is meaningless
            step = self._spool.next_step(SYSTEM + "cpu_utilization_percentage")
            stopping = False
            while not stopping:
                stopping = self._stop_asked.wait(self._period)
                numbers = {**sample(self._folder), **gpus()}
                self._spool.log(step, {SYSTEM + k: v for k, v in numbers.items()})
                step += 1
        except Exception as e:  # a broken sensor must not stop the training
            get_logger().warning("system metrics stopped: %s: %s", type(e).__name__, e)

    def stop(self) -> None:
        """Takes a last sample and ends the thread; waits at most 5 seconds for a sensor."""
        self._stop_asked.set()
        self.join(5.0)


def sample(folder: Path) -> dict[str, float]:
    """CPU (%) and memory (MB, %) of the machine, memory of this process (MB), free space on `folder`'s disk (MB)."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(folder))
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": round(memory.used / 1e6, 1),
        "system_memory_usage_percentage": memory.percent,
        "process_memory_usage_megabytes": round(psutil.Process().memory_info().rss / 1e6, 1),
        "disk_available_megabytes": round(disk.free / 1e6, 1),
    }


def _gpus() -> Callable[[], dict[str, float]]:
    """A function that samples every NVIDIA GPU; it returns nothing where there is no GPU or no `nvidia-ml-py`."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # not installed, or no driver
        return dict
    handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    return lambda: {f"gpu_{i}_{k}": v for i, h in enumerate(handles) for k, v in _gpu(pynvml, h).items()}


def _gpu(nvml: Any, handle: Any) -> dict[str, float]:
    """The metrics that one GPU supports: not every GPU measures its power."""
    found: dict[str, float] = {}

    def ask(call: Callable[[Any], Any], names: Callable[[Any], dict[str, float]]) -> None:
        with contextlib.suppress(nvml.NVMLError):
            found.update(names(call(handle)))

    ask(nvml.nvmlDeviceGetUtilizationRates, lambda u: {"utilization_percentage": float(u.gpu)})
    ask(
        nvml.nvmlDeviceGetMemoryInfo,
        lambda m: {
            "memory_usage_megabytes": round(m.used / 1e6, 1),
            "memory_usage_percentage": round(100 * m.used / m.total, 1),
        },
    )
    ask(nvml.nvmlDeviceGetPowerUsage, lambda mw: {"power_usage_watts": round(mw / 1000, 1)})
    return found
