"""Number formats of weights: what they round to, that rows stay independent, and what is refused."""

import os
import subprocess
import sys

import pytest
import torch

from foundry.config import ConfigError, ModelConfig
from foundry.inference.formats import FORMATS, in_format, number_format, quantise_int4, quantise_int8
from foundry.inference.piece import Piece
from foundry.inference.runner import Runner
from foundry.models import MiniLLM

CPU = torch.device("cpu")
CFG = ModelConfig(
    vocab_size=96, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, max_seq_len=64, zero_init=False
)
has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_int8_rounds_to_the_nearest_of_255_steps() -> None:
    weight = torch.randn(24, 64)
    weight[3] = 0
    integers, scale = quantise_int8(weight)
    error = (integers.double() * scale.double()[:, None] - weight.double()).abs()
    largest = weight.abs().amax(1)
    # Half a step, and the last step of a scale that bfloat16 rounded down by at most 2^-8.
    assert bool((error <= (largest / 127 / 2 + largest / 256)[:, None] + 1e-12).all())
    assert error[3].max() == 0
    assert integers.unique().numel() > 100


def test_int4_rounds_to_the_nearest_of_16_steps_of_each_group() -> None:
    weight = torch.randn(32, 96) + 3  # an offset, which a symmetric format would waste its steps on
    weight[5, :32] = 2.5
    integers, scales = quantise_int4(weight)
    assert scales.shape == (3, 32, 2)
    assert (integers.min(), integers.max()) == (0, 15)
    scale, offset = scales.double().transpose(0, 1).repeat_interleave(32, 1).unbind(-1)
    error = ((integers - 8) * scale + offset - weight.double()).abs()
    groups = weight.unflatten(1, (3, 32))
    step = ((groups.amax(-1) - groups.amin(-1)) / 15).repeat_interleave(32, 1)
    assert bool((error <= step / 2 + 8 * step / 128 + 3 / 128).all())
    assert error[5, :32].max() < 2.5 / 256


@pytest.mark.parametrize("name", [n for n in FORMATS if n != "bfloat16" or has_bfloat16])
def test_a_product_is_that_of_the_rounded_weights(name: str) -> None:
    weight, x = torch.randn(48, 64), torch.randn(5, 64).to(FORMATS[name].activations)
    rounded = weight.to(FORMATS[name].activations).double()
    if name == "int8":
        integers, scale = quantise_int8(weight)
        rounded = integers.double() * scale.double()[:, None]
    if name == "int4":
        integers, scales = quantise_int4(weight)
        scale, offset = scales.double().transpose(0, 1).repeat_interleave(32, 1).unbind(-1)
        rounded = (integers - 8) * scale + offset
    given = weight.to(FORMATS[name].activations) if name in ("float32", "bfloat16") else weight
    exact, seen = x.double() @ rounded.T, FORMATS[name].pack(given)(x)
    assert seen.dtype == x.dtype
    assert (seen.double() - exact).abs().max() < (1e-5 if name == "float32" else 1e-2) * exact.abs().max()


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_row_does_not_depend_on_the_other_rows(name: str) -> None:
    torch.manual_seed(0)
    for outputs, inputs in ((1536, 512), (48, 64)):
        product = FORMATS[name].pack(torch.randn(outputs, inputs))
        x = torch.randn(70, inputs).bfloat16()
        whole = product(x)
        for n in (1, 2, 3, 4, 5, 8, 17, 33, 64):
            assert torch.equal(product(x[:n]), whole[:n]), n
            assert torch.equal(product(x[70 - n :]), whole[70 - n :]), n


@pytest.mark.parametrize("name", [n for n in FORMATS if n != "bfloat16" or has_bfloat16])
def test_the_engine_runs_a_model_in_every_format(name: str) -> None:
    torch.manual_seed(1)
    model = MiniLLM(CFG).eval()
    ids = list(range(3, 35))
    with torch.no_grad():
        exact = model(torch.tensor([ids]))[0][0]
    runner = Runner(*_runner_arguments(model, name))
    logits = runner.forward([Piece(0, 0, ids, True, len(ids))]).float()
    error = (logits - exact).abs().mean() / exact.std()
    low, high = {"float32": (0, 1e-5), "bfloat16": (1e-4, 0.03), "int8": (1e-4, 0.05), "int4": (1e-2, 0.3)}[name]
    assert low <= error < high


def _runner_arguments(model: MiniLLM, name: str):
    changed, pack = in_format(model, name)
    return changed, 1, pack


@pytest.mark.parametrize("change", [{"dim": 48, "n_heads": 4, "n_kv_heads": 4}, {"ffn_dim": 80}])
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_shapes_without_a_kernel_are_refused(name: str, change: dict) -> None:
    with pytest.raises(ConfigError, match="multiple of 32"):
        number_format(name, CFG.model_copy(update=change), CPU)


def test_outputs_without_a_kernel_are_refused_only_in_int4() -> None:
    cfg = CFG.model_copy(update={"vocab_size": 97})
    number_format("int8", cfg, CPU)
    with pytest.raises(ConfigError, match="the output head has 64 inputs and 97 outputs"):
        number_format("int4", cfg, CPU)


def test_formats_of_cpus_are_refused_on_gpus_and_unknown_ones_everywhere() -> None:
    number_format("bfloat16", CFG, torch.device("cuda"))
    for name in ("int8", "int4"):
        with pytest.raises(ConfigError, match="CPUs only"):
            number_format(name, CFG, torch.device("cuda"))
    with pytest.raises(ConfigError, match="unknown number format 'fp8'"):
        number_format("fp8", CFG, CPU)


def test_bfloat16_is_refused_where_onednn_has_no_kernel_for_it() -> None:
    code = (
        "import torch; from tests.inference.test_formats import CFG, CPU; from foundry.inference.formats import *\n"
        "try: number_format('bfloat16', CFG, CPU)\n"
        "except ConfigError as e: print(e)"
    )
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.startswith("weights in bfloat16 need a processor"), done.stderr
