"""tutorials/train.py at par with the package: tokenizer, batches, losses, bits per byte, greedy text; its resume."""

import itertools

import numpy as np
import pytest
import torch
from tutorial_files import tutorial

from foundry.config import ModelConfig, Runtime, Shard, TrainConfig
from foundry.data.tokens.loader import DataLoader
from foundry.data.tokens.shard_writer import write_shards
from foundry.inference import Generator
from foundry.models import MiniLLM
from foundry.training import Trainer

pytestmark = pytest.mark.numeric
CONFIG = {"vocab_size": 400, "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 96, "max_seq_len": 64}
CONFIG |= {"rope_theta": 500.0, "norm_eps": 1e-4, "tie_embeddings": True}
STEPS, EVERY = 40, 20


@pytest.fixture(scope="module")
def page():
    return tutorial("train")


@pytest.fixture(scope="module")
def recipe(page):
    return page.RECIPE | {"seed": 5, "steps": STEPS, "rows": 6, "warmup_steps": 4, "eval_tokens": 400}


@pytest.fixture(scope="module")
def shards(clean, tokenizer, tmp_path_factory):
    """Shards without weights: the tutorial reads each source once in an epoch."""
    out = tmp_path_factory.mktemp("shards") / "shards"
    write_shards(clean, tokenizer, Shard(tokens_per_shard=2048), out)
    return out


def train(page, clean, recipe, out, stop=None):
    """The curve of the tutorial up to step `stop`."""
    run = page.train(out, page.read_documents(clean), CONFIG, recipe, torch.float32, save_every=15, eval_every=EVERY)
    return list(itertools.islice(run, stop))


@pytest.fixture(scope="module")
def learnt(page, clean, recipe, tmp_path_factory):
    """(the folder that the tutorial wrote, its curve)."""
    out = tmp_path_factory.mktemp("tutorial")
    return out, train(page, clean, recipe, out)


@pytest.fixture(scope="module")
def package(shards, recipe, tmp_path_factory):
    """The result of the package's trainer of the same seed, data and steps."""
    same = {k: recipe[k] for k in ("steps", "lr", "matrix_lr", "weight_decay", "warmup_steps", "decay_fraction")}
    config = TrainConfig(
        **same,
        tokens_per_step=recipe["rows"] * CONFIG["max_seq_len"],
        eval_tokens=recipe["eval_tokens"],
        log_interval=1,
        eval_interval=EVERY,
    )
    runtime = Runtime(device="cpu", precision="float32", compile="never", threads=1)
    state = tmp_path_factory.mktemp("state")
    return Trainer.from_shards(
        ModelConfig(**CONFIG), config, shards, seed=recipe["seed"], runtime=runtime, state=state
    ).fit()


def worst(found, expected):
    return max(abs(a / b - 1) for a, b in zip(found, expected, strict=True))


def test_the_tokenizer_has_the_bytes_of_the_packages(learnt, tokenizer):
    assert (learnt[0] / "tokenizer.model").read_bytes() == tokenizer.path.read_bytes()


def test_each_batch_of_several_epochs_is_that_of_the_packages_loader(page, learnt, shards, recipe):
    rows, length, seed = recipe["rows"], CONFIG["max_seq_len"], recipe["seed"]
    loader, tokens = DataLoader(shards, rows, length, seed), np.load(learnt[0] / "tokens.npy")
    steps = 3 * loader.rows_per_epoch // rows
    assert len(tokens) == len(loader) and steps > 20
    for step in range(steps):
        ours, theirs = page.batch(tokens, step, rows, length, seed), loader.batch(step)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_first_weights_are_those_of_the_package_bit_by_bit(page):
    torch.manual_seed(3)
    ours = page.Model(CONFIG).state_dict()
    torch.manual_seed(3)
    theirs = MiniLLM(ModelConfig(**CONFIG)).state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(w, theirs[name]) for name, w in ours.items())


