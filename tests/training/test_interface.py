"""The Python interface: the same engine as the stage, from a text file to a trained model in a few lines."""

import random
import subprocess
import sys

import pytest
import torch

from foundry import DataLoader, MiniLLM, ModelConfig, TrainConfig, Trainer, get_preset_config, load_config
from foundry.config import CheckpointError, Config, ConfigError, DataError, Runtime
from foundry.config.presets import PRESETS
from foundry.config.profiles import profile_config, profile_names
from foundry.models.accounting import count_params

SIZES = {"small": 2e6, "medium": 10e6, "rtx5060": 70e6, "m4pro": 70e6}


@pytest.fixture
def book(tmp_path, monkeypatch):
    rng = random.Random(4)
    words = [
        "the",
        "of",
        "salt",
        "water",
        "oven",
        "river",
        "king",
        "city",
        "music",
        "theory",
        "cell",
        "star",
        "stir",
        "boil",
        "cut",
        "is",
    ]
    texts = [" ".join(rng.choices(words, k=45)).capitalize() + "." for _ in range(400)]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return path


def test_from_a_text_file_to_a_trained_model(book):
    loader = DataLoader(file_path=book, batch_size=4, block_size=32, device="cpu", vocab_size=400)
    x, y = loader.batch(0)
    assert x.shape == y.shape == (4, 32) and torch.equal(x[:, 1:], y[:, :-1])
    assert len(loader) == sum(len(t) for t in loader.shards.tokens) > 10_000
    assert loader.tokenizer.decode(loader.tokenizer.encode("The river king.")) == "The river king."
    model = MiniLLM(
        ModelConfig(
            vocab_size=loader.tokenizer.vocab_size,
            dim=32,
            n_layers=2,
            n_heads=2,
            n_kv_heads=2,
            ffn_dim=64,
            max_seq_len=32,
        )
    )
    config = TrainConfig(batch_size=4, learning_rate=5e-3, max_iters=60, eval_interval=20)
    assert (config.batch_size, config.lr, config.steps) == (4, 5e-3, 60)
    assert (config.learning_rate, config.max_iters) == (5e-3, 60)
    trainer = Trainer(model=model, train_config=config, data_loader=loader, device="cpu")
    before = trainer.evaluate()
    done = trainer.train()
    assert set(done) == {"train_losses", "val_losses", "elapsed_time", "steps_per_second"}
    assert done["train_losses"][-1] < done["train_losses"][0] - 1 and len(done["val_losses"]) == 3
    assert done["elapsed_time"] > 0 and done["steps_per_second"] > 0
    after = trainer.evaluate()
    assert after["val_loss"] < before["val_loss"] - 1 and after["val_loss"] == pytest.approx(
        done["val_losses"][-1], rel=1e-5
    )
    assert next(model.parameters()) is next(trainer.model.parameters())  # trained in place


def test_a_recipe_that_says_another_batch_than_the_loader_has_is_refused(book):
    loader = DataLoader(file_path=book, batch_size=8, block_size=32, vocab_size=400)
    cfg = ModelConfig(vocab_size=400, dim=32, n_layers=1, n_heads=2, n_kv_heads=2, ffn_dim=64, max_seq_len=32)
    for wrong, expected in (
        ({"batch_size": 4}, "batch_size 4 there, 8 of the loader"),
        ({"tokens_per_step": 512}, "tokens_per_step 512 there, 256 of the loader"),
        ({"packing": "document"}, "packing document there, cut of the loader"),
    ):
        with pytest.raises(ConfigError, match=expected):
            Trainer(cfg, TrainConfig(max_iters=5, **wrong), loader, "cpu")
    right = TrainConfig(max_iters=5, batch_size=8, tokens_per_step=256, packing="cut")
    prints = {Trainer(cfg, c, loader, "cpu").fingerprint for c in (right, TrainConfig(max_iters=5))}
    assert len(prints) == 1
    own = Trainer.from_shards(cfg, TrainConfig(max_iters=5, batch_size=4), loader.shards.folder, device="cpu")
    assert own.loader.batch_size == 4


def test_two_names_of_one_key_are_refused():
    for twice in ({"lr": 1e-3, "learning_rate": 1e-3}, {"steps": 60, "max_iters": 50}):
        with pytest.raises(ValueError, match="are two names of one key"):
            TrainConfig(**twice)


