"""Single steps of cleaning: personal data, language, repeated lines, evaluation text, n-grams, examples."""

import json
import random

import numpy as np
import pytest
from cleaning import MINE, OUT, REPORTS, refused, rejected, rows, run, texts
from hypothesis import given
from hypothesis import strategies as st

from foundry.config import ConfigError
from foundry.data.clean.language import identify
from foundry.data.clean.repeats import piece_hashes, without
from foundry.data.clean.scrub import TOKENS, scrub
from foundry.data.clean.unit import Repaired, Samples
from foundry.data.text.grams import gram_hashes

ALL = list(TOKENS)


def luhn(digits):
    """Independent of the code under test: double every second digit from the right, sum the digits."""
    total = 0
    for i, d in enumerate(int(c) for c in reversed(digits)):
        total += sum(map(int, str(2 * d))) if i % 2 else d
    return total % 10 == 0


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("write to john.doe+x@mail.example.co.uk, please", "write to [EMAIL], please"),
        ("me@example.org.", "[EMAIL]."),
        ("card 4111 1111 1111 1111, 4111-1111-1111-1111, 4111111111111111", "card [CARD], [CARD], [CARD]"),
        ("身份证号 11010519491231002X。", "身份证号 [ID]。"),
        ("from 8.8.8.8 to 2001:4860:4860::8888", "from [IP] to [IP]"),
        ("call (212) 555-0199 or 212-555-0199", "call [PHONE] or [PHONE]"),
        ("+44 20 7946 0018, +8613800138000", "[PHONE], [PHONE]"),
        ("手机13800138000或010-62345678", "手机[PHONE]或[PHONE]"),
    ],
)
def test_personal_data_is_replaced(text, clean):
    assert scrub(text, ALL)[0] == clean
    assert scrub(text, []) == (text, {})
    assert scrub(clean, ALL) == (clean, {})


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112 fails Luhn",
        "11010519491231002Y, 110105194912310021, 11010519491331002X: wrong letter, checksum, month",
        "192.168.1.1 and 127.0.0.1 are nobody's; version 1.2.3.4.5; 999.1.1.1",
        "at 12:30:45, std::vector, a::b, C:\\x",
        "1939-1945, 1,234,567 people, 3.14159265358979, ISBN 978-3-16-148410-0",
        "Preheat to 350 degrees for 1 1/2 hours; serves 4 - 6. 1990 2000 2010 2020",
        "@mention and foo@bar, a@b.c",
        "π = 3.1415926535 8979323846",
    ],
)
def test_what_only_looks_like_personal_data_stays(text):
    assert scrub(text, ALL) == (text, {})


@given(st.text(alphabet="0123456789", min_size=16, max_size=16), st.sampled_from([" ", "-", ""]))
def test_cards_are_those_that_pass_luhn(digits, separator):
    number = separator.join(digits[i : i + 4] for i in range(0, 16, 4))
    text, found = scrub(f"no. {number} end", ["card"])
    assert (text == "no. [CARD] end") == (luhn(digits) and digits[0] in "3456") == bool(found)


def test_personal_data_is_counted_in_the_report(project, story, write_jsonl):
    some = [story(i) for i in range(100)]
    some[3] += " Write to a@example.org or b@example.org."
    write_jsonl(project / "corpus/a.jsonl", some)
    report = run(MINE)
    assert report["documents"]["repaired"] == {"scrubbed_email": 2}
    assert any(t.endswith("Write to [EMAIL] or [EMAIL].") for t in texts())
    assert run(MINE, scrub=["phone"])["documents"]["repaired"] == {}


LANGUAGES = {
    "en": "The history of the city goes back to the time when the river was still the border of the kingdom.",
    "de": "Die Geschichte der Stadt reicht zurück bis in die Zeit, in der der Fluss noch die Grenze des Reiches war.",
    "fr": "L'histoire de la ville remonte à l'époque où la rivière était encore la frontière du royaume.",
    "zh": "这座城市的历史可以追溯到河流仍然是王国边界的时代，那时人们还没有修建桥梁。",
    "ja": "この都市の歴史は、川がまだ王国の国境だった時代にさかのぼります。",
    "ru": "История города восходит ко временам, когда река ещё была границей королевства.",
    "ar": "يعود تاريخ المدينة إلى الوقت الذي كان فيه النهر لا يزال حدود المملكة.",
}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_language_is_identified_without_a_network(lang):
    seen, score = identify(LANGUAGES[lang], 0.5)
    assert seen == lang and score > 0.5
    assert identify("1 2 3", 0.9)[0] == "und"


def test_classical_chinese_is_not_japanese():
    assert identify("白日依山盡，黃河入海流。欲窮千里目，更上一層樓。", 0.5)[0] == "zh"


