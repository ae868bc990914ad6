"""How a run is carried out: what `runtime` does not say is derived from the device and the batch."""

from types import SimpleNamespace

import pytest
import torch

from foundry.config import ModelConfig, Runtime, TrainConfig
from foundry.training import setup
from foundry.training.numerics import Execution
from foundry.training.plan import make_plan
from foundry.training.setup import log_setup, precision_and_rows
from foundry.utils.distributed import World


@pytest.mark.parametrize(
    ("batch", "seq_len", "processes", "device", "asked", "rows"),
    [
        (64, 256, 1, "cpu", 0, 16),  # 4,096 tokens on a CPU
        (64, 256, 1, "cuda", 0, 64),  # 16,384 on a GPU
        (65, 256, 1, "cuda", 0, 13),  # the most that divide the batch, of at most 64
        (66, 256, 1, "cuda", 0, 33),
        (64, 256, 2, "cpu", 0, 16),
        (64, 256, 8, "cpu", 0, 8),  # all that a process has
        (24, 256, 2, "cpu", 0, 12),
        (64, 256, 1, "cpu", 1024, 4),
        (64, 256, 1, "cpu", 100, 1),  # one sequence at least
        (7, 256, 1, "cpu", 1024, 1),
        (64, 8192, 1, "cpu", 0, 1),
    ],
)
def test_a_forward_pass_has_the_most_sequences_that_fit_and_divide_the_batch(
    batch, seq_len, processes, device, asked, rows
):
    runtime = Runtime(precision="float32", micro_batch_tokens=asked)
    loader = SimpleNamespace(batch_size=batch, seq_len=seq_len)
    world = World(0, processes, torch.device(device))
    assert precision_and_rows(runtime, world, loader) == (torch.float32, rows)


@pytest.mark.parametrize(("compiled", "ending"), [(True, "compiled"), (False, "not compiled (too short)")])
def test_what_was_derived_is_logged_before_the_run(caplog, monkeypatch, compiled, ending):
    monkeypatch.setattr(setup.get_logger(), "propagate", True)
    caplog.set_level("INFO")
    cfg = ModelConfig(vocab_size=400, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=32)
    plan = make_plan(cfg, TrainConfig(steps=6, tokens_per_step=256, warmup_steps=1), 1000)
    execution = Execution(torch.bfloat16, 4, compiled, "" if compiled else "too short")
    log_setup("abc", plan, Runtime(precision="bfloat16"), World(0, 2, torch.device("cpu")), execution)
    assert caplog.messages[: len(plan.lines())] == plan.lines()
    threads = torch.get_num_threads()
    expected = f"run abc on 2 x cpu, bfloat16 (as runtime.precision says), {threads} threads, {ending}"
    assert caplog.messages[-2] == expected and caplog.messages[-1].startswith("memory allocator: ")