def test_a_checkpoint_written_by_hand_comes_back_and_another_runs_is_refused(book):
    loader = DataLoader(file_path=book, batch_size=4, block_size=32, vocab_size=400)
    config = TrainConfig(batch_size=4, max_iters=6, eval_interval=3)
    cfg = ModelConfig(vocab_size=400, dim=32, n_layers=1, n_heads=2, n_kv_heads=2, ffn_dim=64, max_seq_len=32)
    first = Trainer(cfg, config, loader, "cpu")
    first.train()
    first.save_checkpoint("mine")
    second = Trainer(cfg, config, loader, "cpu", state=book.parent / "elsewhere")
    second.load_checkpoint("mine")
    assert second.evaluate() == first.evaluate()
    other = Trainer(cfg, config.model_copy(update={"lr": 1e-4}), loader, "cpu", state=book.parent / "elsewhere")
    with pytest.raises(CheckpointError, match=r"train.lr: 0.003 there, 0.0001 now"):
        other.load_checkpoint("mine")


def test_first_weights_of_a_given_model_are_part_of_the_runs_identity(book):
    loader = DataLoader(file_path=book, batch_size=4, block_size=32, vocab_size=400)
    cfg = ModelConfig(vocab_size=400, dim=32, n_layers=1, n_heads=2, n_kv_heads=2, ffn_dim=64, max_seq_len=32)
    prints = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        prints.add(Trainer(MiniLLM(cfg), TrainConfig(max_iters=5), loader, "cpu").fingerprint)
    assert len(prints) == 2


def test_the_loader_keeps_what_it_made_and_follows_a_changed_file(book):
    first = DataLoader(file_path=book, batch_size=2, block_size=16)
    made = sorted((book.parent / "book.txt.foundry").iterdir())
    again = DataLoader(file_path=book, batch_size=2, block_size=16)
    assert sorted((book.parent / "book.txt.foundry").iterdir()) == made and torch.equal(
        first.batch(3)[0], again.batch(3)[0]
    )
    assert 300 < first.tokenizer.vocab_size < 4096  # as many pieces as the text allows
    book.write_text(book.read_text() + "\n\nAnd something new at the end of the old book.")
    DataLoader(file_path=book, batch_size=2, block_size=16)
    assert len(list((book.parent / "book.txt.foundry").iterdir())) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "has 0 characters"), (b"caf\xe9 " * 100, "is not UTF-8"), (b"short", "has 5 characters")],
)
def test_a_file_that_cannot_be_read_is_told(tmp_path, content, message):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        DataLoader(file_path=path, batch_size=2, block_size=16)
    with pytest.raises(DataError, match="does not exist"):
        DataLoader(file_path=tmp_path / "b.txt", batch_size=2, block_size=16)
    with pytest.raises(ValueError, match=r"either data \(shards\) or file_path"):
        DataLoader(batch_size=2, block_size=16)


def test_a_text_that_allows_no_tokenizer_is_told_with_the_largest_vocabulary(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n<|endoftext|>\n".join(["aa bb", "cc", "dd ee"]))
    with pytest.raises(
        DataError, match=r"allow a vocabulary of at most 2\d\d pieces, and at least 300 are needed"
    ) as e:
        DataLoader(file_path=path, batch_size=2, block_size=16)
    assert "bytes of training text" in str(e.value) and not list((tmp_path / "a.txt.foundry").iterdir())


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": 299}, "vocab_size"),
        ({"vocab_size": 10**6}, "largest possible is"),
        ({"block_size": 0}, "block_size"),
        ({"block_size": -1}, "block_size"),
        ({"seed": -1}, "seed"),
    ],
)
def test_an_argument_of_a_text_files_loader_that_cannot_be_is_named(book, arguments, name):
    with pytest.raises(ConfigError, match=name):
        DataLoader(file_path=book, **({"batch_size": 2, "block_size": 16} | arguments))


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_is_of_the_size_it_says_and_builds(name):
    model, train = get_preset_config(name)
    assert count_params(model) == pytest.approx(SIZES[name], rel=0.12)
    assert train.batch_size and train.steps > 500
    with torch.device("meta"):
        assert MiniLLM(model).get_num_params(non_embedding=False) == count_params(model)


