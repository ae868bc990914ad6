"""What a run reports while it trains, number by number, by a clock of the test's own."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from foundry.config import TrainConfig
from foundry.training import callbacks, observer
from foundry.training.callbacks import LogLines, Profile, ProgressBar
from foundry.training.observer import Observer
from foundry.training.state import WINDOW, TrainState
from foundry.utils.distributed import World
from foundry.utils.events import MetricsCallback
from foundry.utils.log import get_logger

CONFIG = TrainConfig(steps=5, tokens_per_step=100, log_interval=2, warmup_steps=0)


class Bar:
    """A progress bar that keeps what it shows."""

    def __init__(self, total, initial, unit, desc):
        assert (total, unit, desc) == (5, "step", "train")
        self.n, self.texts, self.closed = initial, [], 0

    def set_postfix_str(self, text, refresh):
        assert not refresh  # drawn at the bar's own pace, not at every step
        self.texts.append(text)

    def update(self, n=1):
        self.n += n

    def close(self):
        self.closed += 1


class Kept(MetricsCallback, list):
    def log(self, step, metrics):
        self.append((step, metrics))

    def back_to(self, step):
        self.append(("back", step))


class Clock:
    now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(observer, "time", clock)
    monkeypatch.setattr(callbacks, "progress", lambda **k: Bar(**k))
    monkeypatch.setattr(get_logger(), "propagate", True)
    return clock


def made(rank=0, step=0, peak=1e6, more=()):
    """(an observer of a run that begins at `step`, its state, the numbers that reach a callback, its bar)"""
    state = TrainState(torch.nn.Module(), None, None, {})
    state.step = step
    kept, bar = Kept(), ProgressBar(CONFIG.steps, step)
    world = World(rank, 2, torch.device("cpu"))
    known = {"flops_per_token": 3000, "bytes_per_token": 4.0, "peak_flops": peak}
    return Observer(state, CONFIG, world, [kept, bar, LogLines(), *more], **known), state, kept, bar._bar


def trained(seen, state, clock, seconds, loss, norm=0.5, lr=0.001, last=False):
    clock.now += seconds
    state.step += 1
    seen.step(loss, norm, lr, last)


def test_each_number_of_a_step_is_what_its_name_says(clock):
    """Time that was not training (a validation, a checkpoint) is not part of the speed or of the run's seconds."""
    seen, state, kept, bar = made()
    trained(seen, state, clock, 2.0, 3.14159265, norm=1.23456789)
    clock.now += 7
    seen.pause()
    trained(seen, state, clock, 4.0, 2.5, lr=0.0005)
    clock.now += 9
    seen.checkpoint(0.25)
    trained(seen, state, clock, 0.5, 2.4)
    clock.now += 9
    seen.validation({"val_loss": 2.0, "val_bits_per_byte": 1.5})
    trained(seen, state, clock, 1.0, 2.3)
    trained(seen, state, clock, 1.0, 2.2, last=True)
    seen.end()
    assert state.seconds == 8.5
    rows = [(1, 3.14159, 1.23457, 0.001), (2, 2.5, 0.5, 0.0005), (4, 2.3, 0.5, 0.001), (5, 2.2, 0.5, 0.001)]
    assert state.curve == [
        {"step": s, "tokens": 100 * s, "loss": loss, "grad_norm": n, "lr": lr} for s, loss, n, lr in rows
    ]
    assert state.validations == [{"step": 3, "tokens": 300, "val_loss": 2.0, "val_bits_per_byte": 1.5}]
    assert kept.pop(2) == (3, {"val_loss": 2.0, "val_bits_per_byte": 1.5})
    assert [s for s, _ in kept] == [1, 2, 4, 5]
    speeds, seconds_so_far, losses = (50, 25, 100, 100), (2, 6, 7.5, 8.5), (3.14159265, 2.5, 2.3, 2.2)
    for (_, got), speed, seconds, loss in zip(kept, speeds, seconds_so_far, losses, strict=True):
        assert got["loss"] == loss and got["tokens_per_second"] == speed and got["seconds"] == seconds
        assert got["gflops"] == pytest.approx(speed * 3000 / 1e9, rel=1e-12)
        assert got["share_of_peak"] == pytest.approx(speed * 3000 / 1e6, rel=1e-12)
        assert got["bits_per_byte"] == pytest.approx(loss / math.log(2) / 4, rel=1e-12)
        assert len(got) == 8
    assert len(bar.texts) == bar.n == 5 and bar.closed == 1
    assert bar.texts[1] == "loss 2.500, 0.902 bits/byte, lr 5.0e-04, grad 0.50, 25 tokens/s, 8% of peak"
    assert state.window == [3.14159265, 2.5, 2.4, 2.3, 2.2]


def test_without_a_known_peak_no_share_of_it_is_reported(clock):
    seen, state, kept, bar = made(peak=None)
    trained(seen, state, clock, 1.0, 2.0)
    assert bar.texts[0].endswith("100 tokens/s, n/a of peak") and "share_of_peak" not in kept[0][1]


def test_a_norm_that_is_not_finite_is_in_the_curve_and_not_among_the_metrics(clock):
    seen, state, kept, _ = made()
    trained(seen, state, clock, 1.0, 2.0, norm=math.inf)
    assert state.curve[0]["grad_norm"] == math.inf and "grad_norm" not in kept[0][1] and kept[0][1]["loss"] == 2.0


