"""Verifiers accept what is right only, are total over hostile answers, and a user's that fails is an error."""

import random

import pytest

from foundry.chat import verifiers
from foundry.chat.verifiers import BUILT_IN, Verdict, VerifierError, check_arguments, load_verifiers, verify
from foundry.config import DataError, FoundryError

RECIPE = "Ingredients:\n- 2 eggs\n- 1 cup milk\n\nDirections:\n1. Beat the eggs.\n2. Pour milk over the omelette."
ARGUMENTS = {
    "exact": {"expected": "People"},
    "one_of": {"expected": ["a", "b"]},
    "number": {"expected": 12},
    "contains": {"expected": ["do not know", "blorf"]},
    "overlap": {"expected": "Large feline of the genus Acinonyx"},
    "list_count": {"count": 2, "reference": ["2 eggs", "1 cup milk"]},
    "items": {"expected": ["2 eggs", "1 cup milk"]},
    "recipe": {"name": "Milk Omelette"},
}


def score(name, answer, **changes):
    return verify(name, {**ARGUMENTS[name], **changes}, answer).score


@pytest.mark.parametrize(
    "name, right, wrong",
    [
        ("exact", ["People", " people. ", "PEOPLE"], ["", "Peoples", "People People", "Geography"]),
        ("one_of", ["a", "B."], ["", "c", "a b"]),
        (
            "number",
            ["12", "7 + 5 = 12", "so 12.", "12.0", "1,012 - 1,000 = 12", "1 + 11 = 12, yes"],
            ["", "1 2", "1,,,2", "13", "12 or 13", "-12", "one"],
        ),
        ("contains", ["I do not know what Blorf means."], ["", "I know blorf"]),
        ("overlap", ["large feline of the genus acinonyx"], ["", "feline"]),
        (
            "list_count",
            ["- 2 eggs\n- milk", "\n- Egg\n\n- Milk\n", "1. 2 eggs\n2. milk\n"],
            [
                "",
                "- eggs",
                "- eggs\n- eggs",
                "- a\n- b",
                "eggs\nmilk",
                "Here:\n- eggs\n- milk",
                "- eggs\n- milk\n- salt",
                "-eggs\n-milk",
                "1. eggs",
                "1. eggs\n2. eggs",
                "1. eggs\n3. milk",
                "2. eggs\n3. milk",
                "1. eggs\n- milk",
                "1. eggs\n2. milk\n3. salt",
            ],
        ),
        ("items", ["- 2 eggs\n- 1 cup milk"], ["", "- 1 cup milk\n- 2 eggs", "- 2 eggs", "2 eggs\n1 cup milk"]),
        (
            "recipe",
            [RECIPE],
            [
                "",
                RECIPE.replace("2. Pour", "3. Pour"),
                RECIPE.replace("Ingredients:", ""),
                RECIPE.replace("Directions:", "Steps:"),
                RECIPE.replace("omelette", "plate").replace("milk", "cream"),
                RECIPE.split("1. Beat")[0],
                "Ingredients:\n\nDirections:\n1. Milk.",
            ],
        ),
    ],
)
def test_right_answers_score_one_and_wrong_ones_less(name, right, wrong):
    assert [score(name, a) for a in right] == [1.0] * len(right)
    assert all(score(name, a) < 1 for a in wrong)


def test_partial_credit_follows_what_is_right():
    assert 0 < score("overlap", "a feline") < score("overlap", "Large feline") < 1
    assert score("contains", "I do not know") == 0.5
    unused = RECIPE.replace("2 eggs\n", "2 eggs\n- sugar\n- nutmeg\n- vanilla\n")
    assert 0 < score("recipe", unused) < 1 and verify("recipe", {"name": "omelette"}, unused).parts["used"] == 0.4
    parts = verify("list_count", ARGUMENTS["list_count"], "- rice\n- milk\n- salt").parts
    assert parts == {"form": 1.0, "count": 0.0, "distinct": 1.0, "reference": 1 / 3}


def hostile(count=1000):
    """Answers that break naive checks: control symbols, halves of surrogate pairs, long lines and numbers, nothing."""
    rng = random.Random(25)
    pieces = [
        *(
            "",
            " ",
            "\n",
            "\0",
            "\ud800",
            "\udfff",
            "\u202e",
            "\ufeff",
            "e\u0301" * 9,
            "ﬃ",
            "İ",
            "👩‍👩‍👧",
            "<|im_end|>",
            "</s>",
            "%s",
            "{}",
        ),
        *(
            "- ",
            "- a",
            "-" * 999,
            "1. ",
            "9" * 5000,
            "9" * 5000 + ".",
            "1" * 4 + ". x",
            "1,,,2",
            "−3",
            "1e309",
            "nan",
            "inf",
            "٣",
            "½",
        ),
        *(
            "Ingredients:",
            "Directions:",
            "- 2 eggs",
            "- 1 cup milk",
            "People",
            "\\",
            "(" * 500,
            "a" * 10000,
            RECIPE,
            "\r",
            "\x85",
            "\u2028",
        ),
    ]
    for _ in range(count):
        yield rng.choice(("", "\n", " ")).join(rng.choices(pieces, k=rng.randint(0, 12)))


