"""The real routes over the real engine with a tiny model, and the official client."""

import pytest
import torch
from small_server import SmallServer, engine, listening, version_of

from foundry.config import ModelConfig
from foundry.models import MiniLLM


@pytest.fixture(scope="package")
def model():
    """Random in every tensor, so that its texts have all kinds of tokens."""
    generator = torch.Generator().manual_seed(0)
    shape = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 96, "max_seq_len": 96}
    model = MiniLLM(ModelConfig(vocab_size=400, **shape)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + (p.ndim == 1))
    return model


class Spy:
    """A backend that remembers the requests that it passes on."""

    def __init__(self, inner):
        self.inner, self.requests = inner, []

    def submit(self, request, listener):
        self.requests.append(request)
        return self.inner.submit(request, listener)

    def stats(self):
        return self.inner.stats()


@pytest.fixture(scope="package")
def backend(model, tokenizer):
    with engine(model, tokenizer) as worker:
        yield Spy(worker)


@pytest.fixture(scope="package")
def version(model, tokenizer, backend):
    return version_of(model, tokenizer, backend)


@pytest.fixture(scope="package")
def server(version):
    return SmallServer(version)


@pytest.fixture(scope="package")
def url(server):
    with listening(server) as url:
        yield url


@pytest.fixture(scope="package")
def client(url):
    import openai

    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def asked(backend):
    """The requests that reach the engine during a test."""
    backend.requests.clear()
    return backend.requests


@pytest.fixture(scope="module")
def open_page(tmp_path_factory):
    from devtools import browser

    with browser(tmp_path_factory.mktemp("browser")) as open_page:
        yield open_page
