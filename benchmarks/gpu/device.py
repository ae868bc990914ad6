"""The machine: what the report says of it, and the speed of a large matrix product."""

from __future__ import annotations

import platform
import subprocess
import time
from typing import Any

import torch

from foundry.utils.device import cpu_cores, device_name, get_device, peak_flops


class Device:
    """A process of its own asks CUDA, so that the benchmark's first process has no context on the card."""

    def __init__(self, device: str) -> None:
        self.device = get_device(device)

    def card(self, tiny: bool) -> dict[str, Any]:
        """The fields of `record.Card`."""
        cuda = self.device.type == "cuda"
        properties = torch.cuda.get_device_properties(self.device) if cuda else None
        peak = peak_flops(self.device, torch.bfloat16) if cuda else None
        return {
            "name": device_name(self.device),
            "device": self.device.type,
            "memory_gib": round(properties.total_memory / 2**30, 2) if cuda else None,
            "capability": f"{properties.major}.{properties.minor}" if cuda else None,
            "driver": _driver() if cuda else None,
            "cuda": torch.version.cuda,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "cores": cpu_cores(),
            "peak_tflops": round(peak / 1e12, 1) if peak else None,
            "tiny": tiny,
        }

    def gemm(self, n: int) -> float:
        """TFLOP/s of the product of two (n, n) matrices in bfloat16, over about half a second."""
        a = torch.randn(n, n, device=self.device, dtype=torch.bfloat16)
        b = torch.randn(n, n, device=self.device, dtype=torch.bfloat16)
        for _ in range(3):
            a @ b
        self._sync()
        begin, times = time.perf_counter(), 0
        while time.perf_counter() - begin < 0.5:
            for _ in range(5):
                a @ b
            self._sync()
            times += 5
        return times * 2 * n**3 / (time.perf_counter() - begin) / 1e12

    def _sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _driver() -> str | None:
    """The driver's version, as nvidia-smi says it; None where there is no such command."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.splitlines()[0].strip()
    except (OSError, subprocess.TimeoutExpired, IndexError):
        return None
