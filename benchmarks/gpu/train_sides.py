"""The sides of the part `train`: our trainer, and the peers in a plain loop.

Each first finds how many sequences of a micro-batch fit (`probe`), then makes its training and does one step of it, for
which it compiles (`prepare`), then trains in turns (`turn`).
"""

from __future__ import annotations

import fcntl
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.gpu.peers import PEERS
from benchmarks.gpu.shapes import shape
from foundry.models.accounting import train_flops_per_token
from foundry.utils.device import get_device, peak_flops

MICRO_TOKENS = 16_384  # of a micro-batch at most: larger ones are not faster on the cards that are known
LONGEST_WAIT = 240.0  # seconds for the card's memory
CHUNKS = (1024, 4096, 16_384)  # tokens whose logits exist at a time: tried for ours


def _compile_backward_with_forward() -> None:
    """Has torch compile the backward pass before the forward pass runs.

    It would compile it afterwards, while the activations wait on the card for half a minute.
    """
    from torch._functorch import config

    if hasattr(config, "force_non_lazy_backward_lowering"):
        config.force_non_lazy_backward_lowering = True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


class TrainSide:
    """What both kinds have in common.

    Args:
        share: of the card's memory that this process may use, as the other sides' weights stay on the card.
    """

    def __init__(self, profile: str, device: str, tiny: bool, folder: str, share: float) -> None:
        self.cfg, self.device, self.tiny = shape(profile, tiny), torch.device(device), tiny
        self.profile, self.folder = profile, Path(folder)
        self.model_config = self.cfg.model
        if self.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(share)

    def ready(self) -> None:
        """Nothing but what the first call does: imports, CUDA's context."""

    def probe(self) -> dict[str, Any]:
        """How many sequences fit, with recomputed activations only where no sequence fits otherwise.

        Not compiled, which needs more memory than compiled and no time. Returns micro_rows, recompute, seconds of a
        micro-batch, bytes at the peak, and what the side adds.
        """
        for recompute in (False, True):
            rows = min(
                max(1, MICRO_TOKENS // self.model_config.max_seq_len), self._rows(self.cfg.train.tokens_per_step)
            )
            while rows:
                try:
                    self._reset_peak()
                    with torch.device(self.device):
                        found = self.try_rows(rows, recompute)
                    return {"micro_rows": rows, "recompute": recompute, "bytes": self._peak(), **found}
                except torch.OutOfMemoryError:
                    rows //= 2
                finally:
                    self.free()
        raise torch.OutOfMemoryError("not one sequence fits the card, even with recomputed activations")

    def try_rows(self, rows: int, recompute: bool) -> dict[str, Any]:
        """A forward and backward pass of so many sequences, twice; seconds of the second."""
        raise NotImplementedError

    def prepare(self, rows: int, micro_rows: int, recompute: bool, chosen: dict[str, Any]) -> float:
        """Makes the training with steps of so many sequences and does one; returns the seconds of it.

        The sides do this at the same time, because compiling takes longest. Where the card is then too small for two of
        them, one waits for the other.
        """
        begin = time.perf_counter()
        self.rows = rows
        _compile_backward_with_forward()
        self.make(rows, micro_rows, recompute, **chosen)
        turn = nullcontext()
        while True:
            try:
                with turn:
                    self.step()
                    self._sync()
                break
            except RuntimeError as e:  # not only torch.OutOfMemoryError: cuBLAS and Triton have their own
                if "out of memory" not in str(e).lower() or time.perf_counter() - begin > LONGEST_WAIT:
                    raise
            self.free()
            turn = _locked(self.folder / "card.lock")
        self.free()
        self._reset_peak()
        return time.perf_counter() - begin

    def make(self, rows: int, micro_rows: int, recompute: bool, **chosen: Any) -> None:
        raise NotImplementedError

    def step(self) -> None:
        raise NotImplementedError

    def turn(self, seconds: float) -> float:
        """Tokens per second of whole steps for at least so many seconds; the step before them is not counted."""
        self.step()
        self._sync()
        begin, n = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds or not n:
            self.step()
            self._sync()
            n += 1
        speed = n * self.rows * self.model_config.max_seq_len / (time.perf_counter() - begin)
        self.free()
        return speed

    def facts(self) -> dict[str, Any]:
        """Numbers of this side beside its speed: operations per token, the card's peak, the memory at the peak."""
        return {
            "flops_per_token": self.flops,
            "peak_flops": peak_flops(self.device, torch.bfloat16),
            "peak_gib": round(self._peak() / 2**30, 2),
            "tokens_per_step": self.rows * self.model_config.max_seq_len,
        }

    def free(self) -> None:
        """Returns memory that is not used to the card."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _rows(self, tokens: int) -> int:
        return tokens // self.model_config.max_seq_len

    def _sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0

    def _reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def _seconds(self, run: Callable[[], Any], times: int = 1) -> float:
        """Seconds of a call, the first call not counted."""
        run()
        self._sync()
        begin = time.perf_counter()
        for _ in range(times):
            run()
        self._sync()
        return (time.perf_counter() - begin) / times


class Peer(TrainSide):
    """A peer's model in nanoGPT's loop: bfloat16 autocast, compiled, fused AdamW, pinned batches, accumulation."""

    def __init__(self, peer: str, **rest: Any) -> None:
        super().__init__(**rest)
        self.peer = peer
        torch.set_float32_matmul_precision("high")
        self._data = np.memmap(self.folder / "tokens.bin", np.uint16, "r")

    def try_rows(self, rows: int, recompute: bool) -> dict[str, Any]:
        model, loss_of, _ = PEERS[self.peer](self.model_config, recompute)
        x = torch.randint(self.model_config.vocab_size, (rows, self.model_config.max_seq_len))

        def run() -> None:
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = loss_of(x, x)
            loss.backward()
            model.zero_grad(set_to_none=True)

        return {"seconds": self._seconds(run)}

    def make(self, rows: int, micro_rows: int, recompute: bool) -> None:
        with torch.device(self.device):
            self.model, self._loss_of, self.flops = PEERS[self.peer](self.model_config, recompute)
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)
        if not self.tiny:
            self._loss_of = torch.compile(self._loss_of)
        self._micro_rows, self._micro_steps = micro_rows, rows // micro_rows
        self._batch = self._next()

    def step(self) -> None:
        for _ in range(self._micro_steps):
            x, y = self._batch
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = self._loss_of(x, y) / self._micro_steps
            self._batch = self._next()  # while the GPU works
            loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        loss.item()

    def _next(self) -> tuple[torch.Tensor, torch.Tensor]:
        T = self.model_config.max_seq_len
        at = torch.randint(len(self._data) - T - 1, (self._micro_rows,))
        rows = torch.stack([torch.from_numpy(self._data[i : i + T + 1].astype(np.int64)) for i in at])
        if self.device.type == "cuda":
            rows = rows.pin_memory().to(self.device, non_blocking=True)
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


class Ours(TrainSide):
    """The project's trainer with the profile's recipe; sequences and chunk as its probe found them."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self.device = get_device(self.device.type)  # as a stage gets it: with the settings of cuBLAS

    def try_rows(self, rows: int, recompute: bool) -> dict[str, Any]:
        from foundry.models import MiniLLM

        model = MiniLLM(self.model_config).train()
        model.recompute = recompute
        x = torch.randint(self.model_config.vocab_size, (rows, self.model_config.max_seq_len))

        def run(chunk: int) -> None:
            with torch.autocast(self.device.type, torch.bfloat16):
                loss, _ = model.summed_loss(x, x, chunk=chunk)
            loss.backward()
            model.zero_grad(set_to_none=True)

        seconds: dict[int, float] = {}
        for chunk in (c for c in CHUNKS if c <= max(x.numel(), CHUNKS[0])):
            try:
                seconds[chunk] = self._seconds(lambda c=chunk: run(c))
            except torch.OutOfMemoryError:
                if not seconds:
                    raise
                break
        best = min(seconds, key=seconds.get)
        return {"seconds": seconds[best], "loss_chunk": best}

    def make(self, rows: int, micro_rows: int, recompute: bool, loss_chunk: int) -> None:
        from foundry.config import Runtime
        from foundry.training import Trainer
        from foundry.training.numerics import numerics

        T = self.model_config.max_seq_len
        train = self.cfg.train.model_copy(
            update={
                "tokens_per_step": rows * T,
                "steps": 10**6,
                "schedule": "constant",  # one checkpoint has to fit the disk, and none is written
                "eval_interval": 10**6,
                "eval_tokens": 256,
            }
        )
        runtime = Runtime(
            device=self.device.type,
            compile="never" if self.tiny else "always",
            micro_batch_tokens=micro_rows * T,
            loss_chunk=loss_chunk,
            recompute=recompute,
            checkpoint_interval=10**9,
            keep_checkpoints=1,
            tracking=False,
        )
        place = self.folder / self.profile
        self.trainer = Trainer.from_shards(
            self.model_config, train, place / "shards", runtime=runtime, state=place / "state"
        )
        self._numerics = ExitStack()  # to the end of the process
        self._numerics.enter_context(numerics(self.trainer.runtime, self.trainer.world))
        self.session = self.trainer.session()
        self.flops = train_flops_per_token(self.model_config)

    def step(self) -> None:
        self.numbers = self.session.step(self.session.state)
        self.session.state.step += 1

    def shares(self) -> dict[str, float]:
        """Seconds per step of each optimizer, of the loader on the host, and of the observer with its callbacks.

        Each by itself, as if nothing of it overlapped with the GPU's work.
        """
        trainer, state = self.trainer, self.session.state
        self.step()  # leaves gradients behind
        if not any(p.grad is not None for p in state.model.parameters()):
            raise RuntimeError("a step leaves no gradients: an optimizer's time cannot be measured by itself")
        found = {type(o).__name__: self._seconds(o.step, 3) for o in state.optimizers}
        numbers = iter(range(state.step, state.step + 100))
        documents = trainer.config.document_mask

        def load() -> None:
            for tensor in trainer.loader.tensors(next(numbers), documents):
                if tensor is not None:
                    tensor.to(self.device)

        return found | {"loader": self._seconds(load, 5), "logging": self._logging()}

    def _logging(self) -> float:
        from foundry.training.callbacks import LogLines, ProgressBar
        from foundry.training.observer import Observer

        trainer, (loss, norm, factor) = self.trainer, self.numbers
        observer = Observer(
            self.session.state,
            trainer.config,
            trainer.world,
            [ProgressBar(10**6, 0), LogLines()],
            flops_per_token=self.flops,
            bytes_per_token=trainer.loader.bytes_per_token,
            peak_flops=peak_flops(self.device, torch.bfloat16),
        )
        try:
            return self._seconds(lambda: observer.step(loss, norm, factor, True), 50)
        finally:
            observer.end()
