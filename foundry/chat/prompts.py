"""The held-out prompts that models are asked, and the reasons to refuse them.

A number about answers is worth nothing if the prompt, or the document that it was made from, was in the training
(mistakes 26 and 30 of the research page): such data end in an error, not in a good score.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from foundry.chat.example import Example
from foundry.config import DataError
from foundry.config.chat import ChatEvaluate
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import Message, encode_chat
from foundry.utils.files import sha256_json

SPARE = 8  # tokens that an answer may have beyond one and a half times the longest reference answer of its task
FOREIGN_WORDS = 3  # an answer of fewer words may be right in several tasks


@dataclass(frozen=True)
class HeldOutPrompt:
    """A conversation up to the answer that a model is asked for.

    Attributes:
        key: hash of the conversation up to the answer.
        ids: of that conversation; they end where the answer begins.
        seen: whether the training had this wording of the task.
        max_tokens: of the answer.
    """

    example: Example
    key: str
    ids: tuple[int, ...]
    seen: bool
    max_tokens: int

    @property
    def unit(self) -> str:
        """What the bootstrap draws: the document, or the prompt itself."""
        return self.example.doc_id or self.key

    @property
    def reference(self) -> str | None:
        """The answer in the data; None if it has none."""
        return self.example.answer


@dataclass(frozen=True)
class Training:
    """What the training data say about test prompts.

    Attributes:
        wordings: those of each task.
        prompts: keys of their conversations.
        doc_ids: of the documents that they were made from.
        answers: {answer of at least `FOREIGN_WORDS` words: tasks that have it}.
    """

    wordings: frozenset[tuple[str, int]]
    prompts: frozenset[str]
    doc_ids: frozenset[str]
    answers: dict[str, frozenset[str]]

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Training:
        wordings, prompts, doc_ids = set(), set(), set()
        answers: dict[str, set[str]] = {}
        for e in examples:
            wordings.add((e.task, e.wording))
            prompts.add(_key(e))
            doc_ids |= {e.doc_id} - {None}
            for turn in e.messages:
                if turn.role == "assistant" and len(turn.content.split()) >= FOREIGN_WORDS:
                    answers.setdefault(turn.content.strip(), set()).add(e.task)
        held = {text: frozenset(tasks) for text, tasks in answers.items()}
        return cls(frozenset(wordings), frozenset(prompts), frozenset(doc_ids), held)

    def foreign(self, task: str, answer: str) -> bool:
        """Whether an answer is, word for word, one that only other tasks have."""
        tasks = self.answers.get(answer.strip())
        return tasks is not None and task not in tasks


def held_out_prompts(
    examples: Sequence[Example], training: Training, tokenizer: Tokenizer, context: int, params: ChatEvaluate
) -> list[HeldOutPrompt]:
    """The prompts of a test split, in the order of their keys.

    Of each task, those with the smallest keys are taken: a choice that depends on the texts only. An answer may have
    one and a half times as many tokens as the longest reference answer of its task and `SPARE` more, as far as
    `chat_evaluate.max_new_tokens` and the context allow.

    Args:
        context: of the models, in tokens.

    Raises:
        DataError: if there is no example, one is not of the test split, a prompt or its document was in the training,
            or no prompt leaves room for an answer.
    """
    if not examples:
        raise DataError("the test split of data/chat contains no example: give it a larger share, or add examples")
    if wrong := [e for e in examples if e.split != "test"]:
        raise DataError(
            f"{len(wrong)} of {len(examples)} examples are of the split {wrong[0].split!r}: only answers to test "
            "prompts say what a model has learnt"
        )
    by_task: dict[str, dict[str, Example]] = {}
    for e in examples:
        by_task.setdefault(e.task, {}).setdefault(_key(e), e)
    _check_apart(by_task, training)
    found = []
    for task, prompts in by_task.items():
        chosen = sorted(prompts.items())[: params.prompts_per_task]
        longest = max((len(tokenizer.encode(r)) for _, e in chosen if (r := e.answer)), default=context)
        for key, e in chosen:
            ids = tuple(encode_chat(tokenizer, _messages(e)))
            room = min(longest * 3 // 2 + SPARE, params.max_new_tokens, context - len(ids))
            if room > 1:  # one token and the end symbol
                found.append(HeldOutPrompt(e, key, ids, (task, e.wording) in training.wordings, room))
    if not found:
        raise DataError(f"no test prompt of data/chat leaves room for an answer in the context of {context} tokens")
    return sorted(found, key=lambda p: p.key)


def _check_apart(by_task: dict[str, dict[str, Example]], training: Training) -> None:
    examples = [(key, e) for prompts in by_task.values() for key, e in prompts.items()]
    asked = [e for key, e in examples if key in training.prompts]
    if asked:
        raise DataError(
            f"{len(asked)} of {len(examples)} test prompts are training prompts as well, for example of the task "
            f"{asked[0].task}: {asked[0].messages[0].content[:80]!r}. Their answers say nothing about learning: "
            "remove them from one of the splits"
        )
    known = [e for _, e in examples if e.doc_id in training.doc_ids]
    if known:
        raise DataError(
            f"{len(known)} of {len(examples)} test prompts were made from documents that training examples were made "
            f"from, for example {known[0].doc_id} (task {known[0].task}): an example takes the split of its document"
        )


def _messages(e: Example) -> list[Message]:
    return [Message(t.role, t.content) for t in e.prompt]


def _key(e: Example) -> str:
    return sha256_json([list(m) for m in _messages(e)])
