"""What a run tells while it goes: the loss curve, a progress bar, the tracker, TensorBoard, a profile. Changes nothing of the run (law 8)."""

from __future__ import annotations

import math
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from foundry.config import ConfigError
from foundry.models.accounting import train_flops_per_token
from foundry.training.state import TrainState
from foundry.utils.device import peak_flops
from foundry.utils.files import make_folder, write_text
from foundry.utils.log import get_logger, progress

if TYPE_CHECKING:
    from foundry.training.trainer import Trainer

PROFILED = (3, 10)  # steps before and in a profile


class Reporter:
    """Rank 0 tells; the other ranks only keep the curve."""

    def __init__(self, trainer: Trainer, state: TrainState) -> None:
        self.trainer, self.state = trainer, state
        cfg, world = trainer.config, trainer.world
        info = trainer.loader.shards.infos
        # Bits per byte of the training text; with weighted sources about that.
        self.bytes_per_token = sum(i["bytes"] for i in info) / max(1, sum(i["tokens"] for i in info))
        self.flops = train_flops_per_token(trainer.model_config)
        self.peak = peak_flops(world.device, trainer.precision) if world.main else None
        self.copies: list[float] = []
        self._bar = progress(total=cfg.steps, initial=state.step, unit="step", desc="train") if world.main else None
        self._stack = ExitStack()
        self._clock = time.perf_counter()

    def __enter__(self) -> Reporter:
        runtime = self.trainer.runtime
        self._board = self._profiler = None
        if self.trainer.world.main and runtime.tensorboard:
            self._board = self._stack.enter_context(_tensorboard(Path(runtime.tensorboard) / self.trainer.fingerprint))
        if self.trainer.world.main and runtime.profile:
            self._profiler = self._stack.enter_context(_profiler(self.trainer.folder / "profile"))
        self._clock = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
        self._stack.close()

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
        if self.trainer.world.main:
            self.copies.append(seconds)
        self.pause()

    def step(self, loss: float, norm: float, lr: float, last: bool) -> None:
        """Takes the numbers of the step that was just done."""
        state, cfg = self.state, self.trainer.config
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        state.seconds += seconds
        if (spike := state.watch(loss)) and self.trainer.world.main:
            get_logger().warning(
                "step %d: the loss jumped to %.3f, %.0f deviations above the last ones", state.step, loss, spike
            )
        numbers = {"loss": loss, "grad_norm": norm, "lr": lr}
        if state.step == 1 or state.step % cfg.log_interval == 0 or last:
            row = {k: float(f"{v:.6g}") for k, v in numbers.items()}
            state.curve.append({"step": state.step, "tokens": state.step * cfg.tokens_per_step, **row})
            self._tell(numbers, cfg.tokens_per_step / seconds)
        if self._bar:
            speed = cfg.tokens_per_step / seconds
            share = "n/a" if self.peak is None else f"{speed * self.flops / self.peak:.0%}"
            bits = loss / math.log(2) / self.bytes_per_token
            self._bar.set_postfix_str(
                f"loss {loss:.3f}, {bits:.3f} bits/byte, lr {lr:.1e}, grad {norm:.2f}, {speed:,.0f} tokens/s, {share} of peak",
                refresh=False,
            )
            self._bar.update()
        if self._profiler:
            self._profiler.step()

    def _tell(self, numbers: dict[str, float], speed: float) -> None:
        if not self.trainer.world.main:
            return
        more = {"tokens_per_second": speed, "gflops": speed * self.flops / 1e9, "seconds": self.state.seconds}
        more["bits_per_byte"] = numbers["loss"] / math.log(2) / self.bytes_per_token
        if self.peak is not None:
            more["share_of_peak"] = speed * self.flops / self.peak
        self.trainer.on_metrics(self.state.step, {**numbers, **more})
        if self._board:
            for name, value in {**numbers, **more}.items():
                self._board.add_scalar(name, value, self.state.step)


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "runtime.tensorboard is set, but TensorBoard is not installed: pip install 'foundry-lm[tensorboard]'"
        ) from None
    return SummaryWriter(folder)


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
