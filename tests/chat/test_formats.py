"""Files of users: every format becomes turns; every record is kept, dropped or quarantined for a reason."""

import gzip
import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import feather

from foundry.chat.data import collect
from foundry.chat.example import Turn
from foundry.chat.formats import FORMATS, FileAccount, Kept, Refused, format_of_record, pair_of, read_conversations
from foundry.chat.tasks.presets import Corpus
from foundry.config import DataError
from foundry.config.chat import Chat

LOG = logging.getLogger("foundry")


def read(path):
    account = FileAccount(path.name)
    found = list(read_conversations(path, path.name, account))
    kept = [item for item in found if isinstance(item, Kept)]
    assert account.records == len(found) == account.kept + account.quarantined.total()
    return [k.conversation for k in kept], account, [x for x in found if not isinstance(x, Kept)]


def lines(path, *records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def asked(*texts, system=None, quiet=()):
    """The turns of a conversation that begins with a question."""
    turns = [] if system is None else [Turn("system", system)]
    roles = ("user", "assistant")
    turns += [Turn(roles[i % 2], t, False if i in quiet else None) for i, t in enumerate(texts)]
    return tuple(turns)


def messages(*texts, key="content", role="role", names=("user", "assistant")):
    return [{role: names[i % 2], key: t} for i, t in enumerate(texts)]


SHAREGPT = {"key": "value", "role": "from", "names": ("human", "gpt")}
CASES = [
    ({"messages": messages("a", "b", "c", "d")}, asked("a", "b", "c", "d"), None, {}),
    ({"messages": [{"role": "system", "content": "s"}, *messages("a", "b")]}, asked("a", "b", system="s"), None, {}),
    ({"messages": [{"role": "system", "content": ""}, *messages("a", "b")]}, asked("a", "b"), None, {}),
    ({"messages": messages([{"type": "text", "text": x} for x in "ab"], "c")}, asked("ab", "c"), None, {}),
    (
        {"messages": [*messages("a"), {"role": "assistant", "content": "b", "train": False}, *messages("c", "d")]},
        asked("a", "b", "c", "d", quiet=(1,)),
        None,
        {},
    ),
    ({"conversations": messages("a", "b", **SHAREGPT)}, asked("a", "b"), None, {}),
    ({"conversations": messages("a", "b", **SHAREGPT), "system": "s"}, asked("a", "b", system="s"), None, {}),
    ({"instruction": "a", "input": "x", "output": "b"}, asked("a\nx", "b"), None, {}),
    ({"instruction": "a", "input": "", "output": "b", "system": "s"}, asked("a", "b", system="s"), None, {}),
    ({"instruction": "c", "output": "d", "history": [["a", "b"]]}, asked("a", "b", "c", "d"), None, {}),
    ({"prompt": "a", "completion": "b"}, asked("a", "b"), None, {}),
    ({"prompt": "a: ", "completion": " b\n"}, asked("a:", "b"), None, {}),
    (
        {"prompt": messages("a", "b", "c"), "completion": messages("x", "d")[1:]},
        asked("a", "b", "c", "d", quiet=(1,)),
        None,
        {},
    ),
    ({"prompt": "1+1?", "answer": "2"}, asked("1+1?", "2"), "exact", {"expected": "2"}),
    ({"prompt": "1+1?", "verifier": "number", "arguments": {"expected": 2}}, asked("1+1?"), "number", {"expected": 2}),
    ({"question": "q", "answer": "so\n#### 1,072"}, asked("q", "so\n#### 1,072"), "number", {"expected": "1072"}),
    ({"question": "q", "answer": "b"}, asked("q", "b"), "exact", {"expected": "b"}),
    ({"input": messages("a"), "ideal": "b"}, asked("a"), "one_of", {"expected": ["b"]}),
    ({"input": "a", "ideal": ["b", "c"]}, asked("a"), "one_of", {"expected": ["b", "c"]}),
]  # fmt: skip


@pytest.mark.parametrize(("record", "turns", "verifier", "arguments"), CASES)
def test_every_format_becomes_turns(record, turns, verifier, arguments, tmp_path):
    (found,), account, _ = read(lines(tmp_path / "a.jsonl", record))
    assert (found.turns, found.verifier, found.arguments) == (turns, verifier, arguments)
    assert account.stripped == (record.get("completion") == " b\n")
    assert account.format == format_of_record(record).name


def test_an_entry_of_reasoning_gym_knows_its_verifier(tmp_path):
    record = {"question": "q", "answer": "b", "metadata": {"source_dataset": "leg_counting", "n": 3}}
    (found,), account, _ = read(lines(tmp_path / "a.jsonl", record))
    assert found.verifier == "gym:leg_counting" and json.loads(found.arguments["entry"]) == record
    assert not account.ignored


REFUSED = [
    ({"messages": []}, "no_turns"),
    ({"messages": "hello"}, "no_turns"),
    ({"messages": [{"content": "a"}]}, "no_role"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "tool_turn"),
    ({"messages": [{"role": "critic", "content": "a"}]}, "unknown_role"),
    ({"messages": messages("a", None)}, "content_is_not_text"),
    ({"messages": messages("a", [{"type": "image_url"}])}, "content_is_not_text"),
    ({"messages": messages("a", "\ud800")}, "invalid_unicode"),
    ({"messages": messages("a", "b", names=("user", "user"))}, "two_user_turns_in_a_row"),
    ({"messages": [*messages("a", "b"), {"role": "assistant", "content": "c"}]}, "two_assistant_turns_in_a_row"),
    ({"messages": messages("a", "b", names=("assistant", "user"))}, "begins_with_an_answer"),
    ({"messages": [*messages("a", "b"), {"role": "system", "content": "s"}]}, "system_turn_not_first"),
    ({"messages": [{"role": "system", "content": "s"}]}, "no_turns"),
    ({"messages": messages("a", "b", "c")}, "no_answer_at_the_end"),
    ({"messages": messages("a", " ")}, "empty_answer"),
    ({"messages": messages("", "b")}, "empty_question"),
    ({"messages": [*messages("a"), {"role": "assistant", "content": "b", "weight": 0}]}, "foreign_mask_flag"),
    ({"messages": [*messages("a"), {"role": "assistant", "content": "b", "train": 1}]}, "wrong_train_flag"),
    ({"messages": [{"role": "user", "content": "a", "train": True}, *messages("x", "b")[1:]]}, "wrong_train_flag"),
    ({"messages": [*messages("a"), {"role": "assistant", "content": "b", "train": False}]}, "no_trained_turn"),
    ({"conversations": messages("a", "b", **{**SHAREGPT, "names": ("gpt", "human")})}, "begins_with_an_answer"),
    ({"conversations": messages("a", "b", **{**SHAREGPT, "names": ("human", "observation")})}, "tool_turn"),
    ({"instruction": "a", "output": ""}, "empty_answer"),
    ({"instruction": "a", "output": None}, "content_is_not_text"),
    ({"instruction": "a", "output": "b", "history": [["c"]]}, "history_is_not_pairs"),
    ({"prompt": "a", "completion": messages("b")}, "prompt_and_completion_of_two_kinds"),
    ({"prompt": "a", "verifier": "no_such", "arguments": {}}, "verifier_does_not_take_this"),
    ({"prompt": "a", "verifier": "number", "arguments": []}, "arguments_are_not_an_object"),
    ({"input": "a", "ideal": 3}, "ideal_is_not_text"),
    ({"neither": "a"}, "unknown_format"),
]


@pytest.mark.parametrize(("record", "reason"), REFUSED)
def test_what_is_no_conversation_is_quarantined_with_its_place_and_reason(record, reason, tmp_path):
    format = format_of_record(record)
    good = next(r for r, *_ in CASES if format is None or format_of_record(r).name == format.name)
    found, account, (refused,) = read(lines(tmp_path / "a.jsonl", good, record, good))
    assert len(found) == 2 and (refused.row, refused.reason, refused.file) == (2, reason, "a.jsonl")
    assert account.quarantined == {reason: 1} and refused.excerpt


def test_damaged_records_are_quarantined(tmp_path):
    path = tmp_path / "a.jsonl"
    good = json.dumps(CASES[0][0]).encode()
    bad = [b"{", b"[1]", b'{"messages": 1, "messages": 2}', b'{"messages": "\xff"}', b"[" * 100_000]
    path.write_bytes(b"\n".join([good, *bad, good]))
    found, account, _ = read(path)
    reasons = ["broken_json", "not_an_object", "repeated_key", "not_utf8", "too_deep"]
    assert len(found) == 2 and account.quarantined == dict.fromkeys(reasons, 1)


def test_files_that_teach_no_answers_are_refused_with_what_to_do(tmp_path):
    for record, match in (
        ({"text": "a"}, r"download\.sources"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, r"preferences\.sources"),
        ({"prompt": "a", "completion": "b", "label": True}, r"pair those of one prompt"),
        ({"x": 1}, "no record of a known format; the keys of its records are x"),
    ):
        with pytest.raises(DataError, match=match):
            read(lines(tmp_path / "a.jsonl", record))
    with pytest.raises(DataError, match=r"several formats: 2 messages, 1 alpaca"):
        read(lines(tmp_path / "a.jsonl", CASES[0][0], {"instruction": "a", "output": "b"}, CASES[1][0]))
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match="its suffix"):
        read(tmp_path / "a.txt")
    assert {f.name for f in FORMATS if f.convert is None} == {"plain text", "preference", "unpaired preference"}


