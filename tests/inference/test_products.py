"""A row of a product does not depend on the other rows, with every set of kernels that oneDNN has here."""

import os
import subprocess
import sys

import pytest
import torch

from foundry.inference.products import pack

SHAPES = [(1536, 512), (512, 1408), (2816, 512), (96, 64), (13, 24)]  # outputs, inputs
COUNTS = [1, 2, 3, 5, 8, 16, 17, 32, 33, 64, 130]
ISAS = ["", "AVX512_CORE_BF16", "AVX512_CORE", "AVX2"]


def differing_counts(dtype: torch.dtype, shape: tuple[int, int]) -> list[int]:
    """Numbers of rows with which some row gets other bits than among `max(COUNTS)` rows."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(dtype)
    x = torch.randn(max(COUNTS), shape[1], generator=generator).to(dtype)
    product = pack(weight)
    whole = product(x)
    assert whole.unique().numel() > 10  # not all zeros
    return [n for n in COUNTS if any(not torch.equal(product(x[i : i + n]), whole[i : i + n]) for i in (0, 130 - n))]


def main() -> None:
    """What the child process of `test_rows…` prints: one line per type and shape that fails."""
    torch.set_grad_enabled(False)
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for dtype in (torch.float32, torch.bfloat16) if native else (torch.float32,):
            for shape in SHAPES:
                if counts := differing_counts(dtype, shape):
                    print(threads, dtype, shape, counts)


@pytest.mark.parametrize("isa", ISAS)
def test_rows_do_not_depend_on_the_number_of_rows(isa: str) -> None:
    env = {**os.environ} | ({"ONEDNN_MAX_CPU_ISA": isa} if isa else {})
    command = [sys.executable, "-c", "from tests.inference import test_products; test_products.main()"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_check_notices_a_product_that_depends_on_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_rows(weight):
        return lambda x: x @ weight.T + (len(x) > 16) * 1e-7

    monkeypatch.setattr(sys.modules[__name__], "pack", by_rows)
    assert 1 in differing_counts(torch.float32, (96, 64))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_product_is_that_of_the_weights_when_they_were_packed(dtype, tolerance, rows) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(24, 40, generator=generator).to(dtype)
    x = torch.randn(rows, 40, generator=generator).to(dtype)
    exact = x.double() @ weight.double().T
    product = pack(weight)
    weight.zero_()
    assert product(x).dtype == dtype
    torch.testing.assert_close(product(x).double(), exact, rtol=tolerance, atol=10 * tolerance)
