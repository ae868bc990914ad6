"""One model on one or many processes: its forward pass, the norm of its gradients, its state.

alone   one process: the model as it is.
ddp     every process has the whole model; gradients are summed over the processes (gloo on CPUs, NCCL on GPUs).
fsdp    weights, gradients and moments are divided over the processes (FSDP2, Zhao et al. 2023, arXiv:2304.11277), for
        models that do not fit one device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from foundry.models import MiniLLM
from foundry.training.protocols import Loss
from foundry.utils.checkpoint import Box
from foundry.utils.distributed import World


class Applied(nn.Module):
    """A function of the model as a forward pass, which is what DDP and FSDP hook."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *batch: Tensor | None, function: Callable[..., Any] | None = None) -> Any:
        """The loss of a batch; or another function of (model, *batch)."""
        return (function or self.loss)(self.model, *batch)


class Parallel:
    """The model on all processes.

    Args:
        mode: `ddp` or `fsdp`; with one process both are the model as it is.
        loss: see `protocols.Loss`.
        precision: of the products. With FSDP and bfloat16 the layers' weights are exchanged in it, and their gradients
            in float32; embedding, last norm and head stay in float32, as the residual stream does.
    """

    def __init__(
        self, model: MiniLLM, world: World, mode: str, loss: Loss, precision: torch.dtype = torch.float32
    ) -> None:
        self.world, self.mode = world, mode if world.size > 1 else "alone"
        self.module: nn.Module = Applied(model, loss)
        if self.mode == "ddp":
            ids = [world.device.index] if world.device.type == "cuda" else None
            # Buffers are constants (the codes of frozen weights), the same on every process.
            self.module = nn.parallel.DistributedDataParallel(self.module, device_ids=ids, broadcast_buffers=False)
        elif self.mode == "fsdp":
            import torch.distributed as dist
            from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

            # By itself FSDP takes the GPU where there is one, also for a model on the CPU.
            mesh = dist.init_device_mesh(world.device.type, (dist.get_world_size(),))
            half = precision if precision == torch.bfloat16 else None
            policy = MixedPrecisionPolicy(half, torch.float32 if half else None, cast_forward_inputs=False)
            for block in model.layers:
                fully_shard(block, mesh=mesh, mp_policy=policy)
            fully_shard(self.module, mesh=mesh)

    @property
    def divided(self) -> bool:
        """Whether every process has only a part of the state, and all must take part in what reads the weights."""
        return self.mode == "fsdp"

    @property
    def gradient_scale(self) -> float:
        """The factor of the loss that makes gradients a sum over the processes: DDP and FSDP take their mean."""
        return 1.0 if self.mode == "alone" else float(self.world.size)

    def apply(self, function: Callable[..., Any], *batch: Tensor | None) -> Any:
        """A function of (model, *batch) without gradients, for validation. With FSDP every process must ask."""
        module = self.module if self.divided else getattr(self.module, "module", self.module)
        return module(*batch, function=function)

    def accumulating(self, last: bool) -> AbstractContextManager:
        """A context for the passes of a micro-batch: only the last one of a step communicates with other processes."""
        if self.mode == "ddp" and not last:
            return self.module.no_sync()
        if self.divided:
            self.module.set_requires_gradient_sync(last)
        return nullcontext()


def joined(tensor: Tensor) -> Tensor:
    """A tensor with all its parts; every process must ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def divided_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A complete tensor, divided as FSDP divides `like`; the tensor itself where nothing is divided."""
    if not hasattr(like, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def box_of(tensor: Tensor) -> Box | None:
    """Which part of a tensor FSDP gave to this process; None where nothing is divided."""
    if not hasattr(tensor, "device_mesh"):
        return None
    (chunk,) = tensor.__create_chunk_list__()  # the protocol of torch.distributed.checkpoint
    return Box(tuple(chunk.offsets), tuple(chunk.sizes), tuple(tensor.shape))


def own_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process has; the tensor itself where nothing is divided."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def from_part(part: Tensor, like: Tensor) -> Tensor:
    """The opposite of `own_part`: this process's part as a tensor that is divided as `like` is."""
    if not hasattr(like, "device_mesh"):
        return part
    from torch.distributed.tensor import DTensor

    part = part.to(device=like.device, dtype=like.dtype)
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def gradient_norm(grads: list[Tensor]) -> Tensor:
    """The global norm of gradients, a scalar on their device, the same on every process."""
    return joined(nn.utils.get_total_norm(grads))


def clip_gradients(grads: list[Tensor], norm: float, limit: float) -> None:
    """Scales gradients of a global norm to one of at most `limit` (0: no limit).

    Gradients whose norm is not finite are left as they are.
    """
    if 0 < limit < norm < math.inf:
        torch._foreach_mul_(grads, limit / (norm + 1e-6))