def test_all_kinds_of_files_give_the_same_conversations(tmp_path):
    records = [{"instruction": f"question {i}", "input": "", "output": f'answer, "{i}"\n好'} for i in range(5)]
    (tmp_path / "a.json").write_text(json.dumps(records))
    lines(tmp_path / "a.jsonl", *records)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    feather.write_feather(pa.Table.from_pylist(records), str(tmp_path / "a.arrow"))
    quoted = "".join(f'question {i},,"answer, ""{i}""\n好"\n' for i in range(5))
    (tmp_path / "a.csv").write_text("instruction,input,output\n" + quoted, encoding="utf-8")
    expected = read(tmp_path / "a.jsonl")[0]
    assert [c.turns for c in expected] == [asked(r["instruction"], r["output"]) for r in records]
    for name in ("a.json", "b.jsonl.gz", "a.parquet", "a.arrow", "a.csv"):
        assert read(tmp_path / name)[0] == expected, name


def test_mistake_21_the_common_beginning_of_a_pair_is_found_by_turns():
    chosen, rejected = messages("a", "the same words, then b"), messages("a", "the same words, then c")
    pair = pair_of({"chosen": chosen, "rejected": rejected})
    assert pair.prompt == asked("a") and pair.chosen[0].content == "the same words, then b"
    assert pair == pair_of({"prompt": "a", "chosen": chosen[1]["content"], "rejected": rejected[1]["content"]})
    assert pair == pair_of({"prompt": messages("a"), "chosen": chosen, "rejected": rejected})
    assert pair == pair_of({"prompt": messages("a"), "chosen": chosen[1:], "rejected": rejected[1:]})
    for record, reason in (
        ({"chosen": chosen, "rejected": chosen}, "equal_sides"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "empty_answer"),
        ({"chosen": chosen, "rejected": chosen[:1]}, "empty_side"),
        ({"chosen": "b", "rejected": "c"}, "no_prompt"),
    ):
        with pytest.raises(Refused, match=reason):
            pair_of(record)


