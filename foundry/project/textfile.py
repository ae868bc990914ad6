"""From one text file to a model and its score, without a project. Behind the programs in `scripts/`.

The tokenizer and the shards are beside the text (`foundry.data.tokens.textfile`); a training has one folder with
`model`, `tokenizer`, and `state` with its checkpoints: the same call resumes it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from foundry.config import ConfigError, Runtime, read_yaml
from foundry.config.presets import Pair, parse_pair, preset_values

if TYPE_CHECKING:
    from foundry.models import MiniLLM
    from foundry.utils.bootstrap import Interval

MODEL, TOKENIZER, STATE = "model", "tokenizer", "state"  # in the folder of a training
OTHER_NAMES = {"max_iters": "steps", "learning_rate": "lr"}  # of the Python interface and of params.yaml
Device = Literal["auto", "cpu", "cuda", "mps"]
RESAMPLES, SEED = 1000, 1  # of the bootstrap


def recipe(preset: str | None, file: str | Path | None, changes: Mapping[str, Any]) -> Pair:
    """(architecture, recipe) of a preset or of a file with the sections `model` and `training`.

    Args:
        preset: its name; None without a file: `small`.
        changes: keys of `training` that replace those of the preset or file; None: keep.

    Raises:
        ConfigError: for both a preset and a file, an unknown preset, or listing every problem of the values.
    """
    if preset and file:
        raise ConfigError(f"give either a preset or a file, got preset {preset!r} and {file}")
    data = read_yaml(file) if file else preset_values(preset or "small")
    origin = str(file) if file else f"preset {preset or 'small'}"
    given = {k: v for k, v in changes.items() if v is not None}
    if given and isinstance(data, dict) and isinstance(data.get("training", {}), dict):
        replaced = {*given, *(OTHER_NAMES[k] for k in given if k in OTHER_NAMES)}
        kept = {k: v for k, v in data.get("training", {}).items() if k not in replaced}
        data = {**data, "training": kept | given}
    return parse_pair(data, origin)


def describe_splits(text: str | Path, vocab_size: int | None = None) -> list[str]:
    """Makes the tokenizer and the shards of a text file, unless they exist, and says what they contain.

    Raises:
        DataError, ConfigError: as `make_shards`.
    """
    from foundry.data.splits import SPLITS
    from foundry.data.tokens.shards import Shards
    from foundry.data.tokens.textfile import make_shards
    from foundry.tokenizers import Tokenizer

    folder = make_shards(text, vocab_size)
    tokenizer = Tokenizer(folder / TOKENIZER)
    lines = [f"{folder / TOKENIZER}: {tokenizer.vocab_size:,} pieces"]
    for split in SPLITS:
        entries = Shards(folder / "shards", split, tokenizer_sha256=tokenizer.sha256).entries
        documents, tokens, size = (sum(getattr(e, k) for e in entries) for k in ("documents", "tokens", "bytes"))
        lines.append(f"{split:5} {documents:,} documents, {tokens:,} tokens, {size:,} bytes")
    return lines


def train_on(
    text: str | Path,
    pair: Pair,
    out: str | Path,
    *,
    vocab_size: int | None = None,
    device: Device = "auto",
    seed: int = 1,
) -> dict[str, float]:
    """Trains a model on a text file; the same call resumes a training that was interrupted.

    Args:
        pair: the architecture, whose vocabulary becomes that of the tokenizer, and the recipe.
        out: the folder of the training.
        vocab_size: of the tokenizer; None: 4,096 pieces, or as many as the text allows.

    Returns:
        The last metrics of the validation, `val_loss` in nats per token and `val_bits_per_byte`.

    Raises:
        DataError, ConfigError, CheckpointError, LockError: as the loader and the trainer.
    """
    from foundry.data.tokens.textfile import DataLoader, make_shards
    from foundry.models import save_model
    from foundry.tokenizers.tokenizer import Tokenizer
    from foundry.training.trainer import Trainer
    from foundry.utils.files import atomic_dir

    model, training = pair
    loader = DataLoader(
        file_path=text,
        batch_size=training.batch_size or training.tokens_per_step // model.max_seq_len,
        block_size=model.max_seq_len,
        vocab_size=vocab_size,
        seed=seed,
        packing=training.packing,
    )
    tokenizer = make_shards(text, vocab_size) / TOKENIZER
    model = model.model_copy(update={"vocab_size": Tokenizer(tokenizer).vocab_size})
    trainer = Trainer(model, training, loader, runtime=Runtime(device=device), seed=seed, state=Path(out) / STATE)
    result = trainer.fit()
    save_model(Path(out) / MODEL, cast("MiniLLM", result.model), result.facts)
    with atomic_dir(Path(out) / TOKENIZER) as tmp:
        shutil.copytree(tokenizer, tmp, dirs_exist_ok=True)
    return result.validations[-1]


def score_on(text: str | Path, out: str | Path, *, vocab_size: int | None = None, device: Device = "auto") -> Interval:
    """Bits per byte on the test documents of a text file, with the 95 % interval over documents.

    Args:
        out: the folder of a training.
        vocab_size: as it was given to the training.

    Raises:
        DataError: if the model or the text is missing or damaged, or the text's tokenizer is not the model's.
    """
    from foundry.data.tokens.shards import Shards, read_clean
    from foundry.data.tokens.textfile import make_shards
    from foundry.evaluation.bits_per_byte import bits_per_byte_interval, score
    from foundry.evaluation.documents import held_out
    from foundry.models import load_model
    from foundry.tokenizers import Tokenizer
    from foundry.utils.device import get_device

    tokenizer, model = Tokenizer(Path(out) / TOKENIZER), load_model(Path(out) / MODEL).to(get_device(device))
    folder = make_shards(text, vocab_size)
    shards = Shards(folder / "shards", "test", tokenizer_sha256=tokenizer.sha256)
    rows = (row for part in read_clean(folder / "clean/test", ["doc_id", "text", "lang"]) for row in part)
    documents = held_out(shards, rows)
    scores = score(model, documents.tokens, model.cfg.max_seq_len)
    return bits_per_byte_interval(scores.nats, documents.n_bytes, RESAMPLES, SEED)
