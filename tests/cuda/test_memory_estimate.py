"""The plan's estimate of memory against what the allocator gave out at most: within 10 %."""

import gc
import json

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from foundry.config import ModelConfig
from foundry.models.accounting import train_memory_bytes
from foundry.training.numerics import numerics

SMALL = {"dim": 256, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 768, "max_seq_len": 512}
LARGE = {"dim": 512, "n_layers": 4, "n_heads": 8, "n_kv_heads": 4, "ffn_dim": 1536, "max_seq_len": 512}


def two_steps(trainer):
    """The second one has all moments."""
    with numerics(trainer.runtime, trainer.world):
        session = trainer.session()
        for _ in range(2):
            session.step(session.state)
            session.state.step += 1


def peak_on_cpu(make, path):
    """Bytes that torch's allocator of the CPU gave out at most, by its events in a profile."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        two_steps(make())
    profiler.export_chrome_trace(str(path))
    events = [e["args"] for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    before = events[0]["Total Allocated"] - events[0]["Bytes"]
    return max(e["Total Allocated"] for e in events) - before


def peak_on_cuda(make):
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    two_steps(make())
    return torch.cuda.max_memory_allocated() - before


EAGER = {
    "float32": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16"},
    "accumulating": {"precision": "bfloat16", "accumulate": True},
    "recomputing": {"precision": "bfloat16", "recompute": True, "optimizer": "adamw"},
}
COMPILED = {
    "compiled": {"precision": "bfloat16", "compile": "always"},
    "compiled, recomputing": {"precision": "bfloat16", "compile": "always", "recompute": True, "optimizer": "adamw"},
}


@pytest.fixture
def check(made, tmp_path):
    """Compares the estimate with the peak: check(device, options)."""

    def compared(device, options):
        shape, rows, chunk = (SMALL, 4, 256) if device.type == "cpu" else (LARGE, 32, 1024)
        tokens = rows * shape["max_seq_len"]
        accumulate = options.pop("accumulate", False)
        micro = tokens // 2 if accumulate else tokens
        batch = {"tokens_per_step": tokens, "micro_batch_tokens": micro, "loss_chunk": chunk}

        def make():
            return made(device, "run", **shape, **options, **batch)

        peak = peak_on_cuda(make) if device.type == "cuda" else peak_on_cpu(make, tmp_path / "trace.json")
        estimate = train_memory_bytes(
            ModelConfig(vocab_size=400, **shape),
            micro // shape["max_seq_len"],
            options["precision"] != "float32",
            options.get("recompute", False),
            chunk,
            compiled="compile" in options,
            muon=options.get("optimizer", "muon") == "muon",
            accumulates=accumulate,
            device=device.type,
        )
        assert estimate == pytest.approx(peak, rel=0.1), f"{estimate / 2**20:.1f} MiB for {peak / 2**20:.1f}"

    return compared


@pytest.mark.parametrize("case", EAGER)
def test_the_estimate_is_within_a_tenth_of_the_allocators_peak(device, check, case):
    check(device, dict(EAGER[case]))


@pytest.mark.cuda
@pytest.mark.parametrize("case", COMPILED)
def test_the_estimate_knows_what_a_compiled_run_keeps(gpu, check, case):
    check(gpu, dict(COMPILED[case]))
