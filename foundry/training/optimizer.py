"""Optimizers: AdamW for everything, or Muon for the matrices of the layers and AdamW for the rest.

Every trained parameter is in exactly one group; a parameter that fits none is an error, so that no component is
left untrained.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from foundry.config import TrainConfig
from foundry.models.adapter import trained_parameters
from foundry.training.parallel import divided_like, from_part, joined
from foundry.training.schedule import lr_factor

# a x + b x^3 + c x^5, five times, brings singular values to between 0.7 and 1.2 (Jordan et al. 2024, "Muon: An
# optimizer for hidden layers in neural networks"). docs/en/recipe.md has what was tried in its place.
POLYNOMIAL, ITERATIONS = (3.4445, -4.7750, 2.0315), 5


def orthogonalize(x: Tensor) -> Tensor:
    """Replaces the singular values of matrices (N, rows, columns) by values near 1.

    The products are in the dtype of `x`. bfloat16 changes the result by about one percent; where it is multiplied
    natively, it is two to seven times as fast.
    """
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = POLYNOMIAL
    for _ in range(ITERATIONS):
        s = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized (Jordan et al. 2024). Only for matrices.

    torch has a Muon of its own. This one orthogonalizes matrices of one shape together and works under FSDP.

    The update of an (m, n) matrix is scaled by sqrt(max(1, m / n)); weight decay is decoupled. Matrices that FSDP
    divides are joined on every process for the iteration.

    Args:
        dtype: of the orthogonalization; momentum and weights have the dtype of the parameters.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            shapes = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for shape, params in shapes.items():
                grads = [p.grad for p in params]
                momenta = [self._momentum(p) for p in params]
                torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
                nesterov = torch._foreach_lerp(grads, momenta, group["momentum"])
                x = torch.empty(len(params), *shape, dtype=self.dtype, device=params[0].device)
                torch._foreach_copy_(list(x), [joined(n) for n in nesterov])
                updates = orthogonalize(x).to(params[0].dtype, memory_format=torch.contiguous_format)
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                own = [divided_like(u, p) for u, p in zip(updates, params, strict=True)]
                torch._foreach_add_(params, own, alpha=-group["lr"] * scale)

    def _momentum(self, p: nn.Parameter) -> Tensor:
        if "momentum" not in self.state[p]:
            self.state[p]["momentum"] = torch.zeros_like(p)
        return self.state[p]["momentum"]


class Optimizers:
    """The optimizers of one model, which a gradient scaler takes for one: either all of them step or none does.

    Args:
        precision: of the run's products of matrices; Muon's are in it, too.

    Raises:
        ValueError: if a parameter is in no group.
    """

    def __init__(self, model: nn.Module, cfg: TrainConfig, precision: torch.dtype = torch.float32) -> None:
        self.cfg = cfg
        trained = trained_parameters(model)
        self.names = {id(p): name for name, p in trained.items()}
        factors = {n: p for n, p in trained.items() if n.endswith((".lora_A", ".lora_B"))}
        inner = {n: p for n, p in trained.items() if n.startswith("layers.") and p.ndim == 2 and n not in factors}
        norms = {n: p for n, p in trained.items() if p.ndim == 1 and "norm" in n}
        tables = {n: p for n, p in trained.items() if n.startswith(("tok_embeddings.", "output."))}
        if left := sorted(set(trained) - set(factors) - set(inner) - set(norms) - set(tables)):
            raise ValueError(
                f"no optimizer group takes the parameters {', '.join(left)}: "
                "add a rule in foundry/training/optimizer.py"
            )
        plain = [*tables.values(), *norms.values()]
        # Factors of an adapter: to orthogonalize one of two factors is not Muon's update of their product.
        decayed = list(factors.values())
        self._all: list[torch.optim.Optimizer] = []
        if cfg.optimizer == "muon" and inner:
            rates = {"lr": cfg.matrix_lr, "weight_decay": cfg.weight_decay}
            self._all.append(Muon(inner.values(), **rates, dtype=precision))
        else:
            decayed += inner.values()
        groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": cfg.weight_decay}]
        adamw_groups = [group for group in groups if group["params"]]
        fused = (plain + decayed)[0].device.type in ("cpu", "cuda")
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