def test_mistake_25_no_answer_breaks_a_verifier_and_none_games_it():
    """Every verdict on 1,000 hostile answers is in [0, 1], and only answers that are right get the full score."""
    answers = list(dict.fromkeys(hostile()))
    assert len(answers) > 800 and set(ARGUMENTS) == set(BUILT_IN)
    for name, arguments in ARGUMENTS.items():
        full = []
        for answer in answers:
            verdict = verify(name, arguments, answer)
            assert all(0 <= x <= 1 for x in (verdict.score, *verdict.parts.values())), (name, answer)
            assert verdict == verify(name, arguments, answer)
            if verdict.right:
                full.append(answer.strip())
        if name in ("exact", "one_of", "overlap", "contains", "number"):
            assert all(name == "exact" and a.strip(" .").casefold() == "people" for a in full), (name, full[:3])
    # What a policy finds first: the same item again, items without a thing, numbers of every size.
    assert score("list_count", "- salt\n- salt") == score("list_count", "- 1\n- 2") == 0
    assert score("list_count", "1. 1\n2. 2") == score("list_count", "1. salt\n2. salt") == 0
    assert score("number", " ".join(map(str, range(12, -1, -1)))) == 0


def test_mistake_25_text_beyond_the_end_symbol_is_the_callers_to_cut():
    """An answer that is right only in a second turn, which the model wrote itself, is wrong."""
    assert score("exact", "Geography<|im_end|>\n<|im_start|>assistant\nPeople") == 0
    assert score("items", "- 2 eggs\n- 1 cup milk<|im_end|>") == 0


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("exakt", {}, "unknown verifier 'exakt'; known are .*exact"),
        ("exact", {}, r"exact takes expected: str; got \{\}"),
        ("exact", {"expected": 3}, "exact takes expected: str"),
        ("exact", {"expected": "a", "more": 1}, "exact takes expected: str"),
        ("one_of", {"expected": []}, "one_of takes"),
        ("one_of", {"expected": [1]}, "one_of takes"),
        ("list_count", {"count": True, "reference": ["a"]}, "list_count takes count: int"),
        ("number", {"expected": "twelve"}, "expects a number .* got 'twelve'"),
        ("gym:chain_sum", {}, "takes entry"),
    ],
)
def test_what_is_not_a_verifier_or_not_its_arguments_is_refused(name, arguments, message):
    with pytest.raises(DataError, match=message):
        check_arguments(name, arguments)
    with pytest.raises(DataError, match=message):
        verify(name, arguments, "x")


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setattr(verifiers, "_USERS", {})
    path = tmp_path / "mine.py"
    path.write_text(
        "from foundry.chat.verifiers import Verdict\n"
        "def short(arguments, answer): return float(len(answer) <= arguments['most'])\n"
        "def parts(arguments, answer): return Verdict(0.5, {'half': 0.5})\n"
        "def raises(arguments, answer): return 1 / 0\n"
        "def infinite(arguments, answer): return float('inf')\n"
        "def words(arguments, answer): return 'good'\n"
        "def _helper(arguments, answer): return 1.0\n"
    )
    return path


def test_a_users_functions_are_verifiers_and_what_fails_in_them_is_an_error_that_names_them(mine):
    with pytest.raises(DataError, match="unknown verifier 'mine:short'"):
        verify("mine:short", {"most": 3}, "abc")
    assert load_verifiers(mine) == ("mine:short", "mine:parts", "mine:raises", "mine:infinite", "mine:words")
    assert (
        verify("mine:short", {"most": 3}, "abc") == Verdict(1.0) and not verify("mine:short", {"most": 3}, "abcd").right
    )
    assert verify("mine:parts", {}, "") == Verdict(0.5, {"half": 0.5})
    for name, problem in (
        ("raises", "raised ZeroDivisionError: division by zero"),
        ("infinite", "returned inf"),
        ("words", "returned 'good'"),
        ("short", "raised KeyError: 'most'"),
    ):
        with pytest.raises(VerifierError, match=f"the verifier mine:{name} {problem}, for the answer 'what'") as e:
            verify(f"mine:{name}", {}, "what")
        assert isinstance(e.value, FoundryError) and e.value.verifier == f"mine:{name}"


@pytest.mark.parametrize(
    "text", ["def f(:\n", "import nothing_of_this_name\n", "x = 1\n", "raise RuntimeError('no')\n"]
)
def test_a_file_without_verifiers_is_refused(tmp_path, text):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(DataError, match=r"mine\.py (cannot be read as a Python file of verifiers|has no verifier)"):
        load_verifiers(tmp_path / "mine.py")
