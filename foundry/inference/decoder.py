"""One token for each of the first slots, with shapes that never change, which a GPU replays as a captured CUDA graph.

A decoding step of a small model is some hundred kernels of a few microseconds each, and to launch one takes the host as
long as the GPU needs for it. A CUDA graph launches all of them with one call. What is captured must not depend on the
number of tokens so far: every step attends to whole slots under a mask, and the positions are tensors.

The result is that of the other steps, except for the rounding of sums over masked positions. Without a GPU the same
step runs without a graph; there the tests compare it.

Shapes by suffix: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from foundry.config import ModelConfig
from foundry.inference.cache import SlotCache
from foundry.inference.piece import Piece

WARM_UP = 2  # steps before the capture, in which libraries allocate their workspaces


class Steps(Protocol):
    """What a decoder needs of a `Runner`."""

    cfg: ModelConfig
    device: torch.device
    cache: SlotCache

    def hidden(self, tokens: Tensor, at: Tensor, slot: Tensor, attend: Callable[[Tensor, int], Tensor]) -> Tensor: ...

    def logits(self, x: Tensor) -> Tensor: ...


class Decoder:
    """Steps of a runner for its first slots, those without a request included.

    Args:
        rows: slots.
    """

    @torch.inference_mode()
    def __init__(self, runner: Steps, rows: int) -> None:
        self.runner, self.rows, device = runner, rows, runner.device
        self._tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self._slots = torch.arange(rows, device=device)
        # A row without a request writes to the last position: it is written again before anything attends to it.
        self._unused = torch.full((rows,), runner.cfg.max_seq_len - 1, dtype=torch.int64)
        self._at = self._unused.to(device, copy=True)
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self._capture()

    @torch.inference_mode()
    def step(self, pieces: Sequence[Piece]) -> Tensor:
        """Logits (R, V) after one token of each piece, in their order."""
        tokens, at = torch.zeros(self.rows, dtype=torch.int64), self._unused.clone()
        slots = [p.slot for p in pieces]
        tokens[slots] = torch.tensor([p.ids[0] for p in pieces])
        at[slots] = torch.tensor([p.start for p in pieces])
        self._tokens.copy_(tokens)
        self._at.copy_(at)
        if self._graph:
            self._graph.replay()
        else:
            self._logits = self._forward()
        return self._logits[slots]

    def _capture(self) -> None:
        with torch.cuda.device(self.runner.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self._forward()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the GPU meanwhile
                self._logits = self._forward()
        self._graph = graph

    def _forward(self) -> Tensor:
        runner, cfg = self.runner, self.runner.cfg
        s, at = torch.arange(cfg.max_seq_len, device=runner.device)[None], self._at[:, None]
        mask = (s <= at) & (s > at - cfg.sliding_window) if cfg.sliding_window else s <= at

        def attend(q: Tensor, i: int) -> Tensor:
            k, v = runner.cache.kv[i, :, : self.rows]
            q = q.view(self.rows, cfg.n_kv_heads, -1, cfg.head_dim)  # the queries of a group of heads are rows
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None]).flatten(1)

        return runner.logits(runner.hidden(self._tokens, self._at, self._slots, attend))
