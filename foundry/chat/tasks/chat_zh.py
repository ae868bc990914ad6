"""The preset `chat-zh`: poems of the corpus, and riddles (xiehouyu) and idioms of the package jionlp.

Questions about poems are a test of memory for the poems of the training; those of the test split ask for poems that the
model has not read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from foundry.chat.tasks.base import Fits, Made, Question, Task, draw, made_from_nothing
from foundry.chat.tasks.corpus import Entry, read_entries
from foundry.chat.tasks.packages import JIONLP
from foundry.config import DataError

NEXT_LINE = Task(
    "next_line",
    (
        "“{line}”的下一句是什么？",
        "“{line}”后面是哪一句？",
        "请接下一句：{line}",
        "{line}的下一句是？",
        "背诵“{line}”的下一句。",
        "“{line}”，下一句呢？",
        "“{line}”之后是什么？",
        "请说出“{line}”的下一句。",
    ),
    "exact",
    most=6000,
)
AUTHOR = Task(
    "author",
    (
        "{poem}\n\n这首诗的作者是谁？",
        "谁写了这首诗？\n\n{poem}",
        "{poem}\n\n作者是谁？",
        "说出这首诗的作者。\n\n{poem}",
        "{poem}\n\n这是谁的诗？",
        "这首诗是谁写的？\n\n{poem}",
        "{poem}\n\n请问作者是谁？",
        "请说出这首诗的作者。\n\n{poem}",
    ),
    "exact",
    most=4000,
)
TITLE = Task(
    "title",
    (
        "{poem}\n\n这首诗的题目是什么？",
        "这首诗叫什么？\n\n{poem}",
        "{poem}\n\n题目是什么？",
        "说出这首诗的题目。\n\n{poem}",
        "{poem}\n\n这首诗的标题是？",
        "这首诗的标题是什么？\n\n{poem}",
        "{poem}\n\n请问题目是什么？",
        "请说出这首诗的题目。\n\n{poem}",
    ),
    "exact",
    most=1500,
)
RIDDLE = Task(
    "xiehouyu",
    (
        "歇后语“{riddle}”的下半句是什么？",
        "{riddle}——",
        "补全歇后语：{riddle}",
        "“{riddle}”的后半句是？",
        "请接歇后语：{riddle}",
        "歇后语：{riddle}，后面是什么？",
        "请补全这个歇后语：{riddle}",
        "“{riddle}”的下半句呢？",
    ),
    "one_of",
    most=8000,
)
IDIOM = Task(
    "idiom_chain",
    (
        "用“{idiom}”的最后一个字接一个成语。",
        "成语接龙：{idiom}",
        "接龙：{idiom}",
        "我说“{idiom}”，请你接一个成语。",
        "“{idiom}”，接下一个成语。",
        "请接成语：{idiom}",
        "请用成语接“{idiom}”。",
        "我们来成语接龙，我先说：{idiom}",
    ),
    "one_of",
    most=4000,
)
POEM_CHARS = 120
COMMON_IDIOM = 50  # how often an idiom occurs in the corpus of jionlp, at least
MOST_ANSWERS = 200  # idioms that begin with the same character


def chat_zh(clean: Path, fields: Path, licenses: dict[str, str], seed: int, fits: Fits) -> Made:
    """Makes the examples; the poems are those of sources that keep the fields author and paragraphs.

    Raises:
        DataError: if no source keeps these fields, or the package cannot be fetched.
    """
    made = Made()
    poems = [e for e in read_entries(clean, fields, licenses) if e.field("author") and e.items("paragraphs")]
    if not poems:
        raise DataError(
            "chat-zh is made from poems, and no source keeps the fields author and paragraphs: take the sources of "
            "presets/chinese-poetry.yaml"
        )
    made.add(NEXT_LINE, next_line(poems), seed, fits)
    made.add(AUTHOR, author(poems), seed, fits)
    made.add(TITLE, title(poems), seed, fits)
    dictionary = "jionlp/dictionary"
    riddles = JIONLP.member(f"{dictionary}/xiehouyu.zip", "xiehouyu.txt").decode()
    made.add(RIDDLE, xiehouyu(riddles), seed, fits)
    idioms = JIONLP.member(f"{dictionary}/chinese_idiom.zip", "chinese_idiom.txt").decode()
    made.add(IDIOM, idiom_chain(idioms), seed, fits)
    return made


def next_line(poems: list[Entry]) -> Iterator[Question]:
    """A line of a poem, and the one after it."""
    for poem in poems:
        lines = [x for x in re.split(r"[，。？！；、\s]+", "".join(poem.items("paragraphs"))) if x]
        if len(lines) > 1:
            at = draw(len(lines) - 1, "line", poem.origin.doc_id or "")
            answer = lines[at + 1]
            yield Question(lines[at], {"line": lines[at]}, answer, {"expected": answer}, poem.origin)


def author(poems: list[Entry]) -> Iterator[Question]:
    for poem in poems:
        answer = poem.field("author")
        yield Question(_key(poem), {"poem": _shown(poem)}, answer, {"expected": answer}, poem.origin)


def title(poems: list[Entry]) -> Iterator[Question]:
    for poem in poems:
        if answer := poem.field("title") or poem.field("rhythmic"):
            yield Question(_key(poem), {"poem": _shown(poem)}, answer, {"expected": answer}, poem.origin)


def _key(poem: Entry) -> str:
    return poem.origin.doc_id or ""


def _shown(poem: Entry) -> str:
    """The first lines of a poem."""
    shown = ""
    for line in poem.items("paragraphs"):
        if shown and len(shown) + len(line) > POEM_CHARS:
            break
        shown += line
    return shown[: 2 * POEM_CHARS]


def xiehouyu(text: str) -> Iterator[Question]:
    """Lines `riddle <tab> answer`; every answer of the same riddle is right."""
    answers: dict[str, list[str]] = defaultdict(list)
    for line in text.splitlines():
        riddle, _, answer = line.partition("\t")
        if riddle and answer.strip():
            answers[riddle.strip()].append(answer.strip())
    for riddle, right in answers.items():
        origin = made_from_nothing(f"xiehouyu {riddle}", "jionlp", JIONLP.license)
        yield Question(riddle, {"riddle": riddle}, right[0], {"expected": sorted(set(right))}, origin)


def idiom_chain(text: str) -> Iterator[Question]:
    """Lines `idiom <tab> frequency`; right is every idiom that begins with the last character."""
    frequency: dict[str, int] = {}
    for line in text.splitlines():
        idiom, _, count = line.partition("\t")
        if len(idiom) == 4 and count.strip().isdigit():
            frequency[idiom] = int(count)
    by_first: dict[str, list[str]] = defaultdict(list)
    for idiom in sorted(frequency, key=lambda i: (-frequency[i], i)):
        by_first[idiom[0]].append(idiom)
    for idiom, count in sorted(frequency.items()):
        right = [x for x in by_first.get(idiom[-1], ()) if x != idiom][:MOST_ANSWERS]
        if count >= COMMON_IDIOM and right:
            origin = made_from_nothing(f"idiom {idiom}", "jionlp", JIONLP.license)
            yield Question(idiom, {"idiom": idiom}, right[0], {"expected": right}, origin)