def test_losses_bits_per_byte_and_greedy_text_are_those_of_the_package(learnt, package, tokenizer):
    """To rounding: the package multiplies queries, keys and values in one product and takes Muon's matrices together.

    The first loss agrees to some roundings of float32 (6e-8 each): 1e-6. Training makes a difference grow: 1e-5 after
    five steps, 1e-4 after 40. Measured: 7e-8, 7e-7, 2e-6 on a Xeon with AMX; a wrong batch or rate gives 1e-2.
    """
    out, curve = learnt
    losses, expected = [loss for _, loss, _ in curve], [row["loss"] for row in package.curve]
    bits = [b for *_, b in curve if b is not None]
    expected_bits = [row["val_bits_per_byte"] for row in package.validations]
    model, sentencepiece = tutorial("generate").load(out)
    how = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    generator, texts = Generator(package.model, tokenizer, "cpu"), 0
    for prompt in ("The king", "A ", "water of the"):
        ours = list(tutorial("generate").generate(model, sentencepiece, prompt, 30, **how))
        theirs = list(generator.generate_ids(generator.prompt_ids(prompt), max_new_tokens=30, temperature=0.0))
        texts += ours == theirs
    print(
        f"\n| {STEPS} steps, float32 | tutorial | package | largest relative difference |\n| --- | --- | --- | --- |\n"
        f"| first loss | {losses[0]:.6f} | {expected[0]:.6f} | {worst(losses[:1], expected[:1]):.0e} |\n"
        f"| steps 1 to 5 | … {losses[4]:.6f} | … {expected[4]:.6f} | {worst(losses[:5], expected[:5]):.0e} |\n"
        f"| all losses | … {losses[-1]:.6f} | … {expected[-1]:.6f} | {worst(losses, expected):.0e} |\n"
        f"| bits per byte | {bits[-1]:.6f} | {expected_bits[-1]:.6f} | {worst(bits, expected_bits):.0e} |\n"
        f"| greedy texts of 30 tokens that are equal | {texts} | of 3 | |"
    )
    assert worst(losses[:1], expected[:1]) < 1e-6
    assert worst(losses[:5], expected[:5]) < 1e-5
    assert worst(losses, expected) < 1e-4
    assert len(bits) == STEPS // EVERY and worst(bits, expected_bits) < 1e-4
    assert texts == 3
    assert losses[-1] < 0.8 * losses[0]


def test_a_stopped_training_that_is_run_again_ends_with_the_same_bits(page, clean, recipe, learnt, tmp_path):
    first = train(page, clean, recipe, tmp_path, stop=22)  # the newest model.pt is of step 15
    assert torch.load(tmp_path / "model.pt", weights_only=True)["step"] == 15 and first[-1][0] == 22
    rest = train(page, clean, recipe, tmp_path)
    assert rest == learnt[1][15:]
    ours, theirs = (torch.load(folder / "model.pt", weights_only=True) for folder in (tmp_path, learnt[0]))
    assert ours["curve"] == theirs["curve"] == learnt[1]
    for part in ("model", "optimizer"):
        assert all(torch.equal(value, theirs[part][name]) for name, value in ours[part].items())
    assert train(page, clean, recipe, tmp_path) == []


def test_a_folder_of_another_training_is_refused(page, clean, recipe, learnt):
    with pytest.raises(SystemExit, match=r"another recipe: choose another --out"):
        train(page, clean, recipe | {"seed": 6}, learnt[0], stop=1)


def test_a_text_file_is_divided_into_documents_that_are_in_one_split_only(page, tmp_path):
    texts = [f"Document {i}\n\nIts text." for i in range(60)]
    (tmp_path / "my.txt").write_text("\n\n\n".join(texts), encoding="utf-8")
    found = page.read_documents(tmp_path / "my.txt")
    assert sorted(itertools.chain(*found.values())) == sorted(texts)
    assert {k: len(v) for k, v in found.items()} == {"train": 54, "val": 3, "test": 3}
