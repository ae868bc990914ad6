"""The programs of the Python interface: from a text file to a model, its score, its text; and the files in configs/."""

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest

from foundry import get_preset_config, load_config
from foundry.config import ConfigError, ModelConfig, TrainConfig
from foundry.config.presets import PRESETS
from foundry.project.textfile import recipe

ROOT = Path(__file__).resolve().parents[2]
TINY = """
model: {vocab_size: 400, dim: 32, n_layers: 1, n_heads: 2, n_kv_heads: 2, ffn_dim: 64, max_seq_len: 32}
training: {batch_size: 4, learning_rate: 1.0e-2, max_iters: 30, eval_interval: 10}
"""
WORDS = "the of salt water oven river king city music theory cell star stir boil cut is".split()  # noqa: SIM905


def program(name, *args):
    """Runs `scripts/NAME.py` in this process."""
    spec = importlib.util.spec_from_file_location(f"entry_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(list(args))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder outside of the project, with a text and a configuration."""
    folder = tmp_path_factory.mktemp("elsewhere")
    rng = random.Random(4)
    texts = [" ".join(rng.choices(WORDS, k=45)).capitalize() + "." for _ in range(400)]
    (folder / "book.txt").write_text("\n\n".join(texts), encoding="utf-8")
    (folder / "tiny.yaml").write_text(TINY)
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return place


def test_from_a_text_file_to_text_by_four_programs_from_any_folder(here, capsys):
    program("prepare_data", "book.txt", "--vocab-size", "400")
    assert "tokenizer: 400 pieces" in (out := capsys.readouterr().out) and "test  " in out
    # The first 10 of 30 steps in a process of its own, as a user starts it.
    options = ["--config", "tiny.yaml", "--vocab-size", "400", "--device", "cpu"]
    command = [sys.executable, ROOT / "scripts/train.py", "book.txt", *options, "--max-iters", "10"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    assert "wrote out/model: validation " in done.stdout and (here / "out/tokenizer/tokenizer.model").exists()
    program("train", "book.txt", *options)
    more = float(capsys.readouterr().out.rsplit("validation ", 1)[1].split()[0])
    assert more < float(done.stdout.rsplit("validation ", 1)[1].split()[0])  # 30 steps are better than 10
    program("train", "book.txt", *options)  # a finished training is only reported
    assert "step 10:" not in (out := capsys.readouterr().out) and f"validation {more:.4f}" in out

    program("evaluate", "book.txt", "--vocab-size", "400", "--device", "cpu")
    score = capsys.readouterr().out.split()
    low, high = float(score[-3]), float(score[-1].rstrip(")"))
    assert low < float(score[1]) < high and abs(float(score[1]) - more) < 0.3  # other documents of the same kind

    program("generate", "The river", "--max-new-tokens", "5", "--temperature", "0", "--device", "cpu")
    first = capsys.readouterr().out
    assert first.startswith("The river") and len(first) > len("The river\n")
    program("generate", "The river", "--max-new-tokens", "5", "--temperature", "0", "--out", str(here / "out"))
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("prepare_data", ["no.txt"], "no.txt does not exist"),
        ("train", ["book.txt", "--preset", "tiny"], "unknown preset 'tiny'; presets are small"),
        ("train", ["book.txt", "--preset", "small", "--config", "tiny.yaml"], "either a preset or a file"),
        ("train", ["book.txt", "--max-iters", "0"], "training.steps: "),
        ("train", ["book.txt", "--config", "no.yaml"], "no.yaml does not exist"),
        ("evaluate", ["book.txt", "--out", "nowhere"], "nowhere"),
        ("generate", ["The", "--out", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_1(here, capsys, name, args, message):
    with pytest.raises(SystemExit) as ended:
        program(name, *args)
    err = capsys.readouterr().err
    assert ended.value.code == 1 and err.startswith("error: ") and message in err


@pytest.mark.parametrize("name", PRESETS)
def test_the_files_in_configs_are_the_presets(name):
    model, training = load_config(ROOT / f"configs/{name}.yaml")
    assert (model, training) == get_preset_config(name) and training.batch_size == get_preset_config(name)[1].batch_size
    assert {p.stem for p in (ROOT / "configs").glob("*.yaml")} == set(PRESETS)


def test_changes_replace_values_of_a_preset_and_follow_its_rules():
    model, training = recipe(None, None, {"max_iters": 50, "learning_rate": None})
    assert (training.max_iters, training.learning_rate) == (50, 5e-3)
    assert training.warmup_steps == 5 and model == get_preset_config("small")[0]  # a short run has a short warm-up
    assert recipe("laptop", None, {"max_iters": 500})[1].steps == 500  # which that profile calls `steps`
    with pytest.raises(ConfigError, match="warmup_steps"):
        recipe("laptop", None, {"max_iters": 2})


def test_names_of_the_original_programs_can_be_given_and_read():
    config = TrainConfig(max_iters=70, learning_rate=2e-3, batch_size=3)
    assert (config.max_iters, config.learning_rate, config.batch_size) == (70, 2e-3, 3)
    assert (config.steps, config.lr) == (70, 2e-3)
    assert ModelConfig(dim=64, n_heads=2, n_kv_heads=2).head_dim == 32
