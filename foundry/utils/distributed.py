"""Process groups: one process does everything, or torchrun has started several (DDP, FSDP).

Decisions are made on rank 0 and broadcast; only rank 0 prints, locks, writes and tracks.
"""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foundry.config import FoundryError, Runtime
from foundry.utils.device import cpu_cores, get_device

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class World:
    """This process and the group that it belongs to."""

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

        t = torch.tensor(int(flag))  # on the CPU, by gloo: no process waits for its GPU
        dist.all_reduce(t, op=dist.ReduceOp.MAX)
        return bool(t.item())

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks; the tensor is changed in place."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(value)
        return value

    def gather(self, value: Any) -> list[Any]:
        """A small value of every rank, in the order of the ranks."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def share(self, value: Any) -> Any:
        """The value of rank 0, on every rank: for decisions that must be the same on all of them."""
        return self.gather(value if self.main else None)[0]

    def barrier(self) -> None:
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()


def launch(runtime: Runtime, module: str) -> bool:
    """Runs `module` in several processes by torchrun, if `runtime` asks for that.

    Returns:
        True when these processes have ended. False, at once, in one of them, in a process that the user's own torchrun
        started (several nodes), or if one process is enough.

    Raises:
        SystemExit: with 128 + signal if they were stopped.
        FoundryError: if one of them failed; the message says which, and how.
    """
    if "RANK" in os.environ:
        return False
    n = runtime.nproc
    if n == 0:
        import torch

        n = torch.cuda.device_count() if get_device(runtime.device).type == "cuda" else 1
    if n <= 1:
        return False
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # failures are reported below
    cores = max(1, cpu_cores() // n)
    os.environ.setdefault("OMP_NUM_THREADS", str(runtime.threads or cores))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=n,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)("-m", module)
    except SignalException as e:
        raise SystemExit(128 + int(e.sigval)) from None
    except ChildFailedError as e:
        codes = {rank: failure.exitcode for rank, failure in e.failures.items()}
        if stopped := [c for c in codes.values() if c in (130, 143)]:
            raise SystemExit(stopped[0]) from None
        killed = [r for r, c in codes.items() if c < 0 and c != -15]  # the launcher stops the others with signal 15
        rank, first = (killed[0], e.failures[killed[0]]) if killed else e.get_first_failure()
        how = f"was killed by signal {-first.exitcode}" if first.exitcode < 0 else f"ended with code {first.exitcode}"
        raise FoundryError(
            f"training process {rank} of {n} {how}; the others were stopped. Its own error is printed above; the same "
            "command resumes from the last checkpoint"
        ) from None
    return True


@contextmanager
def lost_peer_errors(here: World) -> Iterator[None]:
    """Turns what collectives in the block raise when another process is gone into a `FoundryError` of one line.

    Raises:
        FoundryError: if another process is gone; the launcher reports which, and how it ended.
    """
    import torch.distributed as dist

    try:
        yield
    except RuntimeError as e:
        # Gloo's errors have no type of their own (torch 2.13), whether from a collective or from a backward pass: only
        # the path of its source in their text identifies them.
        if here.size == 1 or not (isinstance(e, dist.DistError) or "gloo" in str(e)):
            raise
        raise FoundryError(
            f"training process {here.rank} lost the connection to another one ({str(e).splitlines()[0][:200]})"
        ) from None


@contextmanager
def world(runtime: Runtime) -> Iterator[World]:
    """Joins the process group that torchrun made; without torchrun, a group of one.

    Tensors on CUDA are exchanged by NCCL, all others by gloo.
    """
    device = get_device(runtime.device)
    if "RANK" not in os.environ:
        yield World(0, 1, device)
        return
    import torch
    import torch.distributed as dist

    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
