"""The trainer: one loop, one state, resumed bit for bit.

Guarantees: a run that was killed at any moment and started again ends with the same bits as one that was not (same
machine, same execution parameters); the loss is a sum over valid terms divided by their global count, however the batch
is cut (law 6); validation and reporting change nothing (law 8). Costs: a copy of the state every
`runtime.checkpoint_interval` steps, which a thread writes.

`setup` makes what the loop works with, `step` is one step, `resume` finds the checkpoint to resume from, `recovery`
handles values that are not finite, `observer` reports. The loader, the loss and the validator are arguments (see
`protocols`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foundry.config import FoundryError, ModelConfig, Runtime, TrainConfig
from foundry.data.tokens.loader import DataLoader
from foundry.data.tokens.shards import Shards
from foundry.models import MiniLLM
from foundry.models.accounting import train_flops_per_token
from foundry.models.adapter import blank_like, trained_parameters
from foundry.models.facts import TrainingFacts
from foundry.models.files import weights_sha256
from foundry.training.callbacks import LogLines, Profile, ProgressBar, TensorBoard
from foundry.training.checkpoints import Checkpoints
from foundry.training.identity import check_same, fingerprint, identity
from foundry.training.numerics import environment, numerics
from foundry.training.observer import Observer
from foundry.training.out_of_memory import out_of_memory_errors
from foundry.training.parallel import joined
from foundry.training.plan import check_batch, check_plan, make_plan
from foundry.training.pretraining import HeldOutText, NextToken
from foundry.training.protocols import Loader, Loss, Validator
from foundry.training.recovery import Recovery
from foundry.training.resume import RunFolder
from foundry.training.schedule import stable_steps
from foundry.training.setup import Session, log_setup, open_session, precision_and_rows, resolve
from foundry.training.skipped import SKIPPED, SkippedBatches
from foundry.training.state import TrainState
from foundry.training.step import NotFinite
from foundry.utils.checkpoint import read_checkpoint
from foundry.utils.device import device_memory, get_device, peak_flops
from foundry.utils.distributed import World, lost_peer_errors
from foundry.utils.events import Callback
from foundry.utils.files import state_dir
from foundry.utils.locks import exclusive
from foundry.utils.log import get_logger
from foundry.utils.process import Stopped, StopSignal


@dataclass(frozen=True)
class Result:
    """What a finished run gives.

    Attributes:
        model: the trained model; with FSDP only on the main process, elsewhere None.
        facts: what `config.json` and `reports/train.json` say of the run; no clock.
        curve, validations: one row per point of the loss curve and per validation.
    """

    model: MiniLLM | None
    facts: TrainingFacts
    curve: list[dict[str, float]]
    validations: list[dict[str, float]]


class Trainer:
    """One training run.

    Args:
        model: a model, which is trained in place; or an architecture, whose first weights the seed gives.
        train_config: the recipe. What it does not say of the batch (`batch_size`, `tokens_per_step`, `packing`) is
            the loader's.
        data_loader: batches of the training split; see `protocols.Loader`.
        device: default: `runtime.device`.
        loss: what is minimised; default: the next token's cross-entropy.
        validator: default: bits per byte of the validation split beside the loader's `shards`, which another loader may
            not have. `train` needs its metric `val_loss`.
        runtime: where and how; never part of the run's identity.
        world: this process among its peers.
        state: folder of all runs' states; default `.foundry/train`.
        callbacks: receive the events of the run on rank 0.

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
        data_loader: Loader,
        device: str | torch.device | None = None,
        *,
        loss: Loss | None = None,
        validator: Validator | None = None,
        seed: int = 1,
        runtime: Runtime | None = None,
        world: World | None = None,
        state: Path | None = None,
        callbacks: Iterable[Callback] = (),
    ) -> None:
        self.runtime = runtime or Runtime()
        if world is None:
            wish = self.runtime.device if device is None else device
            world = World(0, 1, get_device(wish) if isinstance(wish, str) else wish)
        self.world, self.loader, self.seed, self.callbacks = world, data_loader, seed, list(callbacks)
        self.model = None if isinstance(model, ModelConfig) else model
        self.model_config = model if isinstance(model, ModelConfig) else model.cfg
        batch = {"tokens_per_step": data_loader.batch_size * data_loader.seq_len, "packing": data_loader.packing}
        check_batch(train_config, {**batch, "batch_size": data_loader.batch_size})
        self.config = train_config.model_copy(update=batch)
        _check_fit(data_loader, self.model_config)
        self.identity = identity(self.model_config, self.config, seed, data_loader.identity)
        trained = None
        if self.model is not None:
            self.identity["weights_sha256"] = weights_sha256(self.model)
            trained = sum(p.numel() for p in trained_parameters(self.model).values())
            if self.model.adapter is not None:
                self.identity |= self.model.adapter.identity
        if data_loader.seed != seed:
            self.identity["order_seed"] = data_loader.seed
        for name, part in (("loss", loss), ("validator", validator)):
            if part is not None:
                self.identity |= {f"{name}.{k}": v for k, v in part.identity.items()}
        self.fingerprint = fingerprint(self.identity)
        self.folder = (state or state_dir() / "train") / self.fingerprint
        precision, micro_rows = precision_and_rows(self.runtime, self.world, data_loader)
        self.plan = make_plan(
            self.model_config, self.config, data_loader.tokens_per_epoch, trained=trained, new=self.model is None
        )
        chunk, context = self.runtime.loss_chunk, self.model_config.max_seq_len
        self.loss = NextToken(chunk, self.config.z_loss) if loss is None else loss
        self.execution = resolve(self.runtime, self.world, precision, micro_rows, self.plan, data_loader, self.loss)
        pinned = frozenset({stable_steps(self.config)} | ({0} if self.config.on_nonfinite == "rollback" else set()))
        check_plan(
            self.plan,
            self.model_config,
            self.config,
            self.runtime,
            micro_rows,
            self.folder,
            precision=self.execution.precision_name,
            compiled=self.execution.compiled,
            device=self.world.device.type,
            processes=self.world.size,
            memory=device_memory(self.world.device),
            pinned=pinned,
        )
        if validator is None:
            held_out = Shards(data_loader.shards.folder, "val")
            validator = HeldOutText(held_out, self.config.eval_tokens, context, chunk)
        self.validator = validator
        self.skipped = SkippedBatches(self.folder / SKIPPED)
        self.checkpoints = Checkpoints(
            self.folder / "checkpoints",
            self.runtime.keep_checkpoints,
            pinned,
            self.world,
            divided=self.runtime.parallel == "fsdp",
        )
        self.run_folder = RunFolder(self.folder, self.identity, self.config, self.world, self.checkpoints)
        self.recovery = Recovery(
            self.config, self.world, self.loader, self.skipped, self.checkpoints, self.run_folder.load
        )
        self._session: Session | None = None

    @classmethod
    def from_shards(
        cls,
        model: ModelConfig,
        train: TrainConfig,
        data: str | Path,
        *,
        seed: int = 1,
        world: World | None = None,
        **rest: Any,
    ) -> Trainer:
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
        """Trains from the newest checkpoint, or from scratch, to the last step.

        Raises:
            Stopped: after SIGTERM or SIGINT, with the state saved; exit code 128 + signal.
            LockError: if another process trains this run.
            CheckpointError: if its folder or checkpoint is of another run, or no checkpoint is left to roll back to.
            FoundryError: if a loss or gradient is not finite and the policy is to halt; that step changed no weight.
                If the device has not enough memory for a step; the message names what to lower.
        """
        with ExitStack() as stack:
            if self.world.main:
                stack.enter_context(exclusive(self.folder / "lock", f"training {self.fingerprint}"))
                self.run_folder.record(environment(self.runtime, self.world, self.execution))
            stop = stack.enter_context(StopSignal())
            stack.enter_context(numerics(self.runtime, self.world))
            session = self.session()
            observer = self._observer(session.state, stack)
            rows, seq_len = self.execution.micro_rows, self.loader.seq_len
            with lost_peer_errors(self.world), out_of_memory_errors(self.runtime, rows, seq_len):
                try:
                    self._loop(session, stop, observer)
                finally:
                    self.checkpoints.wait()
        state = session.state
        return Result(self._trained(session), self._facts(state), state.curve, state.validations)

    def train(self) -> dict[str, Any]:
        """`fit`, and its numbers: train_losses, val_losses (nats per token), elapsed_time (s), steps_per_second."""
        begin = time.perf_counter()
        before = self._session.state.step if self._session else 0
        result = self.fit()
        seconds = time.perf_counter() - begin
        return {
            "train_losses": [row["loss"] for row in result.curve],
            "val_losses": [row["val_loss"] for row in result.validations],
            "elapsed_time": seconds,
            "steps_per_second": (self.config.steps - before) / seconds,
        }

    def evaluate(self) -> dict[str, float]:
        """The validator's metrics of the weights as they are; changes nothing."""
        with numerics(self.runtime, self.world):
            return self.validate(self.session())

    def save_checkpoint(self, path: str | Path) -> Path:
        """Writes the whole state of training to a folder, now. On several processes, all must call it."""
        session, path = self.session(), Path(path)
        if self.world.main or session.parallel.divided:
            tensors, values = session.state.state_dict()
            self.checkpoints.writers.save(path, tensors, session.state.boxes(), values)
        self.world.barrier()
        return path

    def load_checkpoint(self, path: str | Path) -> None:
        """Replaces the state of this run by that in a folder.

        Raises:
            CheckpointError: if it is damaged, or of another run; the keys that differ are named.
        """
        state = self.session().state
        tensors, values = read_checkpoint(Path(path), state.wanted)
        check_same(values["identity"], self.identity, str(path))
        state.load_state_dict(tensors, values)

    # its parts

    def session(self) -> Session:
        """What the loop works with, made once: its state is that of the newest checkpoint, or new."""
        if self._session:
            return self._session
        session = open_session(
            self.model,
            self.model_config,
            self.config,
            self.seed,
            self.runtime,
            self.world,
            self.execution,
            self.loader,
            self.loss,
            self.skipped,
            self.identity,
        )
        self.model = session.state.model
        if self.world.main:
            log_setup(self.fingerprint, self.plan, self.runtime, self.world, self.execution)
        self.run_folder.load(session.state)
        self._session = session
        if session.state.step == 0 and self.config.on_nonfinite == "rollback":
            self._save(session)  # what a rollback at the beginning returns to
        return session

    def validate(self, session: Session) -> dict[str, float]:
        """The validator's metrics; empty on ranks that take no part."""
        parallel, execution = session.parallel, self.execution
        if not self.world.main and not parallel.divided:
            return {}
        return self.validator(session.state.model, parallel.apply, execution.precision, execution.micro_rows)

    def _observer(self, state: TrainState, stack: ExitStack) -> Observer:
        """The observer of the run, whose callbacks are ended by `stack`."""
        observer = Observer(
            state,
            self.config,
            self.world,
            self.callbacks,
            flops_per_token=train_flops_per_token(self.model_config),
            bytes_per_token=self.loader.bytes_per_token,
            peak_flops=peak_flops(self.world.device, self.execution.precision) if self.world.main else None,
        )
        stack.callback(observer.end)
        if self.world.main:
            if self.runtime.tensorboard:
                observer.callbacks.append(TensorBoard(Path(self.runtime.tensorboard) / self.fingerprint, state.step))
            observer.callbacks += [ProgressBar(self.config.steps, state.step), LogLines()]
            if self.runtime.profile:
                observer.callbacks.append(Profile(self.folder / "profile"))
        return observer

    def _loop(self, session: Session, stop: StopSignal, observer: Observer) -> None:
        cfg, state = self.config, session.state
        saved = state.step
        while state.step < cfg.steps:
            try:
                loss, norm, factor = session.step(state)
            except NotFinite as e:
                self.recovery(state, str(e), observer.rolled_back)
                saved = min(saved, state.step)
                continue
            state.step += 1
            last = state.step == cfg.steps
            observer.step(loss, norm, cfg.lr * factor, last)
            if state.step % cfg.eval_interval == 0 or last:
                observer.validation(self.validate(session))
            stopping = self.world.any(stop.signal is not None)
            due = state.step % self.runtime.checkpoint_interval == 0 or state.step in self.checkpoints.pinned
            if state.step != saved and (stopping or last or due):
                observer.checkpoint(self._save(session))
                saved = state.step
            if stopping and not last:
                self.checkpoints.wait()
                get_logger().warning(
                    "stopped by a signal at step %d of %d; run the same command to resume", state.step, cfg.steps
                )
                raise Stopped(stop.signal or 15)

    def _save(self, session: Session) -> float:
        """Begins a checkpoint; returns the seconds that the loop waited for the copy."""
        begin = time.perf_counter()
        self.checkpoints.wait()
        state = session.state
        if self.world.main or session.parallel.divided:
            tensors, values = state.state_dict()
            self.checkpoints.save(state.step, tensors, values, state.boxes())
        return time.perf_counter() - begin

    def _trained(self, session: Session) -> MiniLLM | None:
        """The model with all its weights.

        With FSDP every rank must ask, and only the main process gets it: the others join their parts of one tensor
        after the other and keep none.
        """
        trained = session.state.model
        if not session.parallel.divided:
            return trained
        model = blank_like(self.model) if self.world.main else None
        weights = model.state_dict() if model else {}
        with torch.no_grad():
            for name, value in trained.state_dict().items():
                tensor = joined(value)
                if model:
                    weights[name].copy_(tensor)
        return model

    def _facts(self, state: TrainState) -> TrainingFacts:
        """What `config.json` and `reports/train.json` say beside the architecture; no clock."""
        return TrainingFacts(
            fingerprint=self.fingerprint,
            tokenizer_sha256=self.identity["tokenizer_sha256"],
            index_sha256=self.identity["index_sha256"],
            steps=state.step,
            tokens=state.step * self.config.tokens_per_step,
            skipped_batches=self.skipped.decisions if len(self.skipped) else None,
        )


def _check_fit(loader: Loader, model: ModelConfig) -> None:
    """
    Raises:
        FoundryError: if the loader's batches are not for this model.
    """
    if loader.vocab_size != model.vocab_size:
        raise FoundryError(
            f"the shards have a vocabulary of {loader.vocab_size}, the model one of {model.vocab_size}: "
            "run `dvc repro shard`"
        )
    if loader.seq_len > model.max_seq_len:
        raise FoundryError(
            f"the loader's rows have {loader.seq_len} tokens, the model's context is {model.max_seq_len} "
            "(max_seq_len): lower the one or raise the other"
        )
