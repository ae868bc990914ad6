"""Preferences: what is kept of sampled answers and of users' files, and where everything else went."""

import json
from collections import Counter

import pytest
from toy_rl import ends, tiny

from foundry.chat import preferences
from foundry.chat.example import Example, Turn
from foundry.chat.formats import Refused
from foundry.chat.pair_report import preferences_report
from foundry.chat.pairs import PreferencePair, prompt_hash
from foundry.chat.preferences import (
    Gathered,
    add_pairs,
    check_pairs,
    choose_prompts,
    feedback_pair,
    matched,
    read_pair_file,
    sample_pairs,
    without_conflicts,
)
from foundry.config import DataError
from foundry.config.chat import Preferences

PARAMS = Preferences(samples=16, max_new_tokens=10, length_tolerance=0.5)


def question(text, split="train", task="letters", verifier="contains", expected=("a", "e")):
    return Example((Turn("user", text),), task, "toy", None, 0, split, verifier, {"expected": list(expected)})


def pair(prompt, chosen, rejected, split="train"):
    return PreferencePair(
        (Turn("user", prompt),), (Turn("assistant", chosen),), (Turn("assistant", rejected),), "t", "f", split
    )


# Sampled pairs.


def test_mistake_22_only_answers_of_like_length_are_paired():
    long, short, right = (0.0, 30, "long"), (0.0, 10, "short"), (1.0, 11, "right")
    assert matched([long, right], 0.1) == ("length", None)
    assert matched([long, short, right], 0.1) == ("", (2, 1))
    assert matched([long, right], 2.0) == ("", (1, 0))  # planted: without a limit the length would tell the sides


def test_the_pair_of_a_prompt_has_the_largest_difference_then_the_nearest_lengths_then_the_first():
    answers = [(0.5, 10, "a"), (0.0, 10, "b"), (1.0, 9, "c"), (0.0, 9, "d"), (0.0, 9, "e")]
    assert matched(answers, 0.2) == ("", (2, 3))
    assert matched([(0.5, 9, ""), (0.5, 9, ""), (0.45, 9, "")], 1.0) == ("all_equal", None)
    assert matched([(1.0, 9, "")], 1.0) == ("incomplete", None)


def test_mistake_22_pairs_that_differ_in_length_alone_leave_nothing_to_learn_length_from():
    """Every longer answer is judged the better one: all are dropped, counted, and the stage says so."""
    found = Gathered()
    account = found.tasks.setdefault("long", preferences.TaskPairs(prompts=20))
    for n in range(5, 25):
        reason, best = matched([(1.0, 2 * n, "long"), (0.0, n, "short")], 0.1)
        assert best is None
        account.dropped[reason] += 1
    assert account.dropped == Counter(length=20)
    with pytest.raises(DataError, match=r"0 training pairs and 0 held-out pairs.*20 length"):
        check_pairs(found)


def test_sampled_pairs_are_a_function_of_weights_seed_and_prompt(tokenizer):
    model = ends(tiny(), tokenizer)
    examples = [question(f"question {i}", "train" if i % 4 else "val") for i in range(40)]

    def sampled(examples, seed=3, model=model):
        found = Gathered()
        sample_pairs(model, tokenizer, examples, PARAMS, seed, found)
        return found

    found = sampled(examples)
    assert len(found.pairs) >= 3
    account = found.tasks["letters"]
    assert account.prompts == 40 == account.pairs + account.dropped.total() and account.answers == 40 * 16
    for p in found.pairs:
        better, worse = (side[0].content for side in (p.chosen, p.rejected))
        assert p.scores[0] - p.scores[1] >= 0.1 and better != worse
        sizes = sorted(len(tokenizer.encode(text)) + 1 for text in (better, worse))
        assert sizes[1] - sizes[0] <= 0.5 * sizes[1]
    some = sampled(examples[5:25]).pairs
    assert some and [p for p in found.pairs if p in some] == some  # the company of other prompts changes nothing
    assert sampled(examples, seed=4).pairs != found.pairs
    assert {p.split for p in found.pairs} == {"train", "val"}


def test_prompts_are_chosen_evenly_from_tasks_that_a_verifier_checks():
    examples = [
        *(question(f"a {i}", task="many") for i in range(40)),
        *(question(f"b {i}", task="few") for i in range(3)),
        question("c", task="none", verifier=None),
        question("a 1", task="many"),
    ]
    chosen = choose_prompts(examples, [], 13)
    assert Counter(e.task for e in chosen) == {"many": 10, "few": 3}
    assert len({prompt_hash(e.prompt) for e in chosen}) == 13
    assert {e.task for e in choose_prompts(examples, ["few"], 13)} == {"few"}


# Pairs of users.


