"""Products of activations with weights in inference: one way for every step, whatever else is in it.

Weights are packed once into the layout that oneDNN multiplies from; `F.linear` would rearrange them in every call. In
bfloat16 on two cores, the products of one token took 0.7 times as long (31 million weights and a head of 8,192 by 512).

A row of a product does not depend on the other rows. oneDNN's kernels for two rows and more sum in the same order for
every number of rows, and a single row is computed as two, because it has a kernel of its own in float32 and where
bfloat16 is emulated. In bfloat16 this needs the layout for one row: with wider ones, AMX sums in another order from
some number of rows on. It also needs a number of inputs that is a multiple of 32: with 16, 30 or 1,000 inputs, some
rows were different from 257 rows on, or earlier. `F.linear` does not have this property: MKL chooses among kernels by
the number of rows. On a GPU nothing is promised.

Letters: N rows, C inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[[Tensor], Tensor]  # (N, C) to (N, O)
ROWS = {torch.float32: None, torch.bfloat16: 1}  # that the layout is made for; None: oneDNN's choice


def pack(weight: Tensor) -> Product:
    """Prepares a matrix (O, C) for products in its own type; they do not follow later changes of the matrix."""
    if weight.device.type != "cpu" or not _in_onednn(weight.dtype):
        kept = weight.detach().clone()
        return lambda x: F.linear(x, kept)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS[weight.dtype])
    linear = torch.ops.mkldnn._linear_pointwise
    # Processors for which oneDNN has float16 multiply bfloat16 natively. Unlike the processor's flags, this follows
    # ONEDNN_MAX_CPU_ISA, as the kernels do.
    native = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_fp16_supported()
    least = 1 if native else 2

    def product(x: Tensor) -> Tensor:
        if x.shape[0] >= least:
            return linear(x, packed, None, "none", [], "")
        return linear(x.expand(2, -1), packed, None, "none", [], "")[:1]

    return product


def _in_onednn(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
