"""What a number format costs is measured on the same text, against the model itself."""

import math

import numpy as np
import pytest
import torch

from foundry.export import export_gguf
from foundry.export.gguf_read import load_gguf
from foundry.export.quantised import HeldOutText, measure
from foundry.utils.bootstrap import Interval

KINDS = ("f32", "f16", "bf16", "q8_0", "q4_0")


@pytest.fixture(scope="module")
def files(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    for kind in KINDS:
        export_gguf(model, tokenizer, folder / f"m-{kind}.gguf", kind, "m")
    return {kind: folder / f"m-{kind}.gguf" for kind in KINDS}


@pytest.fixture(scope="module")
def text():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 400, (6, 40))
    targets = rng.integers(0, 400, (6, 40))
    targets[1, 30:] = -100
    numbers = np.array([0, 1, 1, 2, 3, 3])
    half = [(tokens[i : i + 3], targets[i : i + 3], numbers[i : i + 3]) for i in (0, 3)]
    return HeldOutText(half, np.array([90, 170, 80, 200]))


def test_the_figures_equal_a_plain_computation(files, model, text):
    found = measure({"q4_0": files["q4_0"]}, model, text)
    other = load_gguf(files["q4_0"], model.cfg)
    nats, same, seen = {"a": 0.0, "b": 0.0}, 0, 0
    with torch.inference_mode():
        for tokens, targets, _ in text.batches:
            both = {"a": model(torch.from_numpy(tokens))[0], "b": other(torch.from_numpy(tokens))[0]}
            for row, position in zip(*np.nonzero(targets != -100), strict=True):
                for name, logits in both.items():
                    log_probs = logits[row, position].double().log_softmax(-1)
                    nats[name] -= log_probs[targets[row, position]].item()
                same += int(both["a"][row, position].argmax() == both["b"][row, position].argmax())
                seen += 1
    bits = {k: v / math.log(2) / 540 for k, v in nats.items()}
    cost = found.formats["q4_0"]
    assert found.tokens == seen == 230 and found.bytes == 540 and found.documents == 4
    assert found.float.bits_per_byte == pytest.approx(bits["a"], abs=1e-4)
    assert cost.bits_per_byte == pytest.approx(bits["b"], abs=1e-4)
    assert cost.difference.value == pytest.approx(bits["b"] - bits["a"], abs=2e-5)
    assert cost.top1_agreement == round(same / seen, 4) and 0 < same < seen
    assert cost.difference.low <= cost.difference.value <= cost.difference.high
    assert cost.bytes == files["q4_0"].stat().st_size and cost.file == "m-q4_0.gguf"


def test_float32_costs_nothing_and_fewer_bits_cost_more(files, model, text):
    cost = measure(files, model, text).formats
    assert cost["f32"].difference == Interval(value=0.0, low=0.0, high=0.0) and cost["f32"].top1_agreement == 1
    off = {kind: abs(cost[kind].difference.value) for kind in KINDS}
    assert max(off["f16"], off["bf16"], off["q8_0"]) < off["q4_0"]
    sizes = [cost[kind].bytes for kind in ("f32", "f16", "q8_0", "q4_0")]
    assert sizes == sorted(sizes, reverse=True) and cost["q4_0"].top1_agreement < 1


def test_the_same_numbers_again(files, model, text):
    assert measure(files, model, text) == measure(files, model, text)
    assert model.training is False
