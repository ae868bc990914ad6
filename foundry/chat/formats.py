"""What users bring: the record formats of other projects, each converted once to turns.

A file has one format, which the keys of its records show. Every record becomes an example or is quarantined with its
place and a reason; nothing is repaired silently. What the model would learn from is never guessed: flags of other
projects that change the mask (`weight`, `loss_mask`, ...) are refused, `train: false` of a turn is what this one reads.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, NamedTuple

from foundry.chat.example import Arguments, Turn
from foundry.chat.record_files import RawRecord, read_records
from foundry.chat.verifiers import check_arguments
from foundry.config import DataError
from foundry.config.corpus import CONTROL_SYMBOLS

MASK_FLAGS = ("weight", "loss_mask", "loss", "trainable", "mask", "training")
TOOL_ROLES = ("tool", "function", "function_call", "observation", "tool_call", "tool_response", "ipython")
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_FINAL = re.compile(r"####\s*(-?[\d,.]*\d)\s*$")


class Refused(Exception):
    """A record that cannot become a conversation.

    Attributes:
        reason: of the quarantine, a word.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Conversation(NamedTuple):
    """What a record says.

    Attributes:
        turns: with an answer at the end, or without for a prompt that only a verifier knows the answer to.
        stripped: whether white space between prompt and completion was removed.
    """

    turns: tuple[Turn, ...]
    verifier: str | None = None
    arguments: Arguments = {}  # noqa: RUF012  # never changed
    stripped: bool = False


class Pair(NamedTuple):
    """Two continuations of one conversation."""

    prompt: tuple[Turn, ...]
    chosen: tuple[Turn, ...]
    rejected: tuple[Turn, ...]


@dataclass(frozen=True)
class Format:
    """A format of records.

    Attributes:
        keys: that every record has.
        others: keys that are read if they are there.
        convert: gives the conversation; None for records that teach no answers, with `hint` for the user.
    """

    name: str
    keys: tuple[str, ...]
    others: tuple[str, ...] = ()
    convert: Callable[[Mapping[str, Any]], Conversation] | None = None
    hint: str = ""


@dataclass
class FileAccount:
    """Where the records of a file went: `records` = those that were kept + all of `quarantined`.

    Attributes:
        ignored: keys that are not read, and how many records have them.
        stripped: records in which white space between prompt and completion was removed.
        markers: records that contain a control symbol, which stays text.
    """

    file: str
    format: str = ""
    records: int = 0
    kept: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    stripped: int = 0
    markers: int = 0


class Kept(NamedTuple):
    """A conversation and its place."""

    row: int
    conversation: Conversation
    task: str


class Quarantined(NamedTuple):
    """A record that was refused, with its place, the reason and its beginning."""

    file: str
    row: int
    reason: str
    excerpt: str


