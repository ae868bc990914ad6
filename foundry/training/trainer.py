"""The trainer: one loop, one state, resumed bit for bit.

Guarantees: a run that was killed at any moment and started again ends with the same bits as one that was not (same machine, same
execution parameters); the loss is a sum over valid tokens divided by their global count, however the batch is cut (law 6);
validation and logging change nothing (law 8). Costs: a checkpoint every `runtime.checkpoint_interval` steps.
"""

from __future__ import annotations

import math
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foundry.config import ConfigError, FoundryError, ModelConfig, Runtime, TrainConfig
from foundry.data.documents import batches, first_documents, windows
from foundry.data.loader import DataLoader
from foundry.data.shards import Shards
from foundry.models import MiniLLM
from foundry.models.accounting import train_flops_per_token
from foundry.models.scoring import score_documents
from foundry.training.checkpoints import Checkpoints
from foundry.training.identity import check_same, fingerprint, identity
from foundry.training.optimizer import Optimizers
from foundry.training.plan import make_plan
from foundry.training.state import TrainState
from foundry.utils.device import compile_problem, cpu_cores, resolve_precision
from foundry.utils.distributed import World
from foundry.utils.files import read_json, state_dir, write_json
from foundry.utils.log import get_logger, progress
from foundry.utils.process import Stopped, StopSignal, exclusive

COMPILE_FROM_FLOPS = 5e12  # compiling takes 20-60 s on two cores; a shorter run does not win that back


@dataclass(frozen=True)
class Result:
    """What a finished run gives: the trained model and what the reports need (no clock in it)."""

    model: MiniLLM
    facts: dict[str, Any]
    curve: list[dict[str, float]]
    validations: list[dict[str, float]]


