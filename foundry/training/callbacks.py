"""The callbacks of every run: a progress bar, log lines, TensorBoard's files, a profile."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from foundry.config import MissingPackageError
from foundry.utils.events import Callback, CheckpointSaved, MetricsCallback, RolledBack, StepDone, Validated
from foundry.utils.files import make_folder, write_text
from foundry.utils.log import get_logger, progress

PROFILED = (3, 10)  # steps before and in a profile


class ProgressBar(Callback):
    """Shows the numbers of the newest step.

    Args:
        steps: steps of the run.
        done: steps that the run resumes from.
    """

    def __init__(self, steps: int, done: int) -> None:
        self._bar = progress(total=steps, initial=done, unit="step", desc="train")

    def on_step(self, event: StepDone) -> None:
        share = "n/a" if event.share_of_peak is None else f"{event.share_of_peak:.0%}"
        self._bar.set_postfix_str(
            f"loss {event.loss:.3f}, {event.bits_per_byte:.3f} bits/byte, lr {event.lr:.1e}, "
            f"grad {event.grad_norm:.2f}, {event.tokens_per_second:,.0f} tokens/s, {share} of peak",
            refresh=False,
        )
        self._bar.update()

    def on_rollback(self, event: RolledBack) -> None:
        self._bar.update(event.step - self._bar.n)

    def on_end(self) -> None:
        self._bar.close()


class LogLines(Callback):
    """Validations, jumps of the loss, and at the end what the checkpoints cost."""

    def __init__(self) -> None:
        self._waits: list[float] = []

    def on_step(self, event: StepDone) -> None:
        if event.deviations:
            get_logger().warning(
                "step %d: the loss jumped to %.3f, %.0f standard deviations above the last ones",
                event.step,
                event.loss,
                event.deviations,
            )

    def on_validation(self, event: Validated) -> None:
        # Those of a part (NAME/PART) are in the reports and in MLflow: a line with all of them would not be read.
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in event.metrics.items() if "/" not in name)
        get_logger().info("step %d: validation %s", event.step, numbers)

    def on_checkpoint(self, event: CheckpointSaved) -> None:
        self._waits.append(event.seconds)

    def on_end(self) -> None:
        if self._waits:
            get_logger().info(
                "%d checkpoints: training waited %.0f ms for each (median; at most %.0f ms)",
                len(self._waits),
                1000 * statistics.median(self._waits),
                1000 * max(self._waits),
            )
        self._waits = []


class TensorBoard(MetricsCallback):
    """TensorBoard's event files.

    Args:
        step: the step that the run starts from; what the folder has of later steps is hidden.

    Raises:
        MissingPackageError: if TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingPackageError("tensorboard", "tensorboard", "runtime.tensorboard is set") from None

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

    def on_end(self) -> None:
        self._writer.close()


class Profile(Callback):
    """Profiles some steps of the run, then writes `trace.json` (chrome://tracing, Perfetto) and `summary.txt`."""

    def __init__(self, folder: Path) -> None:
        from torch.profiler import ProfilerActivity, profile, schedule

        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        wait, active = PROFILED
        self.folder = folder
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=wait - 1, warmup=1, active=active, repeat=1),
            on_trace_ready=self._write,
            profile_memory=True,
        )
        self._profile.start()

    def on_step(self, event: StepDone) -> None:
        self._profile.step()

    def on_end(self) -> None:
        self._profile.stop()

    def _write(self, profile: Any) -> None:
        make_folder(self.folder)
        profile.export_chrome_trace(str(self.folder / "trace.json"))
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        text = profile.key_averages().table(sort_by=by, row_limit=40)
        text += "\n" + profile.key_averages().table(sort_by="self_cpu_memory_usage", row_limit=20)
        if torch.cuda.is_available():
            text += "\n" + torch.cuda.memory_summary()
        write_text(self.folder / "summary.txt", text)
        get_logger().info("wrote the profile of %d steps: %s", PROFILED[1], self.folder)