def test_languages_are_identified_and_chosen(project, write_jsonl):
    rng = random.Random(1)
    some = []
    for i in range(120):
        words = LANGUAGES[("en", "fr", "de")[i % 3]].split()
        some.append(" ".join(words + [w for _ in range(3) for w in rng.sample(words, len(words))]))
    write_jsonl(project / "corpus/a.jsonl", some)
    source = {"name": "mine", "url": "file:corpus/*.jsonl"}
    assert run(source)["languages"] == {"de": 40, "en": 40, "fr": 40}
    assert run(source, identify_language=False)["languages"] == {"und": 120}
    report = run(source, languages=["fr"], max_rejected=0.8, val_fraction=0.1)
    assert report["languages"] == {"fr": 40} and report["documents"]["dropped"]["language"] == 80
    assert {r["rule"] for r in rejected()} == {"languages (en)", "languages (de)"}
    run({**source, "lang": "en"}, val_fraction=0.2, test_fraction=0.2)
    assert json.loads((REPORTS / "clean.json").read_text())["languages"] == {
        "en": 120
    }  # the language of the source counts


def test_normalization_can_be_turned_off(project, story, write_jsonl):
    some = [story(i) for i in range(100)]
    some[3] += " two  spaces, a\u200bzero, e\u0301 ▁ end"
    write_jsonl(project / "corpus/a.jsonl", some)
    report = run(MINE)
    assert report["documents"]["repaired"] == {"normalized": 1}
    assert any(t.endswith("two spaces, azero, é end") for t in texts())
    assert run(MINE, normalize=False)["documents"]["repaired"] == {}
    assert any(t.endswith("two  spaces, a\u200bzero, e\u0301   end") for t in texts())  # U+2581 could not come back


def test_lines_of_many_documents_are_removed(project, story, write_jsonl):
    notice, rare = "Accept all cookies to go on reading", "This line stands in two documents only"
    some = [f"{story(i)}\n{notice}\n{story(1000 + i)}" for i in range(90)]
    some[5] += f"\n{rare}"
    some[6] += f"\n{rare}"
    some[7] += f"\n{notice}"  # twice in one document counts once
    write_jsonl(project / "corpus/a.jsonl", some)
    report = run(MINE, max_line_documents=2)
    assert report["documents"]["repaired"]["repeated_lines"] == 91
    assert not any(notice in t for t in texts()) and sum(rare in t for t in texts()) == 2
    assert run(MINE)["documents"]["repaired"] == {}
    assert sum(notice in t for t in texts()) == 90
    assert run(MINE, max_line_documents=90)["documents"]["repaired"] == {}  # not more than 90


def test_paragraphs_of_many_documents_are_removed(project, story, write_jsonl):
    notice = story(5000, 40) + "\n" + story(5001, 20)
    write_jsonl(project / "corpus/a.jsonl", [f"{story(i)}\n\n{notice}\n\nThe end." for i in range(90)] + [notice] * 3)
    report = run(MINE, max_paragraph_documents=5, exact_dedup=False, near_dedup="ignore")
    assert report["documents"]["repaired"]["repeated_paragraphs"] == 93
    assert report["documents"]["dropped"]["too_short"] == 3  # nothing was left of them
    assert not any(notice in t for t in texts())


def test_pieces_are_found_whatever_white_space_is_around_them():
    hashes = np.array(sorted(piece_hashes("  A line of twenty chars.  \nshort", "\n", 20)), np.uint64)
    assert len(hashes) == 1
    assert without("x\n\tA line of twenty chars.\ny", "\n", 20, hashes) == ("x\ny", 1)


def test_near_duplicates_can_be_kept_in_one_split(project, story, write_jsonl):
    rng = random.Random(2)
    some = []
    for i in range(80):
        words = story(i, 80).split()
        for _ in range(3):
            words[rng.randrange(80)] = f"w{rng.randrange(10**6)}"
            some.append(" ".join(words))
    rng.shuffle(some)
    write_jsonl(project / "corpus/a.jsonl", some)
    report = run(MINE, near_dedup="group", val_fraction=0.3, test_fraction=0.3)
    assert report["documents"]["kept"] == 240
    seen = {}
    for split in ("train", "val", "test"):
        for r in rows(split):
            seen.setdefault(r["text"].split()[40] + r["text"].split()[41], set()).add(split)
    one = sum(len(s) == 1 for s in seen.values())
    assert one >= len(seen) - 3


def permuted(story, groups, variants):
    """Groups of texts of ten sentences of fifteen words in other orders: any two are about 60 % alike."""
    rng = random.Random(4)
    for g in range(groups):
        sentences = [story(1000 * g + k, 15) for k in range(10)]
        for _ in range(variants):
            rng.shuffle(sentences)
            yield " ".join(sentences)


def splits_of_groups(groups):
    """{what every text of a group shares: its splits}"""
    seen = {}
    for split in ("train", "val", "test"):
        for r in rows(split):
            seen.setdefault(min(r["text"].split(". ")).rstrip("."), set()).add(split)
    assert len(seen) == groups
    return seen


