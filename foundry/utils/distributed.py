"""Process groups: one process does everything, or torchrun started several (DDP).

Decisions are taken on rank 0 and shared; rank 0 alone prints, locks, writes and tracks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foundry.config import Runtime
from foundry.utils.device import get_device

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if self.size == 1:
            return flag
        import torch
        import torch.distributed as dist

        t = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(t, op=dist.ReduceOp.MAX)
        return bool(t.item())

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(value)
        return value

    def barrier(self) -> None:
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()


def launch(runtime: Runtime, module: str) -> None:
    """Replaces this process by torchrun when `runtime` asks for several; returns when it is one of them, or alone."""
    if "RANK" in os.environ:
        return
    n = runtime.nproc
    if n == 0:
        import torch

        n = torch.cuda.device_count() if get_device(runtime.device).type == "cuda" else 1
    if n > 1:
        args = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={n}",
            "--module",
            module,
        ]
        os.execv(sys.executable, args)


@contextmanager
def world(runtime: Runtime) -> Iterator[World]:
    """Joins the process group that torchrun made (NCCL on CUDA, else gloo), or stands alone."""
    device = get_device(runtime.device)
    if "RANK" not in os.environ:
        yield World(0, 1, device)
        return
    import torch
    import torch.distributed as dist

    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
