"""Questions about words and their letters, and about numbers of up to two digits.

Letters are separated by hyphens, because only then each is a token of its own. What takes more than one step is
answered with its steps: a small model cannot do them at once. The steps have no spaces, each of which would be a token.
"""

from __future__ import annotations

from collections.abc import Iterator

from foundry.chat.tasks.base import Question, Task, draw, made_from_nothing

SPELL = Task(
    "spell",
    (
        "Spell {word}.",
        "How do you spell {word}?",
        "Spell the word {word}.",
        "Write the letters of {word}.",
        "Please spell {word} letter by letter.",
        "What are the letters of {word}?",
        "Can you spell the word {word}?",
        "Spell {word} letter by letter.",
    ),
    "exact",
    most=4500,
)
REVERSE = Task(
    "reverse",
    (
        "Reverse {letters}.",
        "Write {letters} backwards.",
        "Reverse the letters {letters}.",
        "What is {letters} backwards?",
        "Put the letters {letters} in reverse order.",
        "Please reverse {letters}.",
        "Can you reverse {letters}?",
        "Write the letters {letters} backwards.",
    ),
    "exact",
    most=2000,
)
COUNT = Task(
    "count_letter",
    (
        "How many times is the letter {letter} in {word}?",
        "Count the letter {letter} in {word}.",
        "How often does {letter} occur in {word}?",
        "How many {letter} are in the word {word}?",
        "How many times does {letter} occur in {word}?",
        "Count how often {letter} is in {word}.",
        "How often is the letter {letter} in {word}?",
        "How many letters {letter} are in {word}?",
    ),
    "number",
    most=4500,
)
SORT = Task(
    "sort",
    (
        "Sort the letters {letters}.",
        "Put the letters {letters} in alphabetical order.",
        "Sort {letters} alphabetically.",
        "Sort {letters}.",
        "What is the alphabetical order of {letters}?",
        "Please sort the letters {letters}.",
        "Can you sort the letters {letters}?",
        "Write the letters {letters} in alphabetical order.",
    ),
    "exact",
    most=2000,
)
ADD = Task(
    "add",
    (
        "What is {a} + {b}?",
        "{a} + {b} = ?",
        "Add {a} and {b}.",
        "Calculate {a} + {b}.",
        "What is the sum of {a} and {b}?",
        "How much is {a} + {b}?",
        "Compute {a} + {b}.",
        "What do you get for {a} + {b}?",
    ),
    "number",
    most=3500,
)
SUBTRACT = Task(
    "subtract",
    (
        "What is {a} - {b}?",
        "{a} - {b} = ?",
        "Subtract {b} from {a}.",
        "Calculate {a} - {b}.",
        "What is the difference of {a} and {b}?",
        "How much is {a} - {b}?",
        "Compute {a} - {b}.",
        "What do you get for {a} - {b}?",
    ),
    "number",
    most=3000,
)
COMPARE = Task(
    "compare",
    (
        "Which is {more}, {a} or {b}?",
        "Which number is {more}, {a} or {b}?",
        "Which of {a} and {b} is {more}?",
        "What is {more}: {a} or {b}?",
        "Name the {more} number: {a} or {b}?",
        "Of {a} and {b}, which is {more}?",
        "Which one is {more}, {a} or {b}?",
        "Tell me which is {more}: {a} or {b}.",
    ),
    "exact",
    most=2000,
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def hyphenated(word: str) -> str:
    return "-".join(word)


def spell(words: list[str]) -> Iterator[Question]:
    """A word of the test may be spelt in the training of another task, never in this one."""
    for word in words:
        letters = hyphenated(word)
        yield Question(word, {"word": word}, letters, {"expected": letters}, made_from_nothing(f"spell {word}"))


def reverse(words: list[str]) -> Iterator[Question]:
    """The letters are given: the question is their order, not their spelling."""
    for word in words:
        answer = hyphenated(word[::-1])
        origin = made_from_nothing(f"reverse {word}")
        yield Question(word, {"letters": hyphenated(word)}, answer, {"expected": answer}, origin)


def count_letter(words: list[str]) -> Iterator[Question]:
    """A letter of the word in three of four questions, else one that may be missing."""
    for word in words:
        pool = word if draw(4, "inside", word) else LETTERS
        letter = pool[draw(len(pool), "letter", word)]
        number = word.count(letter)
        values, answer = {"letter": letter, "word": word}, f"{hyphenated(word)}: {number}"
        yield Question(word, values, answer, {"expected": number}, made_from_nothing(f"count {word}"))


def sort(words: list[str]) -> Iterator[Question]:
    """The letters of a word; two words of the same letters are one question."""
    for word in words:
        answer = hyphenated("".join(sorted(word)))
        origin = made_from_nothing(f"sort {answer}")
        yield Question(answer, {"letters": hyphenated(word)}, answer, {"expected": answer}, origin)


def add() -> Iterator[Question]:
    for a in range(100):
        for b in range(100):
            origin = made_from_nothing(f"add {min(a, b)} {max(a, b)}")  # both orders are in one split
            yield Question(f"{a} {b}", {"a": str(a), "b": str(b)}, _added(a, b), {"expected": a + b}, origin)


def _added(a: int, b: int) -> str:
    """The digits from the right, with the carry, as on paper."""
    if a < 10 and b < 10:
        return str(a + b)
    ones = a % 10 + b % 10
    tens = f"{a // 10}+{b // 10}" + "+1" * (ones > 9)
    return f"{a % 10}+{b % 10}={ones}, {tens}={(a + b) // 10}, so {a + b}"


def subtract() -> Iterator[Question]:
    for a in range(100):
        for b in range(a + 1):
            origin = made_from_nothing(f"subtract {a} {b}")
            yield Question(f"{a} {b}", {"a": str(a), "b": str(b)}, _subtracted(a, b), {"expected": a - b}, origin)


def _subtracted(a: int, b: int) -> str:
    if a < 10:
        return str(a - b)
    borrowed = a % 10 < b % 10
    ones, left = a % 10 + 10 * borrowed, a // 10 - borrowed
    return f"{ones}-{b % 10}={ones - b % 10}, {left}-{b // 10}={left - b // 10}, so {a - b}"


def compare() -> Iterator[Question]:
    for a in range(100):
        for b in range(a):
            key = f"{a} {b}"
            more = ("larger", "smaller")[draw(2, "more", key)]
            first, second = (a, b) if draw(2, "order", key) else (b, a)
            answer = str(max(a, b) if more == "larger" else min(a, b))
            values = {"a": str(first), "b": str(second), "more": more}
            yield Question(key, values, answer, {"expected": answer}, made_from_nothing(f"compare {key}"))