def test_similar_documents_are_in_one_split_and_leakage_is_counted(project, story, write_jsonl):
    write_jsonl(project / "corpus/a.jsonl", list(permuted(story, 100, 6)))
    report = run(MINE, val_fraction=0.1, test_fraction=0.1)
    assert report["documents"]["kept"] > 400  # the variants are below the threshold of duplicates
    assert all(len(s) == 1 for s in splits_of_groups(100).values())
    assert report["leakage"]["similar_in_training"]["0.4"] == 0 < report["leakage"]["held_out"]
    assert report["leakage"]["groups"] == 100 and report["leakage"]["grouped"] == report["documents"]["kept"]
    off = run(MINE, val_fraction=0.1, test_fraction=0.1, split_similarity=1)
    assert off["documents"] == report["documents"] and off["leakage"]["groups"] == 0
    straddling = sum(len(s) > 1 for s in splits_of_groups(100).values())
    assert straddling > 50 and off["leakage"]["similar_in_training"]["0.4"] > 50


def test_a_group_larger_than_a_held_out_share_is_training_text(project, story, write_jsonl):
    base = story(77, 140).split()
    some = [" ".join([*base, *story(k, 80).split()]) for k in range(60)]  # one page's frame around other texts
    write_jsonl(project / "corpus/a.jsonl", [*some, *(story(500 + k, 80) for k in range(140))])
    report = run(MINE, val_fraction=0.1, test_fraction=0.1)
    assert report["leakage"]["largest"] == 60 and report["documents"]["kept"] == 200
    held_out = [r["text"] for split in ("val", "test") for r in rows(split)]
    assert held_out and not any(t.startswith(base[0]) for t in held_out)


def test_evaluation_text_is_kept_out(project, story, write_jsonl):
    some = [story(i) for i in range(120)]
    question = " ".join(some[7].split()[20:40])
    (project / "corpus").mkdir()
    (project / "corpus/eval").mkdir()
    lines = [{"question": question, "choices": ["yes", "no"]}, {"q": " ".join(some[9].split()[5:17])}]
    (project / "corpus/eval/set.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (project / "corpus/eval/book.txt").write_text("Before.\n" + some[11])
    write_jsonl(project / "corpus/a.jsonl", some)
    report = run(MINE, decontaminate=["corpus/eval/*"])
    assert report["documents"]["dropped"]["contaminated"] == 2  # 12 words are no 13-gram
    assert not {some[7], some[11]} & set(texts()) and some[9] in texts()
    found = [r for r in rejected() if r["reason"] == "contaminated"]
    assert sorted(r["record"] for r in found) == [7, 11] and all(r["value"] >= 8 for r in found)
    assert (
        run(MINE, decontaminate=["corpus/eval/*"], decontaminate_ngram=12)["documents"]["dropped"]["contaminated"] == 3
    )
    assert run(MINE)["documents"]["dropped"]["contaminated"] == 0


def test_chinese_evaluation_text_is_found_by_characters(project, write_jsonl):
    rng = random.Random(4)
    letters = [chr(0x4E00 + i) for i in range(3000)]
    some = ["".join(rng.choices(letters, k=150)) for _ in range(120)]
    (project / "corpus/eval").mkdir(parents=True)
    (project / "corpus/eval/q.txt").write_text(f"「{some[3][40:53]}」")
    write_jsonl(project / "corpus/a.jsonl", some)
    report = run(MINE, decontaminate=["corpus/eval/q.txt"], val_fraction=0.1)
    assert report["documents"]["dropped"]["contaminated"] == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "matches no file"),
        ("a.csv", "x", "neither .txt nor .jsonl"),
        ("a.jsonl", "{", "line 1 is not JSON"),
    ],
)
def test_a_wrong_evaluation_set_is_refused(project, story, write_jsonl, name, content, message):
    write_jsonl(project / "corpus/a.jsonl", [story(i) for i in range(100)])
    if content:
        (project / "corpus" / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        run(MINE, decontaminate=[f"corpus/{name}"])
    assert not OUT.exists()


@given(st.lists(st.sampled_from("abcd"), max_size=40), st.integers(1, 13))
def test_gram_hashes_are_equal_where_grams_are(words, n):
    hashes = gram_hashes(words, n).tolist()
    grams = [tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))] if words else []
    assert len(hashes) == len(grams)
    assert len({*zip(hashes, grams, strict=True)}) == len(set(hashes)) == len(set(grams))


@given(st.lists(st.integers(0, 200)), st.integers(1, 5))
def test_samples_do_not_depend_on_the_order(values, size):
    def sample(order):
        samples = Samples(size)
        for v in order:
            samples.add("r", Repaired(str(v), 0, "", ""))
        return samples.lists()

    assert sample(values) == sample(sorted(values)) == sample(values[::-1])


def test_all_dropped_by_language_names_the_rule(project, story, write_jsonl):
    write_jsonl(project / "corpus/a.jsonl", [LANGUAGES["de"] + f" {i}" for i in range(40)])
    assert "clean.languages" in refused("language 40", MINE, languages=["fr"])
