"""What training promises, on a CPU and on a GPU by the same tests: `pytest -m cuda tests/cuda` runs those of the GPU.

They need torch 2.10 or newer, numpy, pyarrow, pydantic, pyyaml, safetensors, sentencepiece, psutil, tqdm and pytest,
and neither the internet nor a file that the repository does not contain.
"""

import sys

import pytest
import torch
from small_run import MODEL, TRAIN

from foundry.config import ModelConfig, Runtime, Shard, TrainConfig
from foundry.data.tokens.shard_writer import write_shards
from foundry.training import Trainer
from foundry.utils.device import get_device


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    """Where a test works. Without a CUDA device its second half is skipped, and proves nothing."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return get_device(request.param)


@pytest.fixture(scope="session")
def gpu():
    """Of a test that only a GPU can answer."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return get_device("cuda")


@pytest.fixture(autouse=True)
def compiled_anew():
    """Torch compiles one function eight times at most, and what it compiled keeps its model in memory."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(scope="session")
def shards(clean, tokenizer, tmp_path_factory):
    """As for all tests, but without the check of the clean text's schema: its library is not in the list above."""
    out = tmp_path_factory.mktemp("shards") / "shards"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("foundry.data.tokens.tokenize.check_documents", lambda *table: None)
        write_shards(clean, tokenizer, Shard(tokens_per_shard=2048, weights={"two": 2}), out)
    return out


@pytest.fixture
def made(shards, tmp_path):
    """A trainer on a device: made(device, a name for its state, key=value of the model, the recipe or `runtime`)."""

    def trainer(device, name, loss=None, **given):
        model = MODEL.model_copy(update={k: given.pop(k) for k in list(given) if k in ModelConfig.model_fields})
        train = TRAIN.model_copy(update={k: given.pop(k) for k in list(given) if k in TrainConfig.model_fields})
        options = {"precision": "float32", "compile": "never", "threads": 1, "checkpoint_interval": 1000, **given}
        runtime = Runtime(device=torch.device(device).type, **options)
        return Trainer.from_shards(model, train, shards, seed=3, runtime=runtime, state=tmp_path / name, loss=loss)

    return trainer


@pytest.fixture
def curve(made):
    """Trains on a device; returns (losses, weights on the CPU by name)."""

    def trained(device, name, **given):
        result = made(device, name, **given).fit()
        weights = {k: v.detach().cpu() for k, v in result.model.state_dict().items()}
        return [row["loss"] for row in result.curve], weights

    return trained
