"""One token per row and step with shapes that never change, which a GPU replays as one captured CUDA graph.

A decoding step of a small model is some hundred kernels of a few microseconds each, and to launch one takes the host as
long as the GPU needs for it. A CUDA graph launches all of them with one call. What is captured must not depend on the
number of tokens so far: every step attends to the whole key/value cache under a mask, and the position is a tensor.

The result is that of the model with an ordinary cache, except for the rounding of sums over masked positions. Without a
GPU the same step runs without a graph; there the tests compare it.

Shapes by suffix: B batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from foundry.inference.cache import KVCache, LayerKV
from foundry.models import MiniLLM
from foundry.models.components import visible
from foundry.models.loss import soft_cap

WARM_UP = 2  # steps before the capture, in which libraries allocate their workspaces


class _LayerAt:
    """The cache of one layer as a step sees it: writes at the position that a tensor says, and returns all of it."""

    length = 0  # unused: the mask says what is visible

    def __init__(self, layer: LayerKV, position: Tensor) -> None:
        self.layer, self.position = layer, position

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.layer.k.index_copy_(2, self.position, k)
        self.layer.v.index_copy_(2, self.position, v)
        return self.layer.k, self.layer.v


class Decoder:
    """Decoding steps of a model for a fixed number of rows, which all have the same position.

    The weights of a layer that are multiplied together are kept as one matrix; `start` copies them from the model.

    Args:
        model: on its device, in evaluation mode.
        batch: rows.

    Attributes:
        cache: keys and values; a prompt is read into it by the model itself.
    """

    @torch.inference_mode()
    def __init__(self, model: MiniLLM, batch: int = 1) -> None:
        weight = model.tok_embeddings.weight
        self.model, self.device = model, weight.device
        self.cache = KVCache(model.cfg, batch, self.device, weight.dtype)
        self._places = _places(model)
        self._tokens = torch.zeros(batch, 1, dtype=torch.int64, device=self.device)
        self._position = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._layers = [_LayerAt(layer, self._position) for layer in self.cache.layers]
        self._packed = [tuple(torch.cat(part) for part in parts) for parts in self._parts()]
        self._graph: torch.cuda.CUDAGraph | None = None
        if self.device.type == "cuda":
            self._capture()

    def fits(self) -> bool:
        """Whether the model's weights are where they were: a graph reads them at their addresses."""
        return self._places == _places(self.model)

    @torch.inference_mode()
    def start(self) -> None:
        """Begins a text: empties the cache, and takes the weights as they are now."""
        self.cache.clear()
        for layer in self.cache.layers:
            layer.k.zero_()  # what is left of a text with NaN would spoil a sum even where it is masked
            layer.v.zero_()
        for packed, parts in zip(self._packed, self._parts(), strict=True):
            for whole, part in zip(packed, parts, strict=True):
                torch.cat(part, out=whole)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after one more token per row; the next call overwrites them.

        Args:
            tokens: int64 (B, 1).

        Raises:
            ValueError: if the cache is full.
        """
        position, room = self.cache.length, self.model.cfg.max_seq_len
        if position == room:
            raise ValueError(f"{position + 1} tokens do not fit the cache of {room} (model.max_seq_len)")
        self._tokens.copy_(tokens)
        self._position.fill_(position)
        if self._graph:
            self._graph.replay()
        else:
            self._logits = self._forward()
        for layer in self.cache.layers:
            layer.length += 1
        return self._logits

    def _capture(self) -> None:
        with torch.cuda.device(self.device):
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
        model, cfg = self.model, self.model.cfg
        freqs_cis = model.freqs_cis.index_select(0, self._position)
        mask = visible(1, cfg.max_seq_len, self._position, self.device, cfg.sliding_window)
        x = model.tok_embeddings(self._tokens)
        with self._packing():
            for block, layer in zip(model.layers, self._layers, strict=True):
                x = block(x, freqs_cis, layer, mask)
        return soft_cap(F.linear(model.norm(x[:, -1]), model.head_weight), cfg.logit_softcap)

    def _parts(self) -> list[tuple[tuple[Tensor, ...], ...]]:
        """Per layer, the weights that are multiplied together: of attention, of the feed-forward layer."""
        return [(block.attention.input_weights(), block.ffn.input_weights()) for block in self.model.layers]

    @contextmanager
    def _packing(self) -> Iterator[None]:
        blocks = self.model.layers
        try:
            for block, (attention, ffn) in zip(blocks, self._packed, strict=True):
                block.attention.packed, block.ffn.packed = attention, ffn
            yield
        finally:
            for block in blocks:
                block.attention.packed = block.ffn.packed = None


def _places(model: MiniLLM) -> list[int]:
    return [p.data_ptr() for p in model.parameters()]