def content_of(value: Any) -> str:
    """The text of a turn: a string, or a list of text parts as in the OpenAI API."""
    if isinstance(value, list) and value and all(isinstance(p, dict) and p.get("type") == "text" for p in value):
        value = "".join(p["text"] if isinstance(p.get("text"), str) else "" for p in value)
    if not isinstance(value, str):
        raise Refused("content_is_not_text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refused("invalid_unicode") from None
    return value


def turns_of(value: Any, role_key: str = "role", content_key: str = "content") -> tuple[Turn, ...]:
    """The turns of a list of messages; empty system turns are left out.

    Raises:
        Refused: for what is not a list of messages with known roles and text.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):  # a column of a CSV file
        try:
            value = json.loads(value)
        except ValueError:
            raise Refused("broken_json") from None
    if not isinstance(value, list) or not value:
        raise Refused("no_turns")
    turns = []
    for message in value:
        if not isinstance(message, dict) or role_key not in message:
            raise Refused("no_role")
        role = message[role_key]
        if role in TOOL_ROLES or message.get("tool_calls"):
            raise Refused("tool_turn")
        role = SHAREGPT_ROLES.get(role, role) if role_key == "from" else role
        if role not in ("system", "user", "assistant"):
            raise Refused("unknown_role")
        if any(message.get(flag) is not None for flag in MASK_FLAGS):
            raise Refused("foreign_mask_flag")
        train = message.get("train")
        if train is not None and (not isinstance(train, bool) or (train and role != "assistant")):
            raise Refused("wrong_train_flag")
        content = content_of(message.get(content_key))
        if role != "system" or content.strip():
            turns.append(Turn(role, content, train))
    return tuple(turns)


def check_order(turns: tuple[Turn, ...], *, answered: bool = True) -> tuple[Turn, ...]:
    """The turns, if they are a conversation: a system turn or none, then user and assistant by turns.

    Args:
        answered: it ends with an answer; else it ends with a question.

    Raises:
        Refused: naming what is out of order or empty.
    """
    rest = turns[1:] if turns and turns[0].role == "system" else turns
    if not rest:
        raise Refused("no_turns")
    if rest[0].role != "user":
        raise Refused("system_turn_not_first" if rest[0].role == "system" else "begins_with_an_answer")
    for before, turn in pairwise(rest):
        if turn.role == "system":
            raise Refused("system_turn_not_first")
        if turn.role == before.role:
            raise Refused(f"two_{turn.role}_turns_in_a_row")
    for turn in rest:
        if not turn.content.strip():
            raise Refused("empty_answer" if turn.role == "assistant" else "empty_question")
    if (rest[-1].role == "assistant") != answered:
        raise Refused("no_answer_at_the_end" if answered else "no_question_at_the_end")
    return turns


def _learnt(turns: tuple[Turn, ...], **rest: Any) -> Conversation:
    if not any(turn.train for turn in check_order(turns)):
        raise Refused("no_trained_turn")
    return Conversation(turns, **rest)


def _system(record: Mapping[str, Any]) -> tuple[Turn, ...]:
    value = record.get("system")
    content = "" if value is None else content_of(value)
    return (Turn("system", content),) if content.strip() else ()


def _messages(record: Mapping[str, Any]) -> Conversation:
    return _learnt(turns_of(record["messages"]))


def _sharegpt(record: Mapping[str, Any]) -> Conversation:
    turns = turns_of(record["conversations"], "from", "value")
    system = _system(record)
    if system and turns and turns[0].role == "system":
        raise Refused("two_system_turns")
    return _learnt(system + turns)


def _alpaca(record: Mapping[str, Any]) -> Conversation:
    turns = list(_system(record))
    history = record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(x, list) and len(x) == 2 for x in history):
        raise Refused("history_is_not_pairs")
    for question, answer in history:
        turns += [Turn("user", content_of(question)), Turn("assistant", content_of(answer))]
    asked, given = content_of(record["instruction"]), content_of(record.get("input") or "")
    turns += [Turn("user", f"{asked}\n{given}" if given else asked), Turn("assistant", content_of(record["output"]))]
    return _learnt(tuple(turns))


def _sides(prompt: Any, completion: Any) -> tuple[tuple[Turn, ...], tuple[Turn, ...], bool]:
    """(prompt, completion, whether white space at their border was removed), of two texts or two lists of messages."""
    if isinstance(prompt, str) != isinstance(completion, str):
        raise Refused("prompt_and_completion_of_two_kinds")
    if not isinstance(prompt, str):
        return turns_of(prompt), turns_of(completion), False
    asked, answer = content_of(prompt), content_of(completion)
    bare = asked.rstrip(), answer.strip()
    return (Turn("user", bare[0]),), (Turn("assistant", bare[1]),), bare != (asked, answer)


def _prompt_completion(record: Mapping[str, Any]) -> Conversation:
    prompt, completion, stripped = _sides(record["prompt"], record["completion"])
    quiet = tuple(Turn(t.role, t.content, False) for t in prompt)  # only the completion is learnt
    return _learnt(quiet + completion, stripped=stripped)


def _prompt_of(value: Any) -> tuple[Turn, ...]:
    return check_order(
        (Turn("user", content_of(value)),) if isinstance(value, str) else turns_of(value), answered=False
    )


def _arguments(record: Mapping[str, Any]) -> tuple[str, Arguments]:
    verifier, arguments = record.get("verifier"), record.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise Refused("arguments_are_not_an_object") from None
    if not isinstance(verifier, str):
        raise Refused("verifier_is_not_a_name")
    if not isinstance(arguments, dict):
        raise Refused("arguments_are_not_an_object")
    try:
        check_arguments(verifier, arguments)
    except DataError:
        raise Refused("verifier_does_not_take_this") from None
    return verifier, arguments


def _verified(record: Mapping[str, Any]) -> Conversation:
    prompt = _prompt_of(record["prompt"])
    answer = record.get("answer")
    if "verifier" in record:
        verifier, arguments = _arguments(record)
    else:
        verifier, arguments = "exact", {"expected": content_of(answer)}
    if answer is None:
        return Conversation(prompt, verifier, arguments)
    return _learnt((*prompt, Turn("assistant", content_of(answer))), verifier=verifier, arguments=arguments)


def _question_answer(record: Mapping[str, Any]) -> Conversation:
    """GSM8K, whose answers end in `####` and a number; entries of reasoning-gym, which know their data set."""
    question, answer = content_of(record["question"]), content_of(record["answer"])
    turns = (Turn("user", question), Turn("assistant", answer))
    metadata = record.get("metadata")
    if isinstance(metadata, dict) and isinstance(name := metadata.get("source_dataset"), str):
        return _learnt(turns, verifier=f"gym:{name}", arguments={"entry": json.dumps(dict(record), sort_keys=True)})
    if found := _FINAL.search(answer):
        return _learnt(turns, verifier="number", arguments={"expected": found[1].replace(",", "")})
    return _learnt(turns, verifier="exact", arguments={"expected": answer})


def _evals(record: Mapping[str, Any]) -> Conversation:
    ideal = record["ideal"]
    ideal = [ideal] if isinstance(ideal, str) else ideal
    if not isinstance(ideal, list) or not ideal or not all(isinstance(x, str) for x in ideal):
        raise Refused("ideal_is_not_text")
    return Conversation(_prompt_of(record["input"]), "one_of", {"expected": ideal})


FORMATS = (  # the first whose keys a record has
    Format("messages", ("messages",), ("task",), _messages),
    Format("sharegpt", ("conversations",), ("system", "task"), _sharegpt),
    Format(
        "preference",
        ("chosen", "rejected"),
        hint="pairs of a better and a worse answer are no conversations to learn from: name the file in "
        "preferences.sources",
    ),
    Format(
        "unpaired preference",
        ("prompt", "completion", "label"),
        hint="answers with a label are no conversations to learn from: pair those of one prompt as prompt, chosen and "
        "rejected, and name the file in preferences.sources; or keep those with a true label, without the key",
    ),
    Format("prompt and completion", ("prompt", "completion"), ("task",), _prompt_completion),
    Format("verified", ("prompt", "verifier"), ("answer", "arguments", "task"), _verified),
    Format("verified", ("prompt", "answer"), ("task",), _verified),
    Format("question and answer", ("question", "answer"), ("metadata", "task"), _question_answer),
    Format("evals", ("input", "ideal"), ("task",), _evals),
    Format("alpaca", ("instruction", "output"), ("input", "system", "history", "task"), _alpaca),
    Format(
        "plain text",
        ("text",),
        hint="plain text is for continued pre-training, not for fine-tuning: name it in download.sources",
    ),
)


def format_of_record(record: Mapping[str, Any]) -> Format | None:
    """The format that the keys show; None for no known one."""
    return next((f for f in FORMATS if all(key in record for key in f.keys)), None)


def pair_of(record: Mapping[str, Any]) -> Pair:
    """The pair of a preference record: `prompt`, `chosen`, `rejected`, or two conversations with a common beginning.

    The common beginning is found by turns, never by characters.

    Raises:
        Refused: naming what is wrong; two equal sides among it.
    """
    chosen, rejected = record["chosen"], record["rejected"]
    if "prompt" in record:
        prompt, better, _ = _sides(record["prompt"], chosen)
        _, worse, _ = _sides(record["prompt"], rejected)
        if better[: len(prompt)] == prompt and worse[: len(prompt)] == prompt and len(better) > len(prompt):
            better, worse = better[len(prompt) :], worse[len(prompt) :]  # whole conversations beside their prompt
    else:
        if isinstance(chosen, str) or isinstance(rejected, str):
            raise Refused("no_prompt")
        better, worse = turns_of(chosen), turns_of(rejected)
        n = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(better, worse, strict=False)))
        prompt, better, worse = better[:n], better[n:], worse[n:]
    if better == worse:
        raise Refused("equal_sides")
    if not better or not worse:
        raise Refused("empty_side")
    check_order(prompt, answered=False)
    for side in (better, worse):
        check_order(prompt + side)
    return Pair(prompt, better, worse)


def read_conversations(path: Path, shown: str, account: FileAccount) -> Iterator[Kept | Quarantined]:
    """The conversations of a file, and what was refused, in order; `account` counts them.

    Raises:
        DataError: if the file has records of several formats, of one that teaches no answers, or of none.
    """
    seen: Counter[str] = Counter()
    keys: Counter[str] = Counter()
    for raw in read_records(path, shown):
        account.records += 1
        format = format_of_record(raw.value) if raw.value is not None else None
        if raw.value is not None:
            seen[format.name if format else "unknown"] += 1
            keys.update(raw.value.keys())
        if format and format.convert is None:
            raise DataError(f"{shown} has the format {format.name!r} (record {raw.row}): {format.hint}")
        if len(set(seen) - {"unknown"}) > 1:
            continue  # only counted for the message below
        try:
            kept = _convert(raw, format, Path(shown).name.split(".")[0], account)
        except Refused as e:
            account.quarantined[e.reason] += 1
            yield Quarantined(shown, raw.row, e.reason, raw.shown)
            continue
        account.kept += 1
        yield kept
    known = [name for name in seen if name != "unknown"]
    counts = ", ".join(f"{n:,} {name}" for name, n in seen.most_common())
    if len(known) > 1:
        raise DataError(f"{shown} has records of several formats: {counts}. Write one file for each format")
    if account.records and not known:
        names = ", ".join(f"{f.name} ({', '.join(f.keys)})" for f in FORMATS)
        raise DataError(
            f"{shown} has no record of a known format; the keys of its records are "
            f"{', '.join(k for k, _ in keys.most_common(12)) or 'none'}; known are {names}"
        )
    account.format = known[0] if known else "none"


def _convert(raw: RawRecord, format: Format | None, stem: str, account: FileAccount) -> Kept:
    if raw.value is None:
        raise Refused(raw.reason)
    if format is None or format.convert is None:
        raise Refused("unknown_format")
    conversation = format.convert(raw.value)
    account.ignored.update(k for k in raw.value if k not in format.keys and k not in format.others)
    account.stripped += conversation.stripped
    account.markers += any(s in t.content for t in conversation.turns for s in CONTROL_SYMBOLS)
    task = raw.value.get("task")
    return Kept(raw.row, conversation, task if isinstance(task, str) and task.strip() else stem)
