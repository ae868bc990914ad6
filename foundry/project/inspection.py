"""The documents that one training step reads. Behind `foundry inspect`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from foundry.config import Config, ConfigError
from foundry.utils.files import read_json, state_dir


def lines(cfg: Config, root: Path, step: int, full: bool) -> Iterator[str]:
    """Describes the batch of a step, one line per document; batches that a rollback skipped are counted.

    Args:
        root: the project's folder.
        step: counted from 1.
        full: whether long texts are shown in full.

    Raises:
        ConfigError: if the training has no such step.
        DataError: if the shards are missing or damaged.
    """
    from foundry.data.tokens.loader import DataLoader
    from foundry.tokenizers import Tokenizer
    from foundry.training.skipped import SKIPPED, SkippedBatches

    context = cfg.model.max_seq_len
    rows = cfg.train.tokens_per_step // context
    loader = DataLoader(root / "data/shards", rows, context, cfg.seed, packing=cfg.train.packing)
    if not 1 <= step <= cfg.train.steps:
        raise ConfigError(f"--step must lie in 1 to {cfg.train.steps} (train.steps), got {step}")
    tokenizer = Tokenizer(root / "artifacts/tokenizer")
    config = root / "artifacts/model/config.json"
    facts = read_json(config, "facts of the model") if config.exists() else {}
    fingerprint = facts.get("fingerprint", "none")
    skipped = SkippedBatches(state_dir() / "train" / fingerprint / SKIPPED)
    batch = skipped.batch(step - 1)
    yield f"step {step} reads batch {batch}: {loader.batch_size} rows of {context} tokens"
    for part in loader.parts(batch):
        text = tokenizer.decode(part.tokens.tolist())
        shown = text if full or len(text) <= 100 else f"{text[:70]} … {text[-25:]}"
        place = f"{part.source} {part.doc_id} ({part.shard}), its tokens {part.begin} to {part.end}"
        yield f"row {part.row}: {place}: {shown!r}"