def gathered(tmp_path, tokenizer, context=128, **params):
    corpus = Corpus(tmp_path / "none", tmp_path / "none", {})
    chat = Chat(presets=[], sources=["corpus/*.jsonl"], **params)
    return collect(chat, corpus, tmp_path, tokenizer, context, 1, LOG)


def test_files_are_collected_with_every_record_accounted_for(tmp_path, tokenizer):
    (tmp_path / "corpus").mkdir()
    short = [{"messages": messages(f"star {i}", f"king {i}")} for i in range(40)]
    long = {"messages": messages("star", "king", "river", "water " * 200)}
    lines(tmp_path / "corpus/talk.jsonl", *short, short[0], long, {"messages": messages("a", "")})
    found = gathered(tmp_path, tokenizer)
    assert found.dropped == {"repeated": 1, "too_long": 1} and [q.reason for q in found.quarantined] == ["empty_answer"]
    every = [e for split in found.examples.values() for e in split]
    assert (
        len(every) == 40 and {e.task for e in every} == {"talk"} and {e.source for e in every} == {"corpus/talk.jsonl"}
    )
    assert all(e.split == split for split, some in found.examples.items() for e in some)
    assert len(found.examples["train"]) > 25 and found.examples["test"]  # the split is drawn by the prompt's hash
    cut = gathered(tmp_path, tokenizer, too_long="cut_turns")
    assert cut.cut == 1 and cut.dropped == {"repeated": 1}
    assert any(len(e.messages) == 2 and e.messages[1].content == "king" for s in cut.examples.values() for e in s)
    assert gathered(tmp_path, tokenizer, max_examples=7).surplus == len(found.examples["train"]) - 7


def test_a_prompt_is_in_one_split_whatever_its_answers_are(tmp_path, tokenizer):
    (tmp_path / "corpus").mkdir()
    lines(tmp_path / "corpus/a.jsonl", *({"messages": messages(f"star {i % 50}", f"king {i}")} for i in range(200)))
    lines(tmp_path / "corpus/b.jsonl", *({"instruction": f"STAR  {i}", "output": f"river {i}"} for i in range(50)))
    found = gathered(tmp_path, tokenizer)
    prompts = [{" ".join(e.messages[0].content.lower().split()) for e in some} for some in found.examples.values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 50 and all(prompts)


def test_too_many_refused_records_fail_the_stage(tmp_path, tokenizer):
    (tmp_path / "corpus").mkdir()
    good, bad = {"messages": messages("star", "king")}, {"messages": messages("star", "")}
    lines(tmp_path / "corpus/a.jsonl", good, bad, bad)
    with pytest.raises(DataError, match=r"2 of 3 records .* 2 empty_answer; the first is corpus/a.jsonl, record 2"):
        gathered(tmp_path, tokenizer)


KEYS = st.sampled_from(["role", "content", "from", "value"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(format=st.sampled_from([f for f in FORMATS if f.convert]), values=st.lists(JSON, min_size=8, max_size=8))
def test_no_value_of_any_key_is_more_than_a_refused_record(format, values):
    record = dict(zip([*format.keys, *format.others], values, strict=False))
    try:
        turns = format.convert(record).turns
    except Refused:
        return
    assert turns and all(isinstance(t, Turn) for t in turns)