class Trainer:
    """One training run.

    Args:
        model, train, seed: the run's identity, together with the data.
        data: `data/shards`.
        runtime: where and how; never part of the identity.
        world: this process among its peers.
        state: folder of all runs' states; default `.foundry/train`.
        on_metrics: called on rank 0 with (step, numbers) at each point of the curve; must not raise.

    Raises:
        DataError: if the data is damaged or too small.
    """

    def __init__(
        self,
        model: ModelConfig,
        train: TrainConfig,
        data: str | Path,
        *,
        seed: int = 1,
        runtime: Runtime | None = None,
        world: World | None = None,
        state: Path | None = None,
        on_metrics: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    ) -> None:
        self.model_config, self.config, self.seed = model, train, seed
        self.runtime = runtime or Runtime()
        self.world = world or World(0, 1, torch.device("cpu"))
        self.on_metrics = on_metrics
        shards = Shards(data, "train")
        if shards.index["vocab_size"] != model.vocab_size:
            raise FoundryError(
                f"the shards have a vocabulary of {shards.index['vocab_size']}, the model one of {model.vocab_size}: run `dvc repro shard`"
            )
        self.loader = DataLoader(
            shards,
            train.tokens_per_step // model.max_seq_len,
            model.max_seq_len,
            seed,
            rank=self.world.rank,
            world_size=self.world.size,
            packing=train.packing,
        )
        self.validation = first_documents(Shards(data, "val"), train.eval_tokens)
        self.identity = identity(model, train, seed, shards.index_sha256, shards.index["tokenizer_sha256"])
        self.fingerprint = fingerprint(self.identity)
        self.folder = (state or state_dir() / "train") / self.fingerprint
        self.plan = make_plan(model, train, self.loader.tokens_per_epoch)
        self.precision = resolve_precision(self.runtime.precision, self.world.device)
        self.compiled = self._wants_compile()
        self.micro_rows = self._micro_rows()

    def fit(self) -> Result:
        """Trains from the newest checkpoint, or from the start, to the last step.

        Raises:
            Stopped: after SIGTERM or SIGINT, with the state saved; exit code 128 + signal.
            CheckpointError: if another process trains this run, or no checkpoint is whole.
            FoundryError: if the loss is not finite; the weights were not changed by that step.
        """
        with ExitStack() as stack:
            if self.world.main:
                stack.enter_context(exclusive(self.folder / "lock", f"training {self.fingerprint}"))
                self._check_folder()
            stop = stack.enter_context(StopSignal())
            stack.enter_context(self._numerics())
            state = self._start()
            loss_of = self._loss_function(state.model)
            self._loop(state, loss_of, stop)
        return Result(state.model, self._facts(state), state.curve, state.validations)

    def _loop(self, state: TrainState, loss_of: Callable[[Tensor, Tensor], Tensor], stop: StopSignal) -> None:
        cfg, tokens = self.config, self.config.tokens_per_step
        saved, clock = state.step, time.perf_counter()
        bar = progress(total=cfg.steps, initial=state.step, unit="step", desc="train") if self.world.main else None
        while state.step < cfg.steps:
            loss, norm, factor = self._step(state, loss_of)
            state.step += 1
            now = time.perf_counter()
            seconds, clock = now - clock, now
            state.seconds += seconds
            last = state.step == cfg.steps
            if state.step == 1 or state.step % cfg.log_interval == 0 or last:
                self._log(state, {"loss": loss, "grad_norm": norm, "lr": cfg.lr * factor}, tokens / seconds)
            if state.step % cfg.eval_interval == 0 or last:
                self._validate(state)
                clock = time.perf_counter()
            if bar:
                bar.set_postfix_str(f"loss {loss:.3f}, {tokens / seconds:,.0f} tokens/s", refresh=False)
                bar.update()
            stopping = self.world.any(stop.signal is not None)
            if state.step != saved and (stopping or last or state.step % self.runtime.checkpoint_interval == 0):
                self._save(state)
                saved, clock = state.step, time.perf_counter()
            if stopping and not last:
                if bar:
                    bar.close()
                get_logger().warning(
                    "stopped by a signal at step %d of %d; the same command goes on from there", state.step, cfg.steps
                )
                raise Stopped(stop.signal or 15)
        if bar:
            bar.close()

    def _step(self, state: TrainState, loss_of: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float, float]:
        """One optimizer step: (loss in nats per token, gradient norm, learning-rate factor)."""
        tokens, targets = (t.to(self.world.device) for t in self.loader.batch(state.step))
        valid = self.world.sum((targets >= 0).sum())
        factor = state.optimizers.set_lr(state.step)
        state.optimizers.zero_grad()
        total = torch.zeros((), device=self.world.device, dtype=torch.float64)
        pieces = list(zip(tokens.split(self.micro_rows), targets.split(self.micro_rows), strict=True))
        for i, (x, y) in enumerate(pieces):
            with self._no_sync(i == len(pieces) - 1):
                # DDP averages gradients over the ranks; a sum over global tokens needs their sum.
                loss = loss_of(x, y)
                state.scaler.scale(loss * (self.world.size / valid)).backward()
            total += loss.detach().double()
        mean = (self.world.sum(total) / valid).item()
        if not math.isfinite(mean):
            raise FoundryError(
                f"the loss of step {state.step + 1} is {mean}: the weights were left as they were before it. Lower train.lr or "
                "train.matrix_lr, raise train.warmup_steps, or set runtime.precision: float32"
            )
        for optimizer in state.optimizers:
            state.scaler.unscale_(optimizer)
        limit = self.config.grad_clip or math.inf
        norm = nn.utils.clip_grad_norm_(
            state.model.parameters(), limit, error_if_nonfinite=not state.scaler.is_enabled()
        )
        for optimizer in state.optimizers:
            state.scaler.step(optimizer)
        state.scaler.update()
        return mean, norm.item(), factor

    def _log(self, state: TrainState, numbers: dict[str, float], tokens_per_second: float) -> None:
        state.curve.append(
            {
                "step": state.step,
                "tokens": state.step * self.config.tokens_per_step,
                **{k: float(f"{v:.6g}") for k, v in numbers.items()},
            }
        )
        if self.world.main:
            flops = tokens_per_second * train_flops_per_token(self.model_config)
            self.on_metrics(
                state.step,
                {**numbers, "tokens_per_second": tokens_per_second, "gflops": flops / 1e9, "seconds": state.seconds},
            )

    def _validate(self, state: TrainState) -> None:
        """Bits per byte of fixed validation documents; draws no random number and changes no weight."""
        if not self.world.main:
            return
        documents, n_bytes = self.validation
        rows = max(1, self.micro_rows)
        items = batches(windows(documents, self.model_config.max_seq_len, self.model_config.max_seq_len), rows)
        nats, counts = score_documents(state.model, items, len(documents), self.precision)
        row = {"val_loss": nats.sum() / counts.sum(), "val_bits_per_byte": nats.sum() / math.log(2) / sum(n_bytes)}
        row = {k: float(f"{v:.6g}") for k, v in row.items()}
        state.validations.append({"step": state.step, "tokens": state.step * self.config.tokens_per_step, **row})
        state.best = min(row["val_bits_per_byte"], state.best if state.best is not None else math.inf)
        self.on_metrics(state.step, row)
        get_logger().info(
            "step %d: validation %.4f bits per byte, %.4f nats per token",
            state.step,
            row["val_bits_per_byte"],
            row["val_loss"],
        )

    def _save(self, state: TrainState) -> None:
        if self.world.main:
            tensors, values = state.state_dict()
            Checkpoints(self.folder / "checkpoints", self.runtime.keep_checkpoints).save(state.step, tensors, values)
        self.world.barrier()

    def _start(self) -> TrainState:
        torch.manual_seed(self.seed)  # every rank makes the same weights
        model = MiniLLM(self.model_config).to(self.world.device)
        torch.manual_seed(self.seed + self.world.rank)  # dropout differs between the ranks
        optimizers = Optimizers(model, self.config)
        scaler = torch.amp.GradScaler(self.world.device.type, enabled=self.precision == torch.float16)
        state = TrainState(model, optimizers, scaler, self.identity)
        found = Checkpoints(self.folder / "checkpoints", self.runtime.keep_checkpoints).load_newest()
        log = get_logger()
        if self.world.main:
            for line in self.plan.lines():
                log.info("%s", line)
            how = f"{self.world.size} x {self.world.device.type}, {str(self.precision).removeprefix('torch.')}, {torch.get_num_threads()} threads"
            log.info("run %s on %s, %s", self.fingerprint, how, "compiled" if self.compiled else "not compiled")
        if found:
            tensors, values = found
            check_same(values["identity"], self.identity, "the checkpoint")
            state.load_state_dict(tensors, values)
            if self.world.main:
                log.info("goes on from the checkpoint of step %d", state.step)
        return state

    def _check_folder(self) -> None:
        """Records the run's identity and its environment; tells when the environment differs from the one that began the run."""
        path = self.folder / "identity.json"
        if path.exists():
            check_same(read_json(path, "identity of a run"), self.identity, str(self.folder))
        else:
            write_json(path, self.identity)
        now = self.environment()
        path = self.folder / "environment.json"
        if path.exists() and (old := read_json(path, "environment of a run")) != now:
            changed = ", ".join(f"{k} {old.get(k)} → {now[k]}" for k in now if old.get(k) != now[k])
            get_logger().warning(
                "the run was begun with other execution settings (%s): it goes on, but not to the same last bits",
                changed,
            )
        else:
            write_json(path, now)

    def environment(self) -> dict[str, Any]:
        """What decides the last bits of a result, besides its identity."""
        return {
            "machine": platform.machine(), "isa": torch.backends.cpu.get_cpu_capability(), "device": self.world.device.type, "torch": torch.__version__,
            "processes": self.world.size, "threads": self.runtime.threads or cpu_cores(), "precision": str(self.precision),
            "compiled": self.compiled, "micro_rows": self.micro_rows,
        }  # fmt: skip

    @contextmanager
    def _numerics(self) -> Iterator[None]:
        """Threads and deterministic kernels for the run; the former settings come back."""
        threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        torch.set_num_threads(self.runtime.threads or max(1, cpu_cores() // self.world.size))
        torch.use_deterministic_algorithms(True, warn_only=self.world.device.type != "cpu")
        # It would write NaN into every fresh tensor, for nothing: no kernel here reads memory that it did not write.
        fill, torch.utils.deterministic.fill_uninitialized_memory = (
            torch.utils.deterministic.fill_uninitialized_memory,
            False,
        )
        torch.set_flush_denormal(True)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)
            torch.utils.deterministic.fill_uninitialized_memory = fill

    def _loss_function(self, model: MiniLLM) -> Callable[[Tensor, Tensor], Tensor]:
        """(tokens, targets) → summed nats, under autocast, compiled and wrapped for DDP as the run needs."""
        forward: nn.Module = model.train()
        if self.world.size > 1:
            ids = [self.world.device.index] if self.world.device.type == "cuda" else None
            forward = nn.parallel.DistributedDataParallel(model, device_ids=ids)
            self._ddp = forward
        autocast = torch.autocast(self.world.device.type, self.precision, enabled=self.precision != torch.float32)

        def loss_of(tokens: Tensor, targets: Tensor) -> Tensor:
            with autocast:
                return forward(tokens, targets, reduction="sum")[1]

        if not self.compiled:
            return loss_of
        # The rotations' table is complex; reading it is not compiled, and costs nothing.
        warnings.filterwarnings("ignore", message="Torchinductor does not support code generation for complex")
        return torch.compile(loss_of, dynamic=False)

    def _no_sync(self, last: bool):
        return nullcontext() if last or self.world.size == 1 else self._ddp.no_sync()

    def _wants_compile(self) -> bool:
        """As `runtime.compile` says; `auto` compiles where it works and was seen to pay: in bfloat16 (1.4 times on a CPU; 1.03 in float32)."""
        wish = self.runtime.compile
        pays = self.precision != torch.float32 and self.plan.flops >= COMPILE_FROM_FLOPS
        if wish == "never" or (wish == "auto" and not pays):
            return False
        problem = compile_problem(self.world.device)
        if problem and wish == "always":
            raise ConfigError(
                f"torch.compile does not work here: {problem}; mend that or set runtime.compile to auto or never"
            )
        if problem:
            get_logger().warning("not compiled, since torch.compile does not work here: %s", problem)
        return problem is None

    def _micro_rows(self) -> int:
        """Sequences of one forward pass: as asked, else the most that 16,384 tokens (CPU 4,096) allow and that divide the batch."""
        rows = self.loader.batch_size // self.world.size
        wanted = self.runtime.micro_batch_tokens or (4096 if self.world.device.type == "cpu" else 16_384)
        limit = max(1, wanted // self.model_config.max_seq_len)
        return next(n for n in range(min(limit, rows), 0, -1) if rows % n == 0)

    def _facts(self, state: TrainState) -> dict[str, Any]:
        """What `config.json` and `reports/train.json` say beside the architecture; no clock."""
        return {
            "fingerprint": self.fingerprint,
            "tokenizer_sha256": self.identity["tokenizer_sha256"],
            "index_sha256": self.identity["index_sha256"],
            "steps": state.step,
            "tokens": state.step * self.config.tokens_per_step,
        }
