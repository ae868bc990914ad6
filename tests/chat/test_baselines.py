"""A lookup knows the training and nothing else: the constant answer that is right most often, and naive Bayes."""

import pytest

from foundry.chat.baselines import lookup
from foundry.chat.example import Example, Turn

WORDS = {"Arts": "painting music opera", "Geography": "river city mountain", "People": "born king poet"}


def example(prompt, answer, split="train", task="topic", verifier="exact", arguments=None):
    turns = (Turn("user", prompt), Turn("assistant", answer))
    arguments = {"expected": answer} if arguments is None else arguments
    return Example(turns, task, "s", None, 0, split, verifier, arguments)


def topics(split, times):
    texts = {(topic, w): f"The {w} is here." for topic, words in WORDS.items() for w in words.split()}
    return [example(text, topic, split) for (topic, _), text in texts.items() for _ in range(times[topic])]


def by_method(found, task):
    return {b.method: b for b in found if b.task == task}


def test_naive_bayes_finds_the_class_by_its_words_and_the_constant_is_the_majority():
    train = topics("train", {"Arts": 1, "Geography": 2, "People": 5})
    test = topics("test", {"Arts": 1, "Geography": 1, "People": 1})
    found = by_method(lookup(train, test), "topic")
    assert found["naive Bayes"].accuracy == 1 and found["naive Bayes"].answers == tuple(e.answer for e in test)
    assert set(found["constant"].answers) == {"People"} and found["constant"].accuracy == pytest.approx(1 / 3)
    assert found["constant"].prompts == tuple(range(len(test)))


def test_words_of_the_test_teach_nothing():
    train = topics("train", {"Arts": 1, "Geography": 2, "People": 5})
    test = [example("Sculpture, sculpture, sculpture", "Arts", "test")]
    assert by_method(lookup(train, test), "topic")["naive Bayes"].answers == ("People",)
    assert by_method(lookup(train, [*test, *test]), "topic")["naive Bayes"].answers == ("People", "People")


def test_the_constant_answer_is_the_one_that_the_verifier_accepts_most_often():
    """Of answers that are all different, the one whose form is right for most prompts."""
    train = [
        example(
            f"dish {i}",
            "\n".join(f"- item {i} {chr(97 + k)}xx" for k in range(n)),
            "train",
            "n",
            "list_count",
            {"count": n, "reference": ["egg"]},
        )
        for i, n in enumerate([3, 4, 4, 4, 5])
    ]
    test = [e for e in train if e.arguments["count"] != 5]
    found = by_method(lookup(train, test), "n")
    assert found["constant"].answers[0].count("- ") == 4 and found["constant"].accuracy == 0.75


def test_tasks_without_a_verifier_or_without_training_have_no_baseline():
    train = [example("a", "b", verifier=None, arguments={})]
    test = [example("a", "b", "test", verifier=None, arguments={}), example("a", "b", "test", "other")]
    assert lookup(train, test) == [] and lookup([], test) == []
