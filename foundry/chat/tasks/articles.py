"""Questions about encyclopedia articles: documents with a title, and with a description or a topic."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from foundry.chat.example import Turn
from foundry.chat.tasks.base import Question, Task, draw
from foundry.chat.tasks.corpus import Entry, sentences

TOPIC_CHARS = 200  # of text whose topic is asked for: about 50 tokens
SENTENCE_CHARS = (20, 180)
NO_TOPIC = "Uncategorized"

DEFINE = Task(
    "define",
    (
        "{Who} is {name}?",
        "{Who} is {name}? Answer in a few words.",
        "Define {name}.",
        "Describe {name} in one phrase.",
        "In a few words, {who} is {name}?",
        "Give a short description of {name}.",
        "Can you briefly describe {name}?",
        "Tell me in a few words {who} {name} is.",
    ),
    None,
    most=1800,
)
TELL = Task(
    "tell",
    (
        "Tell me about {name}.",
        "Write one sentence about {name}.",
        "What do you know about {name}?",
        "Explain {name} in one sentence.",
        "Please tell me about {name}.",
        "I want to know more about {name}.",
        "Can you tell me something about {name}?",
        "Give me a sentence about {name}.",
    ),
    None,
    most=800,
)
TOPIC = Task(
    "topic",
    (
        "Which topic does this text belong to?\n\n{text}",
        "{text}\n\nWhich topic is this text about?",
        "Name the topic of this text: {text}",
        "{text}\n\nWhat is the topic?",
        "Classify this text by topic.\n\n{text}",
        "{text}\n\nChoose a topic for this text.",
        "What topic is this text about?\n\n{text}",
        "{text}\n\nName the topic of this text.",
    ),
    "exact",
    most=4000,
    held_out=300,
)
FOLLOW_UP = Task(
    "follow_up",
    (
        "Which topic is that?",
        "Which topic does it belong to?",
        "What is the topic of that?",
        "Name its topic.",
        "And the topic?",
        "Which topic is this about?",
        "What topic is that?",
        "Tell me its topic.",
    ),
    "exact",
    most=900,
)


@dataclass(frozen=True)
class Article:
    """An entry as the tasks use it.

    Attributes:
        names: how a question may name the subject: the title, and where the text shows it, the word with its article.
        first: the first sentence; empty if it is too short or too long to be an answer.
        start: whole sentences from the beginning, as many as are asked about.
    """

    entry: Entry
    names: tuple[str, ...]
    person: bool
    description: str
    topic: str
    first: str
    start: str


def articles(entries: list[Entry]) -> list[Article]:
    """The entries that are articles."""
    return [_article(e) for e in entries if e.field("title") and (e.field("description") or e.field("topic"))]


def _article(entry: Entry) -> Article:
    title, topic = entry.field("title"), entry.field("topic")
    body = entry.text.removeprefix(title).strip()
    every = sentences(body.split("\n")[0])
    start = every[0]
    for sentence in every[1:]:
        if len(start) + len(sentence) >= TOPIC_CHARS:
            break
        start += " " + sentence
    person = topic == "People" or (
        topic in ("", NO_TOPIC) and len(re.findall(r"\b(?:[Hh]e|[Ss]he|his|her)\b", body)) > 2
    )
    shortest, longest = SENTENCE_CHARS
    return Article(
        entry,
        _names(title, body),
        person,
        entry.field("description"),
        "" if topic == NO_TOPIC else topic,
        every[0] if shortest <= len(every[0]) <= longest else "",
        start[: 2 * TOPIC_CHARS],
    )


def _names(title: str, body: str) -> tuple[str, ...]:
    names, lower = [title], title[:1].lower() + title[1:]
    begins = re.match(rf"(an?|the) {re.escape(lower)} (?:is|are|was|were)\b", body, re.IGNORECASE)
    if begins and lower in body:
        names.append(f"{begins[1].lower()} {lower}")
    elif re.search(rf"(?<![.!?] )(?<!^)\b{re.escape(lower)}\b", body):
        names.append(lower)
    return tuple(names)


def _name(article: Article, task: str) -> str:
    return article.names[draw(len(article.names), "name", task, article.entry.origin.doc_id or "")]


def define(found: list[Article]) -> Iterator[Question]:
    for a in found:
        if a.description:
            who = "who" if a.person else "what"
            values = {"name": _name(a, "define"), "who": who, "Who": who.capitalize()}
            yield Question(a.entry.origin.doc_id or "", values, a.description, {}, a.entry.origin)


def tell(found: list[Article]) -> Iterator[Question]:
    for a in found:
        if a.first:
            yield Question(a.entry.origin.doc_id or "", {"name": _name(a, "tell")}, a.first, {}, a.entry.origin)


def topic(found: list[Article]) -> Iterator[Question]:
    for a in found:
        if a.topic:
            key = a.entry.origin.doc_id or ""
            yield Question(key, {"text": a.start}, a.topic, {"expected": a.topic}, a.entry.origin)


def follow_up(found: list[Article]) -> Iterator[Question]:
    """The topic of what was just told."""
    for a in found:
        if a.topic and a.first:
            key = a.entry.origin.doc_id or ""
            asked = TELL.wordings[draw(6, "before", key)].format(name=_name(a, "follow_up"))
            before = (Turn("user", asked), Turn("assistant", a.first))
            yield Question(key, {}, a.topic, {"expected": a.topic}, a.entry.origin, before)
