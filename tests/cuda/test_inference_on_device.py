"""What is done with a trained model: it is scored, generates and is exported on a GPU as on a CPU."""

import pytest
import torch
from small_run import MODEL

from foundry.data.tokens.shards import Shards, read_clean
from foundry.evaluation.bits_per_byte import bits_per_byte, score
from foundry.evaluation.documents import held_out
from foundry.evaluation.leak_probe import probe_leaks
from foundry.export.huggingface import export_huggingface, import_huggingface
from foundry.inference import Generator
from foundry.models import MiniLLM


@pytest.fixture(scope="module")
def model():
    """Weights far from their beginning, so that the first and the second choice of a token are far apart."""
    torch.manual_seed(0)
    model = MiniLLM(MODEL.model_copy(update={"zero_init": False}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model.eval()


@pytest.fixture
def there(model, device):
    yield model.to(device)
    model.to("cpu")


def test_the_scores_of_held_out_text_are_those_of_a_cpu_up_to_rounding(there, model, device, clean, shards):
    rows = [r for part in read_clean(clean / "test", ["doc_id", "text", "lang"]) for r in part]
    held = held_out(Shards(shards, "test"), rows)
    got = {kind: score(there, held.tokens, 80, getattr(torch, kind)) for kind in ("float32", "bfloat16")}
    exact = score(model.to("cpu"), held.tokens, 80)
    assert (got["float32"].tokens == exact.tokens).all() and got["float32"].nats == pytest.approx(exact.nats, rel=1e-4)
    value = bits_per_byte(exact.nats, held.n_bytes)
    assert bits_per_byte(got["float32"].nats, held.n_bytes) == pytest.approx(value, rel=1e-5)
    assert bits_per_byte(got["bfloat16"].nats, held.n_bytes) == pytest.approx(value, rel=0.02)


def test_no_token_sees_a_later_one_or_another_document(there, device, clean, shards):
    tokens = next(iter(Shards(shards, "test").documents()))[0]
    assert "no logit" in probe_leaks(there, tokens, True, 1).other_documents


def test_a_greedy_text_is_that_of_a_cpu_also_beyond_the_context(there, model, device, tokenizer):
    ids = tokenizer.encode("The salt", bos=True)
    got = list(Generator(there, tokenizer, device).generate_ids(ids, 220, temperature=0))
    assert got == list(Generator(model, tokenizer, "cpu").generate_ids(ids, 220, temperature=0))
    assert len(got) == 220 and len(set(got)) > 5


def test_a_seed_gives_one_text(there, device, tokenizer):
    generator = Generator(there, tokenizer, device)
    texts = [
        generator.generate_text(prompt="The", max_new_tokens=40, temperature=0.8, top_p=0.9, seed=s) for s in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_an_export_of_a_model_on_the_device_is_read_back_and_generates(there, device, tokenizer, tmp_path):
    """What the registered model does when it is loaded, without MLflow."""
    export_huggingface(there, tokenizer, tmp_path / "hf")
    read, pieces = import_huggingface(tmp_path / "hf")
    for a, b in zip(read.parameters(), there.parameters(), strict=True):
        assert torch.equal(a, b.cpu())
    options = {"prompt": "The salt", "max_new_tokens": 60, "temperature": 0.0}
    text = Generator(there, tokenizer, device).generate_text(**options)
    assert Generator(read, pieces, device).generate_text(**options) == text


@pytest.mark.cuda
def test_the_proof_of_an_export_takes_a_model_from_a_gpu(gpu, model, tokenizer, tmp_path):
    """It compares on the CPU; transformers and gguf are not on every machine with a GPU."""
    pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    from foundry.export.gguf_file import export_gguf
    from foundry.export.parity import prove

    export_huggingface(model.to(gpu), tokenizer, tmp_path / "hf")
    files = {"f32": tmp_path / "f32.gguf"}
    export_gguf(model, tokenizer, files["f32"], "f32", "test")
    proof = prove(tmp_path / "hf", files, model, tokenizer, ["The salt and the water."], ["The"], 1e-4)
    assert proof.logits.tokens > 0


@pytest.mark.cuda
def test_the_registered_model_generates_on_the_gpu_by_itself(gpu, model, tokenizer, tmp_path):
    """`device: auto` finds it."""
    generator = Generator(model, tokenizer, "auto")
    assert generator.device.type == "cuda" and model.tok_embeddings.weight.is_cuda
    assert generator.generate_text(prompt="The", max_new_tokens=20, seed=1)
    model.to("cpu")
