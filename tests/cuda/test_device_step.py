"""What a step does beside arithmetic: it reads ahead, waits for the device once, and survives a full memory."""

import json
import warnings

import pytest
import torch

from foundry.config import FoundryError
from foundry.training.numerics import numerics
from foundry.training.pretraining import NextToken


class Busy(NextToken):
    """A loss whose backward pass keeps the device busy for some tenths of a second after the host has gone on."""

    def __call__(self, model, *batch):
        total, nats = super().__call__(model, *batch)
        total.register_hook(lambda g: (torch.cuda._sleep(500_000_000), g)[1])
        return total, nats


@pytest.mark.cuda
def test_the_next_batch_is_copied_while_the_device_computes_the_backward_pass(gpu, made):
    trainer = made(gpu, "run", loss=Busy(1024, 0.0), steps=3)
    read, tensors = [], trainer.loader.tensors

    def watched(number, documents):
        read.append((number, torch.cuda.current_stream().query()))
        return tensors(number, documents)

    trainer.loader.tensors = watched
    with numerics(trainer.runtime, trainer.world):
        session = trainer.session()
        batches, prepare = session.step.batches, session.step.batches.prepare

        def copied(number):
            prepare(number)
            batches._stream.synchronize()
            ahead.append((batches._next[0], torch.cuda.current_stream().query()))

        ahead, batches.prepare = [], copied
        for step in range(3):
            session.step(session.state)
            session.state.step = step + 1
    assert [n for n, _ in read] == [0, 1, 2]  # each once, and none after the last step
    assert [done for _, done in read[1:]] == [False, False]  # the backward pass was not over when it was read,
    assert ahead == [(1, False), (2, False)]  # nor when its copy was


def test_batches_that_are_copied_ahead_change_no_bit(device, made):
    """Also where the batch that was prepared is not the one that follows."""

    def losses(name, ahead):
        trainer = made(device, name, document_mask=True, packing="best_fit")
        found, asked = [], trainer.skipped.batch
        trainer.skipped.batch = lambda step: asked(step) + (1 if step > 2 and len(found) > 2 else 0)
        with numerics(trainer.runtime, trainer.world):
            session = trainer.session()
            session.step.batches.ahead = ahead
            while len(found) < 6:
                found.append(session.step(session.state)[:2])
                session.state.step += 1
        return found

    assert losses("ahead", True) == losses("when needed", False)


@pytest.mark.cuda
@pytest.mark.parametrize("micro_batch_tokens", [0, 320], ids=["", "accumulating"])
def test_a_step_waits_for_the_device_once(gpu, made, micro_batch_tokens):
    """For its loss and the norm of its gradient together, however many micro-batches there are."""
    trainer = made(gpu, "run", precision="bfloat16", micro_batch_tokens=micro_batch_tokens)
    with numerics(trainer.runtime, trainer.world):
        session = trainer.session()

        def step():
            session.step(session.state)
            session.state.step += 1

        step()  # makes the moments
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in seen if "synchroniz" in str(w.message)]
    assert len(waits) == 1 and waits[0].filename.endswith("training/step.py"), [(w.filename, w.lineno) for w in waits]


class Greedy(NextToken):
    """A loss that asks for more memory than there is, in one step."""

    step = -1

    def __call__(self, model, *batch):
        self.step += 1
        if self.step == 5:
            torch.empty(2**52, dtype=torch.uint8, device=batch[0].device)
        return super().__call__(model, *batch)


def test_a_full_memory_is_told_with_what_to_lower_and_loses_nothing(device, made, curve):
    """The checkpoint before stays; with what the message advises the run ends as if nothing had happened."""
    trainer = made(device, "run", loss=Greedy(1024, 0.0), checkpoint_interval=2)
    words = (
        r"out of memory with 8 x 160 tokens in a forward pass: .*llocate.*Lower runtime.micro_batch_tokens \(now 1280\)"
    )
    with pytest.raises(FoundryError, match=f"{words} to 640, or set runtime.recompute: true, or lower runtime.loss_ch"):
        trainer.fit()
    assert trainer.checkpoints.steps() == [2, 4]
    assert json.loads((trainer.folder / "checkpoints/step-00000004/state.json").read_text())["step"] == 4
    resumed = curve(device, "run", micro_batch_tokens=640, recompute=True)[0]
    assert resumed == pytest.approx(curve(device, "whole")[0], rel=1e-3)


@pytest.mark.cuda
def test_memory_that_a_micro_batch_really_fills_is_told(gpu, made):
    """Not by one absurd request: a part of the device's memory is all that the process may have."""
    total = torch.cuda.get_device_properties(gpu).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (256 << 20)) / total)
    try:
        trainer = made(gpu, "run", dim=512, n_heads=8, n_kv_heads=8, ffn_dim=2048, n_layers=8, tokens_per_step=32 * 160)
        with pytest.raises(FoundryError, match=r"out of memory with 32 x 160 tokens.*Tried to allocate"):
            trainer.fit()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
