"""tutorials/generate.py writes the text of the package's generator, with its cache and without."""

import random
import sys

import pytest
import torch
from tiny_chat import tiny_model
from tutorial_files import tutorial, write_folder

from foundry.inference import Generator

pytestmark = pytest.mark.numeric
OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
WAYS = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 1.0},
    "top-k": {"temperature": 0.8, "top_k": 20},
    "top-p": {"temperature": 1.3, "top_p": 0.7},
    "min-p": {"temperature": 1.0, "min_p": 0.1},
    "all": {"temperature": 0.9, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
}


@pytest.fixture(scope="module")
def page():
    return tutorial("generate")


def lively(**changes):
    """A model whose blocks say more than its embedding, and which is not the default architecture."""
    model = tiny_model(3, zero_init=False, rope_theta=500.0, norm_eps=1e-3, **changes)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("wo.weight", "w_down.weight")):
                weight.mul_(40)
        model.head_weight.mul_(8)
    return model


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def both(request, page, tokenizer, tmp_path_factory):
    """(the package's generator, the tutorial's model and tokenizer) of the same weights."""
    model = lively(tie_embeddings=request.param)
    folder = write_folder(tmp_path_factory.mktemp("tutorial"), model, tokenizer)
    return Generator(model, tokenizer, "cpu"), *page.load(folder)


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_the_same_seed_gives_the_text_of_the_package_past_the_end_of_the_context(both, page, how):
    generator, model, tokenizer = both
    size, prompt = 150, "The ancient king of"
    expected = list(generator.generate_ids(generator.prompt_ids(prompt), max_new_tokens=size, seed=11, **how))
    for cache in (True, False) if how == WAYS["greedy"] else (True,):
        found = list(page.generate(model, tokenizer, prompt, size, 11, cache, **OFF | how))
        assert found == expected
    assert len(expected) > model.config["max_seq_len"] and len(set(expected)) > 20


def test_the_stream_of_any_tokens_joins_to_the_text_of_the_package(page, both, tokenizer):
    """Half of the tokens are bytes, of which most form no character."""
    rng = random.Random(0)
    size = tokenizer.vocab_size
    texts = [rng.choices(range(2, size), k=40) for _ in range(50)]
    texts += [[rng.choice([rng.randrange(2, size), *tokenizer.encode("中é🙂")]) for _ in range(40)] for _ in range(100)]
    for ids in texts:
        ours, theirs = page.Stream(both[2]), tokenizer.stream()
        assert [ours.add(i) for i in ids] == [theirs.add(i) for i in ids]


def test_a_folder_without_a_model_and_an_architecture_that_it_cannot_compute_are_refused(page, tokenizer, tmp_path):
    with pytest.raises(SystemExit, match=r"run `python tutorials/train\.py --out"):
        page.load(tmp_path / "nothing")
    folder = write_folder(tmp_path / "windows", lively(sliding_window=8), tokenizer)
    with pytest.raises(SystemExit, match="sliding_window"):
        page.load(folder)


def test_the_command_prints_the_prompt_its_continuation_and_the_speed(page, tokenizer, tmp_path, monkeypatch, capsys):
    generator = Generator(lively(), tokenizer, "cpu")
    folder = write_folder(tmp_path, generator.model, tokenizer)
    command = ["generate.py", "The king", "--model", str(folder), "--max-new-tokens", "8"]
    monkeypatch.setattr(sys, "argv", command)
    page.main()
    shown = capsys.readouterr()
    text = generator.generate_text("The king", max_new_tokens=8, seed=0, temperature=0.8, top_p=0.95)
    assert shown.out == f"The king{text}\n"
    assert "with the cache" in shown.err
