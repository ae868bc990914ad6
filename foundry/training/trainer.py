"""The trainer: one loop, one state, resumed bit for bit.

Guarantees: a run that was killed at any moment and started again ends with the same bits as one that was not (same machine, same
execution parameters); the loss is a sum over valid tokens divided by their global count, however the batch is cut (law 6);
validation and logging change nothing (law 8). Costs: a copy of the state every `runtime.checkpoint_interval` steps; a thread writes it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundry.config import CheckpointError, FoundryError, ModelConfig, Runtime, TrainConfig
from foundry.data.tokens.documents import batches, first_documents, windows
from foundry.data.tokens.inspect import told
from foundry.data.tokens.loader import DataLoader
from foundry.data.tokens.shards import Shards
from foundry.models import MiniLLM
from foundry.models.accounting import train_flops_per_token
from foundry.models.files import weights_sha256
from foundry.models.scoring import score_documents
from foundry.training.checkpoints import Checkpoints
from foundry.training.identity import check_same, extends, fingerprint, identity
from foundry.training.numerics import compiled, environment, numerics, precision_reason, variables, wants_compile
from foundry.training.optimizer import Optimizers
from foundry.training.parallel import Parallel, whole
from foundry.training.passed import Passed
from foundry.training.plan import check_batch, check_plan, make_plan
from foundry.training.report import Reporter, Sink, TensorBoard
from foundry.training.schedule import stable_steps
from foundry.training.state import TrainState
from foundry.training.step import NotFinite, TrainStep
from foundry.utils.allocator import allocator
from foundry.utils.checkpoint import read_checkpoint
from foundry.utils.device import device_memory, get_device, peak_flops, resolve_precision
from foundry.utils.distributed import World, told_lost_peer
from foundry.utils.files import read_json, state_dir, write_json
from foundry.utils.log import get_logger
from foundry.utils.process import Stopped, StopSignal, exclusive

MOST_PASSED = 0.05  # share of the steps that may be passed over before a run is given up


@dataclass(frozen=True)
class Result:
    """What a finished run gives: the trained model (with FSDP on the main process, elsewhere None) and what the reports need (no clock)."""

    model: MiniLLM | None
    facts: dict[str, Any]
    curve: list[dict[str, float]]
    validations: list[dict[str, float]]


class Trainer:
    """One training run.

    Args:
        model: a model, which is trained in place; or an architecture, whose first weights the seed gives.
        train_config: the recipe. Where it says nothing of the batch (`batch_size`, `tokens_per_step`, `packing`), that is the loader's.
        data_loader: batches of the training split.
        device: default: `runtime.device`.
        runtime: where and how; never part of the run's identity.
        world: this process among its peers.
        state: folder of all runs' states; default `.foundry/train`.
        sinks: where rank 0 sends the numbers of each point of the curve and of each validation.

    Attributes:
        identity, fingerprint: what makes this run this one (law 1).
        folder: its state on disk.

    Raises:
        DataError: if the data is damaged or too small.
        ConfigError: listing everything that cannot work.
    """

    def __init__(
        self,
        model: MiniLLM | ModelConfig,
        train_config: TrainConfig,
        data_loader: DataLoader,
        device: str | torch.device | None = None,
        *,
        seed: int = 1,
        runtime: Runtime | None = None,
        world: World | None = None,
        state: Path | None = None,
        sinks: Iterable[Sink] = (),
    ) -> None:
        self.runtime = runtime or Runtime()
        if world is None:
            wish = self.runtime.device if device is None else device
            world = World(0, 1, get_device(wish) if isinstance(wish, str) else wish)
        self.world, self.loader, self.seed, self.sinks = world, data_loader, seed, list(sinks)
        self.model = None if isinstance(model, ModelConfig) else model
        self.model_config = model if isinstance(model, ModelConfig) else model.cfg
        batch = {"tokens_per_step": data_loader.batch_size * data_loader.seq_len, "packing": data_loader.packing}
        check_batch(train_config, {**batch, "batch_size": data_loader.batch_size})
        self.config = train_config.model_copy(update=batch)
        index = data_loader.shards.index
        if index["vocab_size"] != self.model_config.vocab_size:
            raise FoundryError(
                f"the shards have a vocabulary of {index['vocab_size']}, the model one of {self.model_config.vocab_size}: "
                "run `dvc repro shard`"
            )
        if data_loader.seq_len > self.model_config.max_seq_len:
            raise FoundryError(
                f"the loader's rows have {data_loader.seq_len} tokens, the model's context is {self.model_config.max_seq_len} "
                "(max_seq_len): lower the one or raise the other"
            )
        self.identity = identity(
            self.model_config, self.config, seed, data_loader.shards.index_sha256, index["tokenizer_sha256"]
        )
        if self.model is not None:
            self.identity["weights_sha256"] = weights_sha256(self.model)
        if data_loader.seed != seed:
            self.identity["order_seed"] = data_loader.seed
        self.fingerprint = fingerprint(self.identity)
        self.folder = (state or state_dir() / "train") / self.fingerprint
        self.precision = resolve_precision(self.runtime.precision, self.world.device)
        self.micro_rows = self._micro_rows()
        self.plan = make_plan(self.model_config, self.config, data_loader.tokens_per_epoch)
        pinned = {stable_steps(self.config)} | ({0} if self.config.on_nonfinite == "rollback" else set())
        check_plan(
            self.plan,
            self.model_config,
            self.config,
            self.runtime,
            self.micro_rows,
            self.folder,
            precision=str(self.precision).removeprefix("torch."),
            processes=self.world.size,
            memory=device_memory(self.world.device),
            pinned=frozenset(pinned),
        )
        self.validation = first_documents(Shards(data_loader.shards.folder, "val"), self.config.eval_tokens)
        self.compiled, self._compile_reason = wants_compile(
            self.runtime, self.precision, self.plan.flops, self.world.device
        )
        self.passed = Passed(self.folder / "passed.json")
        self.checkpoints = Checkpoints(
            self.folder / "checkpoints",
            self.runtime.keep_checkpoints,
            frozenset(pinned),
            self.world,
            divided=self.runtime.parallel == "fsdp",
        )
        self._state: TrainState | None = None

    @classmethod
    def from_shards(
        cls, model: ModelConfig, train: TrainConfig, data: str | Path, *, seed: int = 1, world: World | None = None, **rest: Any
    ) -> Trainer:  # fmt: skip
        """A run on `data/shards` with the batch that the recipe says; the other arguments are `Trainer`'s."""
        loader = DataLoader(
            data,
            train.batch_size or train.tokens_per_step // model.max_seq_len,
            model.max_seq_len,
            seed,
            rank=world.rank if world else 0,
            world_size=world.size if world else 1,
            packing=train.packing,
        )
        return cls(model, train, loader, seed=seed, world=world, **rest)

    # a whole run

    def fit(self) -> Result:
        """Trains from the newest checkpoint, or from the start, to the last step.

        Raises:
            Stopped: after SIGTERM or SIGINT, with the state saved; exit code 128 + signal.
            LockError: if another process trains this run.
            CheckpointError: if its folder or checkpoint is of another run, or no checkpoint is left to roll back to.
            FoundryError: if a loss or gradient is not finite and the policy is to halt; the weights were not changed by that step.
        """
        with ExitStack() as stack:
            if self.world.main:
                stack.enter_context(exclusive(self.folder / "lock", f"training {self.fingerprint}"))
                self._check_folder()
            stop = stack.enter_context(StopSignal())
            stack.enter_context(numerics(self.runtime, self.world))
            state = self._start()
            sinks = list(self.sinks)
            if self.runtime.tensorboard and self.world.main:
                board = TensorBoard(Path(self.runtime.tensorboard) / self.fingerprint, state.step)
                sinks.append(stack.enter_context(board))
            reporter = stack.enter_context(self._reporter(state, sinks))
            with told_lost_peer(self.world):
                try:
                    self._loop(state, stop, reporter)
                finally:
                    self.checkpoints.wait()
        return Result(self._trained(state), self._facts(state), state.curve, state.validations)

    def train(self) -> dict[str, Any]:
        """`fit`, and its numbers: train_losses, val_losses (nats per token), elapsed_time (s), steps_per_second."""
        begin = time.perf_counter()
        before = self._state.step if self._state else 0
        result = self.fit()
        seconds = time.perf_counter() - begin
        return {
            "train_losses": [row["loss"] for row in result.curve],
            "val_losses": [row["val_loss"] for row in result.validations],
            "elapsed_time": seconds,
            "steps_per_second": (self.config.steps - before) / seconds,
        }

    def evaluate(self) -> dict[str, float]:
        """val_loss (nats per token) and val_bits_per_byte of the fixed validation documents; changes nothing."""
        with numerics(self.runtime, self.world):
            return self._validation(self._start())

    def save_checkpoint(self, path: str | Path) -> Path:
        """Writes the whole state of training to a folder, now. On several processes, all must call it."""
        state, path = self._start(), Path(path)
        if self.world.main or self.parallel.mode == "fsdp":
            tensors, values = state.state_dict()
            self.checkpoints.writers.save(path, tensors, state.boxes(), values)
        self.world.barrier()
        return path

    def load_checkpoint(self, path: str | Path) -> None:
        """Puts the state of a folder in the place of this run's.

        Raises:
            CheckpointError: if it is damaged, or of another run; the keys that differ are named.
        """
        state = self._start()
        tensors, values = read_checkpoint(Path(path), state.wanted)
        check_same(values["identity"], self.identity, str(path))
        state.load_state_dict(tensors, values)

    def _reporter(self, state: TrainState, sinks: list[Sink]) -> Reporter:
        shards = self.loader.shards.infos
        return Reporter(
            state,
            self.config,
            self.world,
            flops_per_token=train_flops_per_token(self.model_config),
            bytes_per_token=sum(i["bytes"] for i in shards) / max(1, sum(i["tokens"] for i in shards)),
            peak_flops=peak_flops(self.world.device, self.precision) if self.world.main else None,
            sinks=sinks,
            profile=self.folder / "profile" if self.runtime.profile else None,
        )

    # the loop

    def _loop(self, state: TrainState, stop: StopSignal, reporter: Reporter) -> None:
        cfg = self.config
        saved = state.step
        while state.step < cfg.steps:
            try:
                loss, norm, factor = self._step(state)
            except NotFinite as e:
                self._answer(state, str(e), reporter)
                saved = min(saved, state.step)
                continue
            state.step += 1
            last = state.step == cfg.steps
            reporter.step(loss, norm, cfg.lr * factor, last)
            if state.step % cfg.eval_interval == 0 or last:
                reporter.validation(self._validation(state))
            stopping = self.world.any(stop.signal is not None)
            due = state.step % self.runtime.checkpoint_interval == 0 or state.step in self.checkpoints.pinned
            if state.step != saved and (stopping or last or due):
                reporter.saved(self._save(state))
                saved = state.step
            if stopping and not last:
                self.checkpoints.wait()
                reporter.close()
                get_logger().warning(
                    "stopped by a signal at step %d of %d; the same command goes on from there", state.step, cfg.steps
                )
                raise Stopped(stop.signal or 15)

    def _answer(self, state: TrainState, what: str, reporter: Reporter) -> None:
        """What `train.on_nonfinite` says, on every rank alike.

        Raises:
            FoundryError: if that is to halt, or too many batches were passed over.
        """
        cfg, step = self.config, state.step
        batch = self.passed.batch(step)
        where = f"step {step + 1}: {what}; {told(self.loader, batch)}"
        passed = sum(len(d["batches"]) for d in self.passed.decisions)
        if cfg.on_nonfinite == "halt" or passed > max(cfg.rollback_steps, MOST_PASSED * cfg.steps):
            more = f" {passed} batches were passed over before." if passed else ""
            raise FoundryError(
                f"{where}. The weights were left as they were before it.{more} Lower train.lr or train.matrix_lr, raise "
                "train.warmup_steps, set runtime.precision: float32, or train.on_nonfinite: skip or rollback"
            )
        first = step if cfg.on_nonfinite == "skip" else max(0, step - cfg.rollback_steps + 1)
        window = [self.passed.batch(s) for s in range(first, step + 1)]
        if cfg.on_nonfinite == "rollback":
            self.checkpoints.wait()
            if self.world.main:
                self.checkpoints.remove_after(first)
            self.world.barrier()
            self._load(state, first)
            reporter.back()  # before the decision is recorded: a kill between them repeats this, and misses nothing
        if self.world.main:
            self.passed.add(step, window, what)
        else:
            self.passed.decisions.append({"step": step, "reason": what, "batches": window})
        self.world.barrier()
        if self.world.main:
            back = f"; back to step {state.step}" if cfg.on_nonfinite == "rollback" else ""
            get_logger().warning("%s. Passed over: %s%s", where, ", ".join(map(str, window)), back)

    # validation

    def _validation(self, state: TrainState) -> dict[str, float]:
        """Of fixed documents, sum over sum; draws no random number. Empty on ranks that take no part."""
        if not self.world.main and self.parallel.mode != "fsdp":
            return {}
        documents, n_bytes = self.validation
        rows, T = max(1, self.micro_rows), self.model_config.max_seq_len
        items = batches(windows(documents, T, T), rows)
        nats, counts = score_documents(state.model, items, len(documents), self.precision, self.parallel.nats)
        return {"val_loss": nats.sum() / counts.sum(), "val_bits_per_byte": nats.sum() / math.log(2) / sum(n_bytes)}

    # the state

    def _save(self, state: TrainState) -> float:
        """Begins a checkpoint; returns the seconds that the loop waited for the copy."""
        begin = time.perf_counter()
        self.checkpoints.wait()
        if self.world.main or self.parallel.mode == "fsdp":
            tensors, values = state.state_dict()
            self.checkpoints.save(state.step, tensors, values, state.boxes())
        return time.perf_counter() - begin

    def _start(self) -> TrainState:
        """The state, made once: from the newest checkpoint, or new."""
        if self._state:
            return self._state
        if self.model is None:
            torch.manual_seed(self.seed)  # every rank makes the same weights
            self.model = MiniLLM(self.model_config)
        model = self.model.to(self.world.device).train()
        model.recompute = self.runtime.recompute
        self.parallel = Parallel(model, self.world, self.runtime.parallel, self.runtime.loss_chunk, self.config.z_loss)
        self._step = TrainStep(
            self.config,
            self.seed,
            self.world,
            self.loader,
            self.passed,
            self.parallel,
            self._loss_function(),
            self.micro_rows,
        )
        scaler = torch.amp.GradScaler(self.world.device.type, enabled=self.precision == torch.float16)
        state = TrainState(model, Optimizers(model, self.config), scaler, self.identity)
        log = get_logger()
        if self.world.main:
            for line in self.plan.lines():
                log.info("%s", line)
            how = f"{self.world.size} x {self.world.device.type}, {str(self.precision).removeprefix('torch.')}"
            why = precision_reason(self.runtime, self.precision, self.world.device)
            compiling = "compiled" if self.compiled else f"not compiled ({self._compile_reason})"
            log.info(
                "run %s on %s (%s), %d threads, %s", self.fingerprint, how, why, torch.get_num_threads(), compiling
            )
            log.info("memory allocator: %s", allocator())
        self._load(state)
        self._state = state
        if state.step == 0 and self.config.on_nonfinite == "rollback":
            self._save(state)  # what a rollback at the beginning returns to
        return state

    def _load(self, state: TrainState, before: int | None = None) -> None:
        """Puts the newest good checkpoint (of at most `before` steps) into the state; without one, it stays as it is.

        Raises:
            CheckpointError: if there is none of at most `before` steps.
        """
        found = self.checkpoints.load_newest(before, state.wanted)
        if found is None and before is not None:
            raise CheckpointError(
                f"there is no good checkpoint of step {before} or earlier in {self.checkpoints.folder} to roll back to: "
                "run the same command again, which trains from what is left, or set train.on_nonfinite: skip"
            )
        if found is None:
            found = self._shorter_run(state)
        if found:
            tensors, values = found
            check_same(extends(values["identity"], self.identity), self.identity, "the checkpoint")
            state.load_state_dict(tensors, {**values, "identity": self.identity})
            if self.world.main:
                get_logger().info("goes on from the checkpoint of step %d", state.step)

    def _shorter_run(self, state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """A checkpoint of another run that is the same up to there: the stable part of the same recipe with other `steps`.

        What that run's folder contains is not this run's: what is damaged or was just removed is skipped with a warning.
        """
        for step, folder in self.world.share(self._shorter_runs() if self.world.main else None):
            found, why = Checkpoints(folder / "checkpoints", 1, world=self.world).read(step, state.wanted)
            if self.world.main and found:
                get_logger().info("%s is the same run up to step %d", folder.name, step)
            elif self.world.main:
                get_logger().warning("the checkpoint of step %d of run %s is not used: %s", step, folder.name, why)
            if found:
                return found
        return None

    def _shorter_runs(self) -> list[tuple[int, Path]]:
        """(step, folder of its run) of all checkpoints that this run could begin from, the newest first."""
        mine, found = stable_steps(self.config), []
        for path in self.folder.parent.glob("*/identity.json"):
            if path.parent == self.folder or (path.parent / "passed.json").exists():
                continue
            try:
                other = read_json(path, "identity of a run")
            except (FoundryError, OSError) as e:
                get_logger().warning("another run is skipped: %s", e)
                continue
            if not isinstance(other, dict) or extends(other, self.identity) != self.identity:
                continue
            lengths = {"steps": other["train.steps"], "decay_fraction": other["train.decay_fraction"]}
            most = min(mine, stable_steps(self.config.model_copy(update=lengths)))
            found += [(s, path.parent) for s in Checkpoints(path.parent / "checkpoints", 1).steps() if s <= most]
        return sorted(found, key=lambda c: (-c[0], c[1].name))

    def _check_folder(self) -> None:
        """Records the run's identity and its environment; warns when the environment differs from the one that began the run."""
        path = self.folder / "identity.json"
        if path.exists():
            check_same(read_json(path, "identity of a run"), self.identity, str(self.folder))
        else:
            write_json(path, self.identity)
        now = environment(self.runtime, self.world, self.precision, self.compiled, self.micro_rows)
        path = self.folder / "environment.json"
        if path.exists() and (old := read_json(path, "environment of a run")) != now:
            changed = ", ".join(f"{k} {old.get(k)} → {now[k]}" for k in now if old.get(k) != now[k])
            get_logger().warning(
                "the run was begun with other execution settings (%s): it resumes, but not to the same last bits",
                changed,
            )
        elif not path.exists():
            write_json(path, now)
            if found := ", ".join(f"{k}={v}" for k, v in variables().items() if v is not None):
                get_logger().warning("the environment sets %s: without it the result has other last bits", found)

    def _loss_function(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """(tokens, targets, segments) → (what is minimised, nats), summed; under autocast, compiled as the run needs."""
        precision = self.precision
        autocast = torch.autocast(self.world.device.type, precision, enabled=precision != torch.float32)

        def loss_of(tokens: Tensor, targets: Tensor, segments: Tensor | None) -> tuple[Tensor, Tensor]:
            with autocast:
                return self.parallel.loss(tokens, targets, segments)

        return compiled(loss_of) if self.compiled else loss_of

    def _micro_rows(self) -> int:
        """Sequences of one forward pass: as asked, else the most that 16,384 tokens (CPU 4,096) allow and that divide the batch."""
        rows = self.loader.batch_size // self.world.size
        wanted = self.runtime.micro_batch_tokens or (4096 if self.world.device.type == "cpu" else 16_384)
        limit = max(1, wanted // self.loader.seq_len)
        return next(n for n in range(min(limit, rows), 0, -1) if rows % n == 0)

    def _trained(self, state: TrainState) -> MiniLLM | None:
        """The model with all its weights. With FSDP every rank must ask, and only the main process gets it: the others join their parts of
        one tensor after the other and keep none.
        """
        if self.parallel.mode != "fsdp":
            return state.model
        model = MiniLLM(self.model_config) if self.world.main else None
        weights = model.state_dict() if model else {}
        with torch.no_grad():
            for name, value in state.model.state_dict().items():
                joined = whole(value)
                if model:
                    weights[name].copy_(joined)
        return model

    def _facts(self, state: TrainState) -> dict[str, Any]:
        """What `config.json` and `reports/train.json` say beside the architecture; no clock."""
        return {
            "fingerprint": self.fingerprint,
            "tokenizer_sha256": self.identity["tokenizer_sha256"],
            "index_sha256": self.identity["index_sha256"],
            "steps": state.step,
            "tokens": state.step * self.config.tokens_per_step,
            **({"passed_over": self.passed.decisions} if self.passed.decisions else {}),
        }
