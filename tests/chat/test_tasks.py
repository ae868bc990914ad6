"""The tasks of chat-en follow their rules: splits, wordings, amounts, accounts, answers that their verifiers accept."""

import json
import re
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foundry.chat.example import Example, Turn
from foundry.chat.tasks import letters
from foundry.chat.tasks.base import SEEN_WORDINGS, WORDINGS, Made, Origin, Question, Task, made_from_nothing
from foundry.chat.tasks.chat_zh import chat_zh, idiom_chain, xiehouyu
from foundry.chat.tasks.chitchat import dialogues
from foundry.chat.tasks.corpus import sentences
from foundry.chat.tasks.packages import JIONLP
from foundry.chat.tasks.presets import Corpus, make_preset
from foundry.chat.tasks.recipes import name_of
from foundry.chat.verifiers import verify
from foundry.config import ConfigError, DataError
from foundry.data.fields import FIELDS
from foundry.data.schema import COLUMNS
from foundry.data.splits import SPLITS

TOPICS = {"Arts": "painter", "Geography": "river", "People": "poet"}
FOOD = ("salt", "sugar", "garlic", "butter", "onion", "flour", "milk", "lemon", "rice", "beef")
LICENSES = {"wiki": "CC-BY-SA-4.0", "cook": "CC-BY-SA-3.0"}


def documents(split, count):
    """(doc_id, source, text, fields) of made-up articles and recipes."""
    for i in range(count):
        topic, thing = list(TOPICS.items())[i % 3]
        title = f"{split.capitalize()} Thing {i}"
        sentence = f"{title} is a {thing} that was named after number {i} of {split}."
        fields = {"title": title, "description": f"The {thing} of number {i}", "topic": topic}
        yield f"{split}-w{i}", "wiki", f"{title}\n\n{sentence} Many things are known about words.", fields
        listed = [f"{k + 1} cups {FOOD[(i + k) % 10]}, chopped" for k in range(3 + i % 6)]
        title, step = f"{split.capitalize()} {FOOD[i % 10]} cake {i}", "1. Mix " + ", ".join(FOOD) + "."
        text = f"{title}\n\nIngredients:\n" + "\n".join(f"- {x}" for x in listed) + f"\n\nDirections:\n{step}"
        yield f"{split}-c{i}", "cook", text, {"title": title, "ingredients": listed, "steps": [step[3:]]}


def write(folder, made):
    """The clean documents and their side table; `made`: {split: documents}."""
    for split in SPLITS:
        rows = list(made.get(split, ()))
        (folder / "clean" / split).mkdir(parents=True)
        (folder / "fields").mkdir(exist_ok=True)
        table = [[r[0] for r in rows], [r[2] for r in rows], [r[1] for r in rows], ["en"] * len(rows), [1] * len(rows)]
        pq.write_table(pa.table(table, schema=COLUMNS), folder / "clean" / split / "part-00000.parquet")
        side = [[r[0] for r in rows], [r[1] for r in rows], [json.dumps(r[3]) for r in rows]]
        pq.write_table(pa.table(side, schema=FIELDS), folder / "fields" / f"{split}.parquet")
    return Corpus(folder / "clean", folder / "fields", LICENSES)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    made = {"train": [*documents("train", 60)], "val": [*documents("val", 12)], "test": [*documents("test", 30)]}
    return write(tmp_path_factory.mktemp("corpus"), made)


def fits(turns):
    return sum(len(t.content) for t in turns) < 900


@pytest.fixture(scope="module")
def made(corpus):
    return make_preset("chat-en", corpus, 1, fits)


def question(example):
    return example.prompt[-1].content


def test_every_answer_is_accepted_by_its_own_verifier(made):
    checked = [e for e in made.examples if e.verifier]
    assert {e.task for e in checked} >= {"topic", "ingredients_n", "recipe", "has_item", "spell", "add", "conversation"}
    assert all(verify(e.verifier, e.arguments, e.answer).right for e in checked)


