"""What a run tells while it trains: the loss curve, validations, a progress bar, its sinks (MLflow, TensorBoard), a profile.

Changes nothing of the run (law 8).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch

from foundry.config import ConfigError, TrainConfig
from foundry.training.state import TrainState
from foundry.utils.distributed import World
from foundry.utils.files import make_folder, write_text
from foundry.utils.log import get_logger, progress

PROFILED = (3, 10)  # steps before and in a profile


class Sink(Protocol):
    """Where the numbers of a run go. Only rank 0 has sinks; they must not raise."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Takes the numbers of a step: of training every `log_interval` steps, of each validation."""

    def back_to(self, step: int) -> None:
        """Training returned to `step` and takes other batches from there: what was logged of later steps no longer counts."""


class Reporter:
    """Rank 0 reports; the other ranks only keep the curve.

    Args:
        flops_per_token: floating-point operations of training on one token.
        bytes_per_token: of the training text; with weighted sources about that.
        peak_flops: operations per second that the device can do at most; None if unknown.
        profile: folder of the profile; None for no profile.
    """

    def __init__(
        self,
        state: TrainState,
        config: TrainConfig,
        world: World,
        *,
        flops_per_token: int,
        bytes_per_token: float,
        peak_flops: float | None,
        sinks: Iterable[Sink] = (),
        profile: Path | None = None,
    ) -> None:
        self.state, self.config, self.world = state, config, world
        self.flops, self.bytes_per_token, self.peak = flops_per_token, bytes_per_token, peak_flops
        self.sinks = list(sinks) if world.main else []
        self.copies: list[float] = []
        self._bar = progress(total=config.steps, initial=state.step, unit="step", desc="train") if world.main else None
        self._profile: AbstractContextManager = _profiler(profile) if profile and world.main else nullcontext()
        self._clock = time.perf_counter()

    def __enter__(self) -> Reporter:
        self._profiler = self._profile.__enter__()
        self._clock = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
        self._profile.__exit__(*exc)

    def close(self) -> None:
        if self._bar:
            self._bar.close()
        if self.copies:
            get_logger().info(
                "%d checkpoints: each stopped training for %.0f ms (median; at most %.0f ms)",
                len(self.copies),
                1000 * statistics.median(self.copies),
                1000 * max(self.copies),
            )
            self.copies = []

    def pause(self) -> None:
        """What took time since the last step was not training."""
        self._clock = time.perf_counter()

    def saved(self, seconds: float) -> None:
        if self.world.main:
            self.copies.append(seconds)
        self.pause()

    def step(self, loss: float, norm: float, lr: float, last: bool) -> None:
        """Takes the numbers of the step that was just done."""
        state, cfg = self.state, self.config
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        state.seconds += seconds
        if (spike := state.watch(loss)) and self.world.main:
            get_logger().warning(
                "step %d: the loss jumped to %.3f, %.0f deviations above the last ones", state.step, loss, spike
            )
        speed = cfg.tokens_per_step / seconds
        bits = loss / math.log(2) / self.bytes_per_token
        numbers = {"loss": loss, "grad_norm": norm, "lr": lr}
        if state.step == 1 or state.step % cfg.log_interval == 0 or last:
            state.curve.append({"step": state.step, "tokens": state.step * cfg.tokens_per_step, **_rounded(numbers)})
            more = {"tokens_per_second": speed, "gflops": speed * self.flops / 1e9, "seconds": state.seconds}
            share = {} if self.peak is None else {"share_of_peak": speed * self.flops / self.peak}
            self._log({**numbers, **more, "bits_per_byte": bits, **share})
        if self._bar:
            share = "n/a" if self.peak is None else f"{speed * self.flops / self.peak:.0%}"
            self._bar.set_postfix_str(
                f"loss {loss:.3f}, {bits:.3f} bits/byte, lr {lr:.1e}, grad {norm:.2f}, {speed:,.0f} tokens/s, {share} of peak",
                refresh=False,
            )
            self._bar.update()
        if self._profiler:
            self._profiler.step()

    def validation(self, numbers: dict[str, float]) -> None:
        """Takes a validation of the weights as they are now; empty on ranks that take no part."""
        if numbers:
            state, row = self.state, _rounded(numbers)
            state.validations.append({"step": state.step, "tokens": state.step * self.config.tokens_per_step, **row})
            self._log(row)
            if self.world.main:
                get_logger().info(
                    "step %d: validation %.4f bits per byte, %.4f nats per token",
                    state.step,
                    row["val_bits_per_byte"],
                    row["val_loss"],
                )
        self.pause()

    def back(self) -> None:
        """Training returned to the step that the state has now."""
        for sink in self.sinks:
            sink.back_to(self.state.step)
        if self._bar:
            self._bar.update(self.state.step - self._bar.n)
        self.pause()

    def _log(self, numbers: dict[str, float]) -> None:
        finite = {
            k: v for k, v in numbers.items() if math.isfinite(v)
        }  # the norm of a gradient that left float16's range
        for sink in self.sinks:
            sink.log(self.state.step, finite)


def _rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {k: float(f"{v:.6g}") for k, v in numbers.items()}


class TensorBoard:
    """A sink that writes TensorBoard's event files; a context manager.

    Args:
        step: the step that the run starts from; what the folder has of later steps is hidden.

    Raises:
        ConfigError: if TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "runtime.tensorboard is set, but TensorBoard is not installed: pip install 'foundry-lm[tensorboard]'"
            ) from None

        def new(step: int) -> SummaryWriter:
            # Readers take the files in the order of their names, in which only the second of their making is in order.
            while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
                time.sleep(0.02)
            return SummaryWriter(folder, purge_step=step + 1)

        self._new = new
        self._writer = new(step)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def back_to(self, step: int) -> None:
        self._writer.close()
        self._writer = self._new(step)

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *exc: object) -> None:
        self._writer.close()


def _profiler(folder: Path) -> Any:
    """Profiles some steps of the run, then writes `trace.json` (chrome://tracing, Perfetto) and `summary.txt`."""
    from torch.profiler import ProfilerActivity, profile, schedule

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()

    def write(p: Any) -> None:
        make_folder(folder)
        p.export_chrome_trace(str(folder / "trace.json"))
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        text = p.key_averages().table(sort_by=by, row_limit=40)
        text += "\n" + p.key_averages().table(sort_by="self_cpu_memory_usage", row_limit=20)
        if torch.cuda.is_available():
            text += "\n" + torch.cuda.memory_summary()
        write_text(folder / "summary.txt", text)
        get_logger().info("wrote the profile of %d steps: %s", PROFILED[1], folder)

    wait, active = PROFILED
    return profile(
        activities=activities,
        schedule=schedule(wait=wait - 1, warmup=1, active=active, repeat=1),
        on_trace_ready=write,
        profile_memory=True,
    )