def read(tmp_path, records, name="mine.jsonl"):
    (tmp_path / name).write_text("\n".join(json.dumps(r) if isinstance(r, dict) else r for r in records))
    found = Gathered()
    return read_pair_file(tmp_path / name, name, found), found


def test_pairs_of_a_file_are_kept_or_quarantined_with_their_place(tmp_path):
    pairs, found = read(
        tmp_path,
        [
            {"prompt": "q", "chosen": "good", "rejected": "bad"},
            {"prompt": "q", "chosen": "same", "rejected": "same"},
            {"prompt": "q", "chosen": "good", "rejected": " "},
            "{broken",
            {
                "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "the same start"}],
                "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "the same"}],
            },
        ],
    )
    assert [(p.chosen[0].content, p.rejected[0].content) for p in pairs] == [
        ("good", "bad"),
        ("the same start", "the same"),
    ]
    (account,) = found.files
    assert account.records == 5 == account.kept + account.quarantined.total() and account.kept == 2
    assert [(q.row, q.reason) for q in found.quarantined] == [
        (2, "equal_sides"),
        (3, "empty_answer"),
        (4, "broken_json"),
    ]


def test_answers_with_a_label_are_paired_within_their_prompt(tmp_path):
    def record(prompt, completion, label):
        return {"prompt": prompt, "completion": completion, "label": label}

    pairs, found = read(
        tmp_path,
        [
            record("p", "good", True),
            record("p", "bad", False),
            record("p", "worse", False),
            record("alone", "x", True),
            record("p", "unsure", "maybe"),
        ],
    )
    assert [(p.chosen[0].content, p.rejected[0].content) for p in pairs] == [("good", "bad"), ("good", "worse")]
    assert found.dropped == Counter(one_label=1) and found.files[0].quarantined == Counter(label_is_not_true_or_false=1)
    with pytest.raises(DataError, match=r"no prompt of mine\.jsonl has both"):
        read(tmp_path, [record("a", "x", True), record("b", "y", False)])


@pytest.mark.parametrize(
    ("records", "text"),
    [
        ([{"messages": []}], "has the format 'messages'"),
        (
            [
                {"prompt": "q", "chosen": "a", "rejected": "b"},
                {"prompt": "q", "completion": "a", "label": True},
            ],
            "several formats: 1 preference, 1 unpaired preference",
        ),
    ],
)
def test_a_file_of_another_format_or_of_several_is_refused(tmp_path, records, text):
    with pytest.raises(DataError, match=text):
        read(tmp_path, records)


def test_duplicates_are_dropped_and_of_contradictions_neither_side_is_kept():
    found = Gathered(pairs=[pair("q", "a", "b"), pair("q", "a", "b"), pair("q", "c", "d"), pair("q", "d", "c")])
    found.pairs += [pair("other", "d", "c")]
    without_conflicts(found)
    assert found.pairs == [pair("q", "a", "b"), pair("other", "d", "c")]
    assert found.dropped == Counter(duplicate=1, contradiction=2)


def test_a_pair_is_in_the_split_of_its_prompt_and_test_prompts_are_dropped(tmp_path):
    records = [{"prompt": f"q {i}", "chosen": "a", "rejected": "b"} for i in range(200)]
    pairs, found = read(tmp_path, records)
    known = {prompt_hash(pairs[i].prompt): split for i, split in enumerate(("test", "val", "train"))}
    add_pairs(pairs, "mine", "mine.jsonl", known, found)
    split_of = {p.prompt[0].content: p.split for p in found.pairs}
    assert "q 0" not in split_of and split_of["q 1"] == "val" and split_of["q 2"] == "train"
    assert found.dropped["test_prompt"] + len(found.pairs) == 200
    assert Counter(split_of.values())["train"] > 150 > Counter(split_of.values())["val"] > 1


def test_feedback_of_a_conversation_is_a_pair_and_that_of_a_continued_text_is_none():
    found = feedback_pair([{"role": "user", "content": "q"}], "good", "bad")
    assert found.prompt == (Turn("user", "q"),) and found.chosen == (Turn("assistant", "good"),)
    with pytest.raises(Refused, match="no_conversation"):
        feedback_pair("once upon", "a time", "b")


def test_the_report_accounts_for_everything_and_tells_how_often_the_longer_one_wins(tokenizer):
    found = Gathered(
        pairs=[pair(f"q {i}", "a" * (9 if i % 4 else 1), "b" * 4, "val" if i % 5 else "train") for i in range(40)]
    )
    report = preferences_report(found, tokenizer, "w", 1)
    assert report.train == 8 and report.val == 32 and report.longer_wins.value == pytest.approx(0.75, abs=0.01)
    assert report.longer_wins.low > 0.5 and report.chosen_tokens.value > report.rejected_tokens.value


def test_preferences_without_a_source_are_refused():
    with pytest.raises(ValueError, match="no source"):
        Preferences(sampled=False)