def test_an_example_is_in_the_split_of_its_document_and_inherits_its_licence(made):
    of_documents = [e for e in made.examples if e.doc_id and e.task != "conversation"]
    assert {e.split for e in of_documents} == set(SPLITS)
    assert all(e.doc_id.split("-")[0] == e.split and e.source in LICENSES for e in of_documents)
    assert {(e.source, e.license) for e in of_documents} == set(LICENSES.items())


def test_mistake_26_no_training_prompt_is_made_from_a_held_out_document(made, tmp_path):
    """Nor from a training document with the title of a held-out one, whose questions are those of the test."""
    held_out = {e.doc_id for e in made.examples if e.split != "train"} - {None}
    assert held_out and not held_out & {e.doc_id for e in made.examples if e.split == "train"}
    train = [*documents("train", 30)]
    twin = ("tx1", "wiki", train[0][2], train[0][3])
    planted = make_preset(
        "chat-en", write(tmp_path, {"train": train, "val": documents("val", 5), "test": [twin]}), 1, fits
    )
    asked = Counter((e.split, e.doc_id) for e in planted.examples if e.task == "define")
    assert asked["test", "tx1"] and not asked["train", train[0][0]]
    assert planted.accounts["all"].dropped == {"title_is_held_out": 1}


def test_two_wordings_occur_only_in_the_test_where_each_question_is_asked_in_both_kinds(made):
    tested = {e.task for e in made.examples if e.split == "test"} - {"conversation", "smalltalk"}
    assert len(tested) > 10
    for task in tested:
        of_task = [e for e in made.examples if e.task == task]
        unseen = {e.split for e in of_task if e.wording >= SEEN_WORDINGS}
        assert unseen == {"test"} and {e.wording for e in of_task} <= set(range(WORDINGS))
        test = [e for e in of_task if e.split == "test"]
        assert sum(e.wording >= SEEN_WORDINGS for e in test) * 2 == len(test)
    trained = {question(e) for e in made.examples if e.split == "train"}
    assert not trained & {question(e) for e in made.examples if e.split == "test" and e.wording >= SEEN_WORDINGS}


def test_questions_without_a_document_are_in_one_split_whatever_their_wording(made):
    for task in ("add", "compare", "spell", "unknown"):
        split = {}
        for e in made.examples:
            if e.task == task:
                content = tuple(sorted(re.findall("[0-9]+", question(e)))) or e.answer
                assert split.setdefault(content, e.split) == e.split
        assert set(split.values()) == set(SPLITS) or task == "spell"


def test_every_question_is_used_or_dropped_for_a_counted_reason(made):
    assert len(made.accounts) >= 18
    for account in made.accounts.values():
        assert account.questions == account.used + account.dropped.total()
    assert sum(a.examples.total() for a in made.accounts.values()) == len(made.examples)
    train = Counter(e.task for e in made.examples if e.split == "train")
    assert train["topic"] == 60 and train["add"] == letters.ADD.most and made.accounts["add"].dropped["surplus"] > 0


def test_what_does_not_fit_the_context_is_dropped_and_counted(corpus):
    made = make_preset("chat-en", corpus, 1, lambda turns: sum(len(t.content) for t in turns) < 120)
    assert made.accounts["recipe"].dropped["too_long"] > 30 and not made.accounts["recipe"].used
    assert all(sum(len(t.content) for t in e.messages) < 120 for e in made.examples if e.task != "smalltalk")


def test_the_examples_are_a_function_of_corpus_and_seed(corpus, made):
    again = make_preset("chat-en", corpus, 1, fits)
    assert again.examples == made.examples and again.accounts == made.accounts
    other = make_preset("chat-en", corpus, 2, fits)
    pick = [[e for e in m.examples if e.task == "add"] for m in (made, other)]
    assert pick[0] != pick[1] and {e.split for e in pick[1]} == set(SPLITS)


def test_small_talk_stays_a_small_part(made):
    """Identity data that is repeated too often leaks into every answer."""
    size = Counter()
    for e in made.examples:
        if e.split == "train":
            size[e.task] += sum(len(t.content) + 15 for t in e.messages)
    assert 0 < (size["smalltalk"] + size["unknown"]) / sum(size.values()) < 0.08  # of a toy corpus; chat-en: 1.4 %