@pytest.mark.parametrize("name", profile_names())
def test_each_profile_parses_plans_and_builds_on_the_meta_device(name):
    from foundry.training.plan import make_plan

    cfg = profile_config(name, "params.yaml")
    model, train = get_preset_config(name)
    assert (model, train) == (cfg.model.model_copy(update={}), cfg.train) or model.dim == cfg.model.dim
    plan = make_plan(cfg.model, cfg.train, 10**9)
    with torch.device("meta"):
        built = MiniLLM(cfg.model)
    assert sum(p.numel() for p in built.parameters()) == plan.params
    if name.startswith("gpu"):  # about 20 tokens a parameter (Hoffmann et al. 2022, arXiv:2203.15556)
        assert 15 < plan.tokens / plan.params < 30
    wanted = {"gpu-124m": 124e6, "gpu-1b": 1e9}.get(name)
    assert wanted is None or plan.params == pytest.approx(wanted, rel=0.1)


def test_a_yaml_file_with_model_and_training_is_a_pair(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "model: {dim: 64, n_heads: 2, n_kv_heads: 2}\ntraining: {batch_size: 4, learning_rate: 1.0e-3, max_iters: 50}\n"
    )
    model, train = load_config(path)
    assert (model.dim, train.batch_size, train.lr, train.steps) == (64, 4, 1e-3, 50)
    path.write_text("model: {dim: 65}\ntraining: {max_iters: 0}\noptimizer: {}\n")
    with pytest.raises(ConfigError, match="optimizer: unknown section"):
        load_config(path)
    path.write_text("model: {dim: 65}\ntraining: {max_iters: 0}\n")
    with pytest.raises(ConfigError, match="2 problems"):
        load_config(path)


def test_the_other_names_are_not_keys_of_params_yaml():
    from foundry.config import parse_config, read_yaml

    data = read_yaml("params.yaml")
    data["train"]["learning_rate"] = 1e-3
    with pytest.raises(ConfigError, match=r"train.learning_rate: unknown key"):
        parse_config(data)


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ConfigError, match="small, medium, rtx5060, m4pro, smoke, laptop"):
        get_preset_config("tiny")


def test_runtime_settings_reach_the_same_engine(book):
    loader = DataLoader(file_path=book, batch_size=4, block_size=32, vocab_size=400)
    cfg = ModelConfig(vocab_size=400, dim=32, n_layers=1, n_heads=2, n_kv_heads=2, ffn_dim=64, max_seq_len=32)
    trainer = Trainer(
        cfg, TrainConfig(max_iters=15), loader, runtime=Runtime(device="cpu", profile=True, tensorboard="board")
    )
    trainer.train()
    assert (trainer.folder / "profile/trace.json").stat().st_size > 1000
    assert "aten::" in (trainer.folder / "profile/summary.txt").read_text()
    (events,) = (book.parent / "board" / trainer.fingerprint).iterdir()
    assert events.name.startswith("events.out.tfevents")


@pytest.mark.slow
def test_a_run_with_a_profile_that_is_stopped_ends_in_order(book):
    """torch ends the process if a profile is stopped twice while it warms up or records."""
    code = """
import os, signal
from foundry import DataLoader, ModelConfig, TrainConfig, Trainer
from foundry.config import Runtime
from foundry.utils.events import Callback

class Stops(Callback):
    def on_step(self, event):
        if event.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

loader = DataLoader(file_path="book.txt", batch_size=4, block_size=32, vocab_size=400)
cfg = ModelConfig(vocab_size=400, dim=32, n_layers=1, n_heads=2, n_kv_heads=2, ffn_dim=64, max_seq_len=32)
runtime = Runtime(device="cpu", profile=True, tensorboard="board")
Trainer(cfg, TrainConfig(max_iters=15), loader, runtime=runtime, callbacks=[Stops()]).fit()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=book.parent)
    assert done.returncode == 128 + 15, done.stderr


def test_a_recipe_made_in_python_is_a_section_of_the_parameters():
    download = {"sources": [{"name": "one", "url": "file:corpus/x.txt"}]}
    cfg = Config(download=download, train=TrainConfig(learning_rate=1e-4, max_iters=200))
    assert (cfg.train.lr, cfg.train.steps) == (1e-4, 200)
    assert type(cfg.train) is type(Config(download=download).train)
