"""Optimizers: AdamW for everything, or Muon for the matrices of the layers and AdamW for the rest.

Every parameter is in exactly one group; a parameter that fits none is an error, so that no component is
left untrained.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from foundry.config import TrainConfig
from foundry.training.parallel import divided_like, from_part, joined
from foundry.training.schedule import lr_factor

# Coefficients of the quintic Newton-Schulz iteration that drives singular values towards 1 (Jordan et al. 2024, "Muon:
# An optimizer for hidden layers in neural networks").
_NS = (3.4445, -4.7750, 2.0315)


def orthogonalize(g: Tensor, iterations: int = 5) -> Tensor:
    """Replaces the singular values of matrices (N, rows, columns) by values near 1."""
    a, b, c = _NS
    # bfloat16 is enough for the iteration and fast on a GPU; on a CPU without it, it is emulated and ten times slower.
    x = g.to(torch.bfloat16 if g.device.type == "cuda" else torch.float32)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        s = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(g.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized (Jordan et al. 2024). Only for matrices.

    torch has a Muon of its own. This one orthogonalizes matrices of one shape together and works under FSDP.

    The update of an (m, n) matrix is scaled by sqrt(max(1, m / n)); weight decay is decoupled. Matrices that FSDP
    divides are joined on every process for the iteration.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            shapes = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for shape, params in shapes.items():
                grads = []
                for p in params:
                    m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    m.lerp_(p.grad, 1 - group["momentum"])
                    grads.append(p.grad.lerp(m, group["momentum"]))  # Nesterov
                updates = orthogonalize(torch.stack([joined(g) for g in grads]))
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for p, u in zip(params, updates, strict=True):
                    u = divided_like(u, p)
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u, alpha=-group["lr"] * scale)


class Optimizers:
    """The optimizers of one model, which a gradient scaler takes for one: either all of them step or none does.

    Raises:
        ValueError: if a parameter is in no group.
    """

    def __init__(self, model: nn.Module, cfg: TrainConfig) -> None:
        self.cfg = cfg
        self.names = {id(p): name for name, p in model.named_parameters()}
        inner = {n: p for n, p in model.named_parameters() if n.startswith("layers.") and p.ndim == 2}
        norms = {n: p for n, p in model.named_parameters() if p.ndim == 1 and "norm" in n}
        tables = {n: p for n, p in model.named_parameters() if n in ("tok_embeddings.weight", "output.weight")}
        if left := sorted(set(self.names.values()) - set(inner) - set(norms) - set(tables)):
            raise ValueError(
                f"no optimizer group takes the parameters {', '.join(left)}: "
                "add a rule in foundry/training/optimizer.py"
            )
        plain = [*tables.values(), *norms.values()]
        adamw_groups = [{"params": plain, "weight_decay": 0.0}]
        self._all: list[torch.optim.Optimizer] = []
        if cfg.optimizer == "muon":
            self._all.append(Muon(inner.values(), lr=cfg.matrix_lr, weight_decay=cfg.weight_decay))
        else:
            adamw_groups.append({"params": list(inner.values()), "weight_decay": cfg.weight_decay})
        fused = plain[0].device.type in ("cpu", "cuda")
        self._all.append(torch.optim.AdamW(adamw_groups, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=fused))
        self._peaks = [[g["lr"] for g in o.param_groups] for o in self._all]

    def __iter__(self):
        return iter(self._all)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all optimizers; the scaler looks for values that are not finite in their gradients."""
        return [group for o in self._all for group in o.param_groups]

    def step(self) -> None:
        for o in self._all:
            o.step()

    def set_lr(self, step: int) -> float:
        """Sets the learning rates of a step; returns their factor."""
        factor = lr_factor(step, self.cfg)
        for o, peaks in zip(self._all, self._peaks, strict=True):
            for group, peak in zip(o.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
        return factor

    def zero_grad(self) -> None:
        for o in self._all:
            o.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the optimizers' state, named `<parameter>/<key>`."""
        return {
            f"{self.names[id(p)]}/{k}": v for o in self._all for p, state in o.state.items() for k, v in state.items()
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what `tensors` gave: of divided parameters, this process's part.

        Raises:
            ValueError: if an entry belongs to no parameter.
        """
        for o in self._all:
            o.state.clear()
        home = {self.names[id(p)]: (o, p) for o in self._all for g in o.param_groups for p in g["params"]}
        for name, value in tensors.items():
            parameter, _, k = name.rpartition("/")
            if parameter not in home:
                raise ValueError(f"optimizer state {name!r} belongs to no parameter of this model")
            o, p = home[parameter]
            # A fused AdamW keeps its step count beside the parameter, any other one on the CPU.
            value = value.to(p.device if value.ndim or o.defaults.get("fused") else "cpu")
            o.state[p][k] = from_part(value, p) if value.ndim else value