def test_conversations_have_several_exchanges_of_one_split_and_check_the_last(made):
    talks = [e for e in made.examples if e.task == "conversation"]
    single = {(e.split, t.content) for e in made.examples if e.task != "conversation" for t in e.messages}
    assert any(e.messages[0].role == "system" for e in talks) and len(talks) > 500
    for e in talks:
        turns = [t for t in e.messages if t.role != "system"]
        assert len(turns) >= 4 and [t.role for t in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert all((e.split, t.content) in single for t in turns)


def test_an_answer_that_its_verifier_refutes_is_not_taught():
    task = Task("t", tuple(f"{k} {{x}}" for k in range(8)), "exact", 10)
    made, origin = Made(), Origin("train", None, "s", "CC0-1.0")
    questions = [Question(str(i), {"x": str(i)}, "good", {"expected": ("good", "bad")[i]}, origin) for i in range(2)]
    assert [e.answer for e in made.add(task, questions, 1, lambda turns: True)] == ["good"]
    assert made.accounts["t"].dropped == {"refuted": 1}


@pytest.mark.parametrize(
    "a, b, sum_, difference",
    [
        (37, 48, "7+8=15, 3+4+1=8, so 85", None),
        (67, 48, "7+8=15, 6+4+1=11, so 115", "17-8=9, 5-4=1, so 19"),
        (3, 4, "7", None),
        (90, 21, "0+1=1, 9+2=11, so 111", "10-1=9, 8-2=6, so 69"),
        (9, 2, "11", "7"),
    ],
)
def test_steps_of_sums_and_differences_are_those_on_paper(a, b, sum_, difference):
    asked = {name: {q.key: q.answer for q in make()} for name, make in (("a", letters.add), ("s", letters.subtract))}
    assert asked["a"][f"{a} {b}"] == sum_ and asked["s"].get(f"{a} {b}") == difference


@pytest.mark.parametrize(
    "line, name",
    [
        ("2 tbsp olive oil (extra virgin), warm", "olive oil"),
        ("1½ cups (300 g) white granulated sugar", "white granulated sugar"),
        ("1 pinch of salt", "salt"),
        ("6 ea. (300 g) standard eggs, room temperature", "standard eggs"),
        ("Eggs", "eggs"),
        ("Butter or oil", "butter"),
        ("250 ml", ""),
        ("½", ""),
        ("crème fraîche", "crème fraîche"),
    ],
)
def test_the_name_in_a_line_of_a_list(line, name):
    assert name_of(line) == name


def test_initials_and_abbreviations_do_not_end_a_sentence():
    text = "D. S. Lee, born in St. Louis, wrote. He met Mr. Fox of the U.S. Army. The end"
    assert sentences(text) == ["D. S. Lee, born in St. Louis, wrote.", "He met Mr. Fox of the U.S. Army.", "The end"]


def test_a_corpus_without_fields_says_what_to_add(tmp_path):
    empty = write(tmp_path, {"train": [("a", "wiki", "Some text", {"other": 1})]})
    with pytest.raises(DataError, match=r"chat-en is made from articles .* add `fields:` to a source"):
        make_preset("chat-en", empty, 1, fits)
    with pytest.raises(DataError, match="chat-zh is made from poems"):
        make_preset("chat-zh", empty, 1, fits)
    with pytest.raises(ConfigError, match="unknown preset 'chat-xx'"):
        make_preset("chat-xx", empty, 1, fits)


def test_chat_zh_asks_about_poems_riddles_and_idioms(tmp_path, monkeypatch):
    poem = {"title": "静夜思", "author": "李白", "paragraphs": ["床前明月光，疑是地上霜。", "举头望明月，低头思故乡。"]}
    files = {
        "xiehouyu.txt": "泥菩萨过江\t自身难保\n泥菩萨过江\t自身不保\n坏行\n",
        "chinese_idiom.txt": "一心一意\t900\n意气风发\t80\n",
    }
    monkeypatch.setattr(type(JIONLP), "member", lambda self, *path: files[path[-1]].encode())
    rows = {s: [(f"{s}1", "poems", "静夜思\n李白\n\n床前明月光", poem)] for s in ("train", "test")}
    rows["test"][0][3]["title"] = "静夜思"
    corpus = write(tmp_path, rows)
    made = chat_zh(corpus.clean, corpus.fields, {"poems": "MIT"}, 1, lambda turns: True)
    by_task = {e.task: e for e in made.examples}
    assert set(by_task) == {"next_line", "author", "title", "xiehouyu", "idiom_chain"}
    assert by_task["author"].answer == "李白" and by_task["author"].license == "MIT"
    assert all(verify(e.verifier, e.arguments, e.answer).right for e in made.examples)
    [riddle] = xiehouyu(files["xiehouyu.txt"])
    assert riddle.arguments == {"expected": ["自身不保", "自身难保"]} and riddle.origin.license == "Apache-2.0"
    [idiom] = idiom_chain(files["chinese_idiom.txt"])
    assert (idiom.values["idiom"], idiom.answer) == ("一心一意", "意气风发")


def test_dialogues_alternate_are_scrubbed_and_are_dropped_for_a_counted_reason():
    def said(*texts):
        return {"messages": [[{"text": t, "sender": s}] for s, t in texts]}

    good = said(
        ("a", "Hi"), ("a", "you there?"), ("b", "yes, x@example.org"), ("a", "good"), ("b", "bye"), ("a", "bye")
    )
    data = {"1": good, "2": said(("a", "hi"), ("b", "hi")), "3": said(("a", "shit"), *[("b", "no"), ("a", "so")] * 3)}
    made = dialogues(data, lambda turns: True)
    [example] = made.examples
    assert [t.content for t in example.messages] == ["Hi\nyou there?", "yes, [EMAIL]", "good", "bye"]
    assert [t.role for t in example.messages] == ["user", "assistant"] * 2 and example.license == "MIT"
    assert made.accounts["chitchat"].dropped == {"too_short": 1, "strong_language": 1}
    cut = dialogues({"1": good}, lambda turns: len(turns) < 4)
    assert not cut.examples and cut.accounts["chitchat"].dropped == {"too_short": 1}


def test_a_gym_without_its_package_says_how_to_install_it(monkeypatch, corpus):
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match=r"gym:no_such_set needs the package reasoning-gym .*pip install --no-deps"):
        make_preset("gym:no_such_set", corpus, 1, fits)


