"""Pairs of a better and a worse answer: sampled and verified, from a server's feedback, or from users' files.

Sampled pairs are on-policy: the fine-tuned model answers each prompt several times, a verifier scores the answers, and
at most one pair of a prompt is kept. Its two answers have like lengths, so that "the longer one is better" is no rule
that explains the pairs, which is what a model would learn first (Singhal et al. 2023, arXiv:2310.03716). An answer is a
function of (weights, seed, prompt, sample).

Every record is kept, dropped for a counted reason or quarantined.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundry.chat.answers import Answered, Asked, answer_all
from foundry.chat.example import Example, Split, Turn
from foundry.chat.formats import (
    FileAccount,
    Pair,
    Quarantined,
    Refused,
    check_order,
    content_of,
    format_of_record,
    pair_of,
    turns_of,
)
from foundry.chat.pairs import PairSplit, PreferencePair, prompt_hash
from foundry.chat.record_files import read_records
from foundry.chat.tasks.base import TEST_FRACTION, VAL_FRACTION, digest
from foundry.chat.verifiers import verify
from foundry.config import DataError
from foundry.config.chat import Preferences
from foundry.config.sampling import Sampling
from foundry.data.splits import split_of
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import Message, encode_chat
from foundry.utils.splitmix import key

PURPOSE = 0x7072  # keeps these seeds apart from those of orders, dropout and rollouts
LEAST_GAP = 0.1  # between the scores of a pair: smaller ones are noise of verifiers that grade likeness
HELD_OUT = 8  # one validation prompt is answered for so many training prompts


@dataclass
class TaskPairs:
    """Where the prompts of a task went: `prompts` = `pairs` + all of `dropped`.

    Attributes:
        dropped: by reason. `all_equal`: no two complete answers with scores that differ; `length`: such answers, but
            none of like length; `incomplete`: fewer than two answers ended and are the tokenizer's own ids of their
            text, which is what training on the text would see.
        answers, passed: how many were drawn, and how many the verifier accepts in full.
    """

    prompts: int = 0
    pairs: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    answers: int = 0
    passed: int = 0


@dataclass
class Gathered:
    """All pairs, and where everything else went.

    Attributes:
        tasks: of the sampled prompts.
        files: the account of each file.
        dropped: pairs of users by reason: `duplicate` (the same pair again), `contradiction` (both orders of one pair,
            of which neither is kept), `one_label` (an answer whose prompt has no answer with the other label),
            `test_prompt` (the prompt belongs to the test split).
        quarantined: records that are no pair.
    """

    pairs: list[PreferencePair] = field(default_factory=list)
    tasks: dict[str, TaskPairs] = field(default_factory=dict)
    files: list[FileAccount] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    quarantined: list[Quarantined] = field(default_factory=list)


# Sampled pairs.


def choose_prompts(examples: Iterable[Example], tasks: Sequence[str], most: int) -> list[Example]:
    """At most so many examples that have a verifier, of different prompts, evenly from all tasks and within each."""
    by_task: dict[str, dict[str, Example]] = {}
    for example in examples:
        if example.verifier is not None and (not tasks or example.task in tasks):
            by_task.setdefault(example.task, {}).setdefault(prompt_hash(example.prompt), example)
    chosen: list[Example] = []
    left = most
    for rest, (_, found) in enumerate(sorted(by_task.items(), key=lambda item: (len(item[1]), item[0]))):
        every = list(found.values())
        n = min(len(every), left // (len(by_task) - rest))
        chosen += [every[i * len(every) // n] for i in range(n)]
        left -= n
    return chosen


def sample_pairs(
    model: MiniLLM, tokenizer: Tokenizer, examples: Sequence[Example], params: Preferences, seed: int, found: Gathered
) -> None:
    """Answers the examples' prompts with a model on its device, and adds the pairs to `found`.

    Raises:
        VerifierError: if a user's verifier raises.
    """
    context = model.cfg.max_seq_len
    asked: list[Asked] = []
    fitting: list[Example] = []
    for example in examples:
        account = found.tasks.setdefault(example.task, TaskPairs())
        account.prompts += 1
        ids = tuple(encode_chat(tokenizer, [Message(t.role, t.content) for t in example.prompt]))
        room = min(params.max_new_tokens, context - len(ids))
        if room < 2:
            account.dropped["incomplete"] += 1
            continue
        fitting.append(example)
        number = int(prompt_hash(example.prompt)[:15], 16)
        seeds = [key(seed, PURPOSE, number, i) >> 1 for i in range(params.samples)]
        asked += [Asked(ids, room, s) for s in seeds]
    answers = answer_all(model, tokenizer, asked, Sampling(temperature=params.temperature))
    for i, example in enumerate(fitting):
        mine = answers[i * params.samples : (i + 1) * params.samples]
        account = found.tasks[example.task]
        pair = _sampled(tokenizer, example, mine, params.length_tolerance, account)
        if pair:
            found.pairs.append(pair)


def _sampled(
    tokenizer: Tokenizer, example: Example, answers: Sequence[Answered], tolerance: float, account: TaskPairs
) -> PreferencePair | None:
    scored: list[tuple[float, int, str]] = []
    for answer in answers:
        score = verify(example.verifier, example.arguments, answer.text).score if answer.ended else 0.0
        account.answers += 1
        account.passed += score >= 1
        if answer.ended and answer.text.strip() and _own_ids(tokenizer, answer):
            scored.append((score, len(answer.ids) + 1, answer.text))
    reason, best = matched(scored, tolerance)
    if best is None:
        account.dropped[reason] += 1
        return None
    account.pairs += 1
    better, worse = (scored[i] for i in best)
    return PreferencePair(
        prompt=example.prompt,
        chosen=(Turn("assistant", better[2]),),
        rejected=(Turn("assistant", worse[2]),),
        task=example.task,
        source="sampled",
        split="train" if example.split == "train" else "val",
        scores=(better[0], worse[0]),
    )


def _own_ids(tokenizer: Tokenizer, answer: Answered) -> bool:
    header = "assistant\n"
    return tuple(tokenizer.encode(header + answer.text)) == (*tokenizer.encode(header), *answer.ids)


def matched(answers: Sequence[tuple[float, int, str]], tolerance: float) -> tuple[str, tuple[int, int] | None]:
    """The best pair of answers to one prompt.

    Args:
        answers: (score, tokens, text) of each.
        tolerance: largest difference of the lengths, relative to the longer one.

    Returns:
        (why there is none, (number of the better one, of the worse one)): of those of like length the pair with the
        largest difference of scores, then of the nearest lengths, then the first.
    """
    if len(answers) < 2:
        return "incomplete", None
    differ = [
        (b[0] - a[0], abs(a[1] - b[1]), i, j)
        for i, a in enumerate(answers)
        for j, b in enumerate(answers)
        if a[0] - b[0] >= LEAST_GAP
    ]
    if not differ:
        return "all_equal", None
    near = [d for d in differ if d[1] <= tolerance * max(answers[d[2]][1], answers[d[3]][1])]
    if not near:
        return "length", None
    _, _, i, j = min(near)
    return "", (i, j)


# Pairs of users.


def read_pair_file(path: Path, shown: str, found: Gathered) -> list[Pair]:
    """The pairs of a file of preferences, paired (`chosen` and `rejected`) or not (`completion` and `label`).

    Answers with a label are paired with those of the other label to the same prompt, the first with the first; the
    shorter list begins again when it ends.

    Raises:
        DataError: if the file has another format or several, or no prompt has answers of both labels.
    """
    account = FileAccount(shown)
    found.files.append(account)
    pairs: list[Pair] = []
    labelled: dict[tuple[Turn, ...], dict[bool, list[tuple[Turn, ...]]]] = {}
    seen: Counter[str] = Counter()
    for raw in read_records(path, shown):
        account.records += 1
        try:
            if raw.value is None:
                raise Refused(raw.reason)
            format = format_of_record(raw.value)
            seen[format.name if format else "unknown"] += 1
            if format and format.name == "preference":
                pairs.append(pair_of(raw.value))
            elif format and format.name == "unpaired preference":
                prompt, answer, label = _labelled(raw.value)
                labelled.setdefault(prompt, {True: [], False: []})[label].append(answer)
            elif format is None:
                raise Refused("unknown_format")
            else:
                raise DataError(
                    f"{shown}, record {raw.row}, has the format {format.name!r}, which says of no answer that it is "
                    "better than another one: preferences have prompt, chosen and rejected, or prompt, completion and "
                    "label. Conversations to learn from belong to chat.sources"
                )
            account.kept += 1
        except Refused as e:
            account.quarantined[e.reason] += 1
            found.quarantined.append(Quarantined(shown, raw.row, e.reason, raw.shown))
    known = [name for name in seen if name != "unknown"]
    if len(known) > 1:
        counts = ", ".join(f"{n:,} {name}" for name, n in seen.most_common())
        raise DataError(f"{shown} has records of several formats: {counts}. Write one file for each format")
    account.format = known[0] if known else "none"
    both = {prompt: sides for prompt, sides in labelled.items() if sides[True] and sides[False]}
    if labelled and not both:
        raise DataError(
            f"no prompt of {shown} has both an answer with a true label and one with a false label, so nothing can be "
            "compared: add answers of the other label to the same prompts"
        )
    found.dropped["one_label"] += sum(
        len(sides[True]) + len(sides[False]) for prompt, sides in labelled.items() if prompt not in both
    )
    for prompt, sides in both.items():
        good, bad = sides[True], sides[False]
        for i in range(max(len(good), len(bad))):
            pairs.append(Pair(prompt, good[i % len(good)], bad[i % len(bad)]))
    return pairs


def _labelled(record: Mapping[str, Any]) -> tuple[tuple[Turn, ...], tuple[Turn, ...], bool]:
    label = record["label"]
    label = {"true": True, "false": False, "1": True, "0": False}.get(str(label).strip().lower())
    if label is None:
        raise Refused("label_is_not_true_or_false")
    prompt, answer = record["prompt"], record["completion"]
    if isinstance(prompt, str) != isinstance(answer, str):
        raise Refused("prompt_and_completion_of_two_kinds")
    if isinstance(prompt, str):
        sides = (Turn("user", content_of(prompt).rstrip()),), (Turn("assistant", content_of(answer).strip()),)
    else:
        sides = turns_of(prompt), turns_of(answer)
    check_order(sides[0], answered=False)
    check_order(sides[0] + sides[1])
    return *sides, label


def feedback_pair(prompt: str | Sequence[Mapping[str, Any]], chosen: str, rejected: str) -> Pair:
    """A pair of what people rated good and bad at a server.

    Raises:
        Refused: naming what is wrong with it.
    """
    if isinstance(prompt, str):
        raise Refused("no_conversation")  # of the completions API: a text that was continued, not a question
    sides = [{"role": "assistant", "content": text} for text in (chosen, rejected)]
    return pair_of({"prompt": list(prompt), "chosen": sides[:1], "rejected": sides[1:]})


def add_pairs(pairs: Iterable[Pair], task: str, source: str, splits: Mapping[str, Split], found: Gathered) -> None:
    """Adds pairs of users, which `without_conflicts` must still look through.

    Args:
        splits: of the prompts of the chat data, by their hash: a pair is in the split of its prompt. That of any other
            prompt is drawn by its hash, as the chat data draws it.
    """
    for pair in pairs:
        drawn = digest(*(part for t in pair.prompt for part in (t.role, " ".join(t.content.casefold().split()))))
        split = splits.get(prompt_hash(pair.prompt)) or split_of(drawn, VAL_FRACTION, TEST_FRACTION)
        if split == "test":
            found.dropped["test_prompt"] += 1
            continue
        kept: PairSplit = "train" if split == "train" else "val"
        found.pairs.append(PreferencePair(pair.prompt, pair.chosen, pair.rejected, task, source, kept))


def without_conflicts(found: Gathered) -> None:
    """Drops pairs that occur again, and all pairs of two answers that occur in both orders; counts both."""
    names = [(prompt_hash(p.prompt), prompt_hash(p.chosen), prompt_hash(p.rejected)) for p in found.pairs]
    every, kept = set(names), set()
    pairs = []
    for (prompt, chosen, rejected), pair in zip(names, found.pairs, strict=True):
        if (prompt, rejected, chosen) in every:
            found.dropped["contradiction"] += 1
        elif (prompt, chosen, rejected) in kept:
            found.dropped["duplicate"] += 1
        else:
            kept.add((prompt, chosen, rejected))
            pairs.append(pair)
    found.pairs = pairs


def check_pairs(found: Gathered) -> None:
    """
    Raises:
        DataError: if a split has no pair, with where everything went.
    """
    counts = Counter(p.split for p in found.pairs)
    if counts["train"] and counts["val"]:
        return
    reasons = sum((t.dropped for t in found.tasks.values()), Counter(found.dropped))
    reasons += Counter(q.reason for q in found.quarantined)
    went = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common()) or "there was no record"
    raise DataError(
        f"there are {counts['train']} training pairs and {counts['val']} held-out pairs, and both are needed ({went}): "
        "raise preferences.prompts, samples or length_tolerance, or bring more pairs (preferences.sources)"
    )
