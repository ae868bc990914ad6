"""Chat data of presets and of users' files: each example is kept, dropped for a counted reason or quarantined."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from foundry.chat.example import Example, Split, Turn
from foundry.chat.formats import FileAccount, Kept, Quarantined, read_conversations
from foundry.chat.shards import places
from foundry.chat.tasks.base import TEST_FRACTION, VAL_FRACTION, Made, digest
from foundry.chat.tasks.presets import Corpus, make_preset
from foundry.chat.verifiers import load_verifiers
from foundry.config import ConfigError, DataError
from foundry.config.chat import Chat
from foundry.data.splits import SPLITS, split_of
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import encode_supervised
from foundry.utils.inputs import find_inputs


@dataclass
class Collected:
    """All examples, and where everything else went.

    Attributes:
        examples: by split.
        presets: what each preset made.
        files: the account of each file.
        dropped: conversations of the files by reason: `repeated` (the same turns), `too_long` (for the context),
            `not_encodable` (the tokenizer cannot keep prompt and answer apart).
        cut: conversations that lost their last turns to fit the context.
        surplus: training examples beyond `chat.max_examples`.
        quarantined: records that are no conversation.
    """

    examples: dict[Split, list[Example]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    presets: dict[str, Made] = field(default_factory=dict)
    files: list[FileAccount] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    surplus: int = 0
    quarantined: list[Quarantined] = field(default_factory=list)


class Fits:
    """Whether a conversation fits the context: the input tokens before its last learnt token, or all of a prompt."""

    def __init__(self, tokenizer: Tokenizer, context: int) -> None:
        self.tokenizer, self.context = tokenizer, context

    def __call__(self, turns: Sequence[Turn]) -> bool:
        encoded = encode_supervised(self.tokenizer, turns)
        return (places(encoded) or len(encoded.ids)) <= self.context


def collect(
    params: Chat, corpus: Corpus, root: Path, tokenizer: Tokenizer, context: int, seed: int, log: logging.Logger
) -> Collected:
    """Makes and reads all examples; a pure function of the corpus, the files and the parameters.

    Args:
        root: the project's folder, below which `chat.sources` are.
        context: of the model, in tokens.
        seed: of the draws.

    Raises:
        ConfigError: for an unknown preset, or a glob that matches nothing.
        DataError: if a file cannot be read or teaches no answers, more records than `chat.max_rejected` are refused, or
            no example is left to learn from.
    """
    for pattern in params.verifiers:
        for path in find_inputs(pattern, root, "chat.verifiers"):
            log.info("verifiers of %s: %s", path.relative_to(root), ", ".join(load_verifiers(path)))
    found, fits = Collected(), Fits(tokenizer, context)
    for name in params.presets:
        made = found.presets[name] = make_preset(name, corpus, seed, fits)
        for example in made.examples:
            found.examples[example.split].append(example)
    paths = dict.fromkeys(p for pattern in params.sources for p in find_inputs(pattern, root, "chat.sources"))
    seen: set[str] = set()
    for path in paths:
        _read(path, path.relative_to(root).as_posix(), params, fits, seen, found)
    _check(found, params)
    train = found.examples["train"]
    if params.max_examples and len(train) > params.max_examples:
        order = sorted(range(len(train)), key=lambda i: digest(seed, "max_examples", i))
        found.surplus = len(train) - params.max_examples
        found.examples["train"] = [train[i] for i in sorted(order[: params.max_examples])]
    return found


def _read(path: Path, shown: str, params: Chat, fits: Fits, seen: set[str], found: Collected) -> None:
    account = FileAccount(shown)
    found.files.append(account)
    for item in read_conversations(path, shown, account):
        if isinstance(item, Quarantined):
            found.quarantined.append(item)
            continue
        turns = item.conversation.turns
        name = digest(*(part for t in turns for part in (t.role, t.content)))
        if name in seen:
            found.dropped["repeated"] += 1
            continue
        seen.add(name)
        try:
            fitting = next((some for some in _shorter(turns, params.too_long) if fits(some)), None)
        except ConfigError:
            found.dropped["not_encodable"] += 1
            continue
        if fitting is None:
            found.dropped["too_long"] += 1
            continue
        found.cut += len(fitting) < len(turns)
        example = _example(item, fitting, shown)
        found.examples[example.split].append(example)


def _shorter(turns: tuple[Turn, ...], policy: str) -> Iterator[tuple[Turn, ...]]:
    """The conversation, and with `cut_turns` what is left without its last turns, as long as something is learnt."""
    yield turns
    if policy == "cut_turns":
        for n in range(len(turns) - 1, 0, -1):
            if turns[n - 1].role == "assistant" and any(t.train for t in turns[:n]):
                yield turns[:n]


def _example(item: Kept, turns: tuple[Turn, ...], shown: str) -> Example:
    """The split is drawn by the hash of what comes before the first answer: one prompt is in one split only."""
    first = next((i for i, t in enumerate(turns) if t.role == "assistant"), len(turns))
    drawn = digest(*(part for t in turns[:first] for part in (t.role, " ".join(t.content.casefold().split()))))
    whole = len(turns) == len(item.conversation.turns)
    return Example(
        messages=turns,
        task=item.task,
        source=shown,
        doc_id=None,
        wording=0,
        split=split_of(drawn, VAL_FRACTION, TEST_FRACTION),
        verifier=item.conversation.verifier if whole else None,
        arguments=item.conversation.arguments if whole else {},
    )


def _check(found: Collected, params: Chat) -> None:
    records = sum(a.records for a in found.files)
    refused = len(found.quarantined) + found.dropped.total()
    if records and refused > params.max_rejected * records:
        reasons = Counter(q.reason for q in found.quarantined) + found.dropped
        first = next((f"; the first is {q.file}, record {q.row}: {q.excerpt[:80]!r}" for q in found.quarantined), "")
        raise DataError(
            f"{refused:,} of {records:,} records of chat.sources were refused, more than chat.max_rejected "
            f"({params.max_rejected:.0%}): {', '.join(f'{n:,} {r}' for r, n in reasons.most_common())}{first}"
        )
    if not any(t.train for e in found.examples["train"] for t in e.messages):
        raise DataError("no example is left to learn from: add a preset or files (chat.presets, chat.sources)")