def test_a_gym_gives_questions_with_the_score_of_the_gym(monkeypatch, corpus):
    class Gym:
        def __iter__(self):
            return iter(
                [{"question": f"{i % 40} + 1 = ?", "answer": str(i % 40 + 1), "metadata": {}} for i in range(50)]
            )

        @staticmethod
        def score_answer(answer, entry):
            return float(answer == entry["answer"])

    fake = type("reasoning_gym", (), {"create_dataset": staticmethod(lambda name, size, seed: Gym())})
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", fake)
    made = make_preset("gym:fake_sums", corpus, 1, fits)
    account = made.accounts["gym:fake_sums"]
    assert (account.questions, account.used, account.dropped) == (50, 40, {"repeated": 10})
    e = made.examples[0]
    assert verify(e.verifier, e.arguments, e.answer).right and not verify(e.verifier, e.arguments, "x").right


def test_a_turn_is_trained_if_the_assistant_says_it_and_only_then():
    assert Turn("assistant", "a").train and not Turn("user", "a").train and not Turn("assistant", "a", False).train
    with pytest.raises(DataError, match="only the assistant's turns can"):
        Turn("user", "a", True)
    with pytest.raises(DataError, match="roles are system, user, assistant"):
        Turn("tool", "a")
    with pytest.raises(DataError, match="has no turn"):
        Example((), "t", "s", None, 0, "train")
    asked = Example((Turn("user", "q"),), "t", "s", None, 0, "train")
    assert asked.prompt == asked.messages and asked.answer is None
    assert made_from_nothing("a key") == made_from_nothing("a key")
