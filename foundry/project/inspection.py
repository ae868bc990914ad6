"""What one step of a training reads: documents, conversations, or its own answers. Behind `foundry inspect`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from foundry.config import Config, ConfigError
from foundry.utils.files import read_json, state_dir

PIECES = 200  # tokens of a conversation that are shown


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

    context = cfg.model.max_seq_len
    rows = cfg.train.tokens_per_step // context
    loader = DataLoader(root / "data/shards", rows, context, cfg.seed, packing=cfg.train.packing)
    if not 1 <= step <= cfg.train.steps:
        raise ConfigError(f"--step must lie in 1 to {cfg.train.steps} (train.steps), got {step}")
    tokenizer = Tokenizer(root / "artifacts/tokenizer")
    batch = _batch(root / "artifacts/model/config.json", step)
    yield f"step {step} reads batch {batch}: {loader.batch_size} rows of {context} tokens"
    for part in loader.parts(batch):
        text = tokenizer.decode(part.tokens.tolist())
        shown = text if full or len(text) <= 100 else f"{text[:70]} … {text[-25:]}"
        place = f"{part.source} {part.doc_id} ({part.shard}), its tokens {part.begin} to {part.end}"
        yield f"row {part.row}: {place}: {shown!r}"


def conversation_lines(cfg: Config, root: Path, step: int, full: bool, colours: bool) -> Iterator[str]:
    """Describes the batch of a step of fine-tuning: each conversation with what is learnt of it between ⟦ and ⟧.

    Args:
        root: the project's folder.
        step: counted from 1.
        full: whether long conversations and texts are shown in full.
        colours: whether the lines are for a terminal with colours.

    Raises:
        ConfigError: if the fine-tuning has no such step.
        DataError: if the chat data or the shards are missing or damaged.
    """
    from foundry.chat.examples import read_examples
    from foundry.chat.loader import ChatLoader
    from foundry.chat.pieces import on_terminal, pieces
    from foundry.tokenizers import Tokenizer

    if not 1 <= step <= cfg.sft.steps:
        raise ConfigError(f"--step must lie in 1 to {cfg.sft.steps} (sft.steps), got {step}")
    context = cfg.model.max_seq_len
    loader = ChatLoader(
        root / "data/chat",
        cfg.sft.rows_per_step,
        context,
        cfg.seed,
        pretraining=root / "data/shards",
        pretraining_share=cfg.sft.pretraining_share,
    )
    tokenizer, examples = Tokenizer(root / "artifacts/tokenizer"), read_examples(root / "data/chat", "train")
    batch = _batch(root / "artifacts/chat/sft/config.json", step)
    rows = list(loader.contents(batch))
    learnt = sum(int(e.learnt.sum()) for row in rows for e in row.examples)
    yield (
        f"step {step} reads batch {batch}: {loader.batch_size} rows of {context} tokens, "
        f"{sum(bool(row.text) for row in rows)} of them pre-training text; {sum(len(r.examples) for r in rows)} "
        f"conversations, of which {learnt:,} tokens are learnt (between ⟦ and ⟧)"
    )
    for row in rows:
        for e in row.examples:
            example = examples[e.example]
            origin = example.source if example.doc_id is None else f"{example.source} {example.doc_id}"
            yield f"row {row.row}: example {e.example}, task {e.task}, from {origin}:"
            some = list(pieces(tokenizer, e.tokens.tolist(), e.learnt.tolist()))
            if full or len(some) <= PIECES:
                yield on_terminal(some, colours)
            else:
                left = len(some) - PIECES
                yield on_terminal(some[: PIECES // 2], colours) + f" … {left} tokens … "
                yield on_terminal(some[-PIECES // 2 :], colours)
        for part in row.text:
            text = tokenizer.decode(part.tokens.tolist())
            shown = text if full or len(text) <= 100 else f"{text[:70]} … {text[-25:]}"
            place = f"{part.source} {part.doc_id} ({part.shard}), its tokens {part.begin} to {part.end}"
            yield f"row {row.row}: pre-training text {place}: {shown!r}"


def answer_lines(cfg: Config, root: Path, step: int, full: bool) -> Iterator[str]:
    """Describes the answers that a step of reinforcement learning drew, with their rewards and advantages.

    Args:
        root: the project's folder.
        step: counted from 1.
        full: whether long texts are shown in full.

    Raises:
        ConfigError: if the training has no such step.
        DataError: if the file of rollouts is missing or damaged.
    """
    from foundry.chat.rollout_lines import rollout_lines
    from foundry.chat.rollouts import ROLLOUTS, read_rollouts

    if not 1 <= step <= cfg.rl.steps:
        raise ConfigError(f"--step must lie in 1 to {cfg.rl.steps} (rl.steps), got {step}")
    batch = _batch(root / "artifacts/chat/rl/config.json", step)
    rollouts = read_rollouts(root / ROLLOUTS, batch)
    if not rollouts:
        raise ConfigError(f"{ROLLOUTS} has no answer of step {step}: it is of a run with fewer steps")
    return rollout_lines(step, rollouts, full)


def _batch(config: Path, step: int) -> int:
    """The number of the batch that a step read, counting those that the run skipped.

    Args:
        config: of the model that the run wrote; without it, no batch was skipped.
        step: counted from 1.
    """
    from foundry.training.skipped import SKIPPED, SkippedBatches

    facts = read_json(config, "facts of the model") if config.exists() else {}
    return SkippedBatches(state_dir() / "train" / facts.get("fingerprint", "none") / SKIPPED).batch(step - 1)