def test_only_the_main_process_reports(clock, caplog):
    caplog.set_level("INFO")
    reported = []
    for rank in (0, 1):
        seen, state, kept, bar = made(rank)
        state.window = [2.0, 2.2] * (WINDOW // 2)
        trained(seen, state, clock, 1.0, 9.0)
        seen.validation({"val_loss": 2.0, "val_bits_per_byte": 1.5})
        seen.checkpoint(0.25)
        seen.rolled_back()
        seen.end()
        reported.append((len(kept), bar.closed, len(caplog.records)))
        caplog.clear()
        assert len(state.curve) == len(state.validations) == 1
    assert reported == [(3, 1, 3), (0, 0, 0)]


def test_a_jump_of_the_loss_is_a_warning(clock, caplog):
    seen, state, _, _ = made()
    state.window = [2.0, 2.2] * (WINDOW // 2)  # mean 2.1, standard deviation 0.1
    trained(seen, state, clock, 1.0, 2.6)
    assert not caplog.records
    state.window = [2.0, 2.2] * (WINDOW // 2)
    trained(seen, state, clock, 1.0, 4.0)
    (record,) = caplog.records
    assert record.getMessage() == "step 2: the loss jumped to 4.000, 19 standard deviations above the last ones"


def test_a_validation_is_a_line_and_a_rank_that_took_no_part_has_none(clock, caplog):
    caplog.set_level("INFO")
    seen, state, kept, _ = made()
    clock.now += 3
    seen.validation({})
    assert not state.validations and not kept and not caplog.records
    trained(seen, state, clock, 1.0, 2.0)
    assert state.seconds == 1.0
    seen.validation({"val_loss": 2.0, "val_bits_per_byte": 1.53219})
    assert caplog.messages == ["step 1: validation val_loss 2.0000, val_bits_per_byte 1.5322"]


def test_how_long_training_waited_for_checkpoints_is_reported_once(clock, caplog):
    caplog.set_level("INFO")
    seen, _, _, _ = made()
    for seconds in (0.001, 0.002, 0.05):
        seen.checkpoint(seconds)
    seen.end()
    seen.end()
    assert caplog.messages == ["3 checkpoints: training waited 2 ms for each (median; at most 50 ms)"]


def test_a_return_to_an_earlier_step_moves_the_bar_and_the_clock_and_reaches_the_callbacks(clock):
    seen, state, kept, bar = made(step=4)
    assert bar.n == 4
    state.step, clock.now = 2, clock.now + 60
    seen.rolled_back()
    assert bar.n == 2 and kept == [("back", 2)]
    trained(seen, state, clock, 1.0, 2.0)
    assert state.seconds == 1.0


@pytest.mark.parametrize("cuda", [False, True])
def test_a_profile_is_of_ten_steps_after_the_first_three(clock, tmp_path, monkeypatch, cuda):
    """On a GPU its own times and memory are reported, too; its calls are stood in for here."""
    if cuda:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "memory_summary", lambda: "the GPU's memory")
        made_of = []
        table = SimpleNamespace(table=lambda sort_by, row_limit: f"by {sort_by}")

        class Profiler:
            def __init__(self, activities, schedule, on_trace_ready, profile_memory):
                made_of.extend(activities)
                self.write = on_trace_ready
                assert profile_memory

            def start(self):
                pass

            step = start

            def stop(self):
                self.write(SimpleNamespace(key_averages=lambda: table, export_chrome_trace=lambda path: None))

        monkeypatch.setattr("torch.profiler.profile", Profiler)
    seen, state, _, _ = made(more=[Profile(tmp_path / "profile")])
    for _ in range(16):
        with torch.profiler.record_function(f"of step {state.step + 1}"):
            torch.ones(4) @ torch.ones(4)
        trained(seen, state, clock, 1.0, 2.0)
    seen.end()
    summary = (tmp_path / "profile/summary.txt").read_text()
    if cuda:
        assert [str(a) for a in made_of] == ["ProfilerActivity.CPU", "ProfilerActivity.CUDA"]
        assert summary == "by self_cuda_time_total\nby self_cpu_memory_usage\nthe GPU's memory"
        return
    events = json.loads((tmp_path / "profile/trace.json").read_text())["traceEvents"]
    names = {e["name"] for e in events}
    assert {n for n in names if n.startswith("of step")} == {f"of step {n}" for n in range(4, 14)}
    assert "aten::dot" in summary and summary.count("Self CPU %") == 2


def test_every_callback_ends_once_also_if_another_one_fails(clock):
    ended = []

    class Ends(MetricsCallback):
        def __init__(self, name):
            self.name = name

        def on_end(self):
            ended.append(self.name)
            if self.name == "b":
                raise OSError("full")

    seen, _, _, bar = made(more=[Ends("a"), Ends("b"), Ends("c")])
    with pytest.raises(OSError, match="full"):
        seen.end()
    seen.end()
    assert ended == ["a", "b", "c"] and bar.closed == 1


def test_a_validation_that_is_not_finite_is_kept_in_the_rows_and_not_among_the_metrics(clock):
    seen, state, kept, _ = made()
    seen.validation({"val_loss": math.nan, "val_bits_per_byte": 1.5})
    assert kept == [(0, {"val_bits_per_byte": 1.5})] and math.isnan(state.validations[0]["val_loss"])
