"""The published quality rules: equal to a slow and obvious method, exact at their thresholds, fair to Chinese."""

import random
from collections import Counter
from pathlib import Path

import pytest
from cleaning import MINE, rejected, run, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry.config import ConfigError
from foundry.config.corpus import C4, Clean, FineWeb, GopherQuality, GopherRepetition
from foundry.data.clean.rules import Rules
from foundry.data.clean.web_rules import c4, fineweb, gopher_quality, gopher_repetition, repeated
from foundry.data.text.tokens import read_tokens
from foundry.data.text.words import gram_words, tokens

SETS = ("gopher_quality", "gopher_repetition", "c4", "fineweb")


def apply(text, lang="en", **switches):
    params = Clean(min_chars=1, max_symbol_ratio=1, max_dup_line_ratio=1, max_top_ngram_ratio=1, **switches)
    return Rules(params, Path()).apply(text, lang)


def verdict(text, lang="en", *names, **values):
    return apply(text, lang, **{n: {"enabled": True, **values} for n in names or SETS})[2]


# An independent method with the same numbers: strings, sets and counters.


def slow_top(words, n):
    grams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
    gram, times = Counter(grams).most_common(1)[0]
    return len(gram) * times if times > 1 else 0


def slow_covered(words, n):
    seen, covered, i = set(), 0, 0
    while i + n <= len(words):
        gram = tuple(words[i : i + n])
        if gram in seen:
            covered += sum(map(len, gram))
            i += n
        else:
            seen.add(gram)
            i += 1
    return covered


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "bb", "ccc", "dd", "e"]), min_size=1, max_size=60),
    st.integers(2, 4),
    st.integers(5, 10),
    st.floats(0.01, 0.9),
)
def test_repeated_grams_are_those_of_the_slow_method(words, top, dup, share):
    text = " ".join(words)
    off = {"max_dup_lines": 1.0, "max_dup_paragraphs": 1.0, "max_dup_line_chars": 1.0, "max_dup_paragraph_chars": 1.0}
    only_top = GopherRepetition(**off, max_top_ngram_chars={str(top): share}, max_dup_ngram_chars={})
    only_dup = GopherRepetition(**off, max_top_ngram_chars={}, max_dup_ngram_chars={str(dup): share})
    both = GopherRepetition(**off, max_top_ngram_chars={str(top): share}, max_dup_ngram_chars={str(dup): share})
    expected = slow_top(words, top) / len(text) if len(words) >= top else 0
    document = text, *read_tokens([text])
    found = gopher_repetition([document], only_top)[0]
    assert (found.value if found else 0) == (pytest.approx(expected) if expected > share else 0)
    covered = slow_covered(words, dup) / len(text)
    found_dup = gopher_repetition([document], only_dup)[0]
    assert (found_dup.value if found_dup else 0) == (pytest.approx(covered) if covered > share else 0)
    assert gopher_repetition([document], both)[0] == (found or found_dup)


@given(st.lists(st.sampled_from(["x", "yy", "z"]), max_size=12))
def test_repeated_pieces(pieces):
    again = [p for i, p in enumerate(pieces) if p in pieces[:i]]
    assert repeated(pieces) == (len(again), sum(map(len, again)))


def prose(n, seed=0):
    """Sentences of nine words with stop words and full stops, a few to a line."""
    rng = random.Random(seed)
    words = [
        a + b for a in ("ba", "ce", "di", "fo", "gu", "ka") for b in ("lon", "rest", "ming", "tur", "shel", "vand")
    ]
    out = []
    for i in range(n):
        some = rng.sample(words, 6)
        out.append(
            f"The {' '.join(some[:3])} of the {' '.join(some[3:])} and".removesuffix(" and")
            + "."
            + ("\n" if i % 3 == 2 else "")
        )
    return " ".join(out).replace("\n ", "\n")


def test_good_prose_passes_all_sets():
    assert verdict(prose(30)) is None


ELLIPSES = "\n".join(["the line with the end of a read more…"] * 10 + [prose(40)])
LONG_REPEATS = "\n".join(["a long line that repeats itself " * 3] * 2 + [f"w{i}" for i in range(9)])
NO_STOPS = "\n".join(["a line of the text without an end", *(f"and {i} more lines of words" for i in range(20))])
CASES = [
    ("gopher_quality", "min_words", "The cat sat with the dog. " * 5, {}),
    ("gopher_quality", "max_words", prose(30), {"max_words": 60}),
    ("gopher_quality", "min_mean_word_length", "to be of a an it is on up so " * 10, {}),
    ("gopher_quality", "max_mean_word_length", "the extraordinarily incomprehensible misunderstanding of " * 20, {}),
    ("gopher_quality", "max_symbol_word_ratio", prose(10) + " # tag" * 20, {}),
    ("gopher_quality", "max_symbol_word_ratio", prose(10) + " word ..." * 20, {}),
    ("gopher_quality", "max_bullet_lines", "\n".join("- the part of the list that follows" for _ in range(20)), {}),
    ("gopher_quality", "max_ellipsis_lines", ELLIPSES, {}),
    ("gopher_quality", "min_alpha_words", "the 123 456 of 789 1000 2000 3000 4000 " * 10, {}),
    ("gopher_quality", "min_stop_words", "balon cerest diming fotur gushel kavand " * 12, {}),
    ("gopher_repetition", "max_dup_paragraphs", "\n\n".join(["the same"] * 4 + ["another one"] * 1), {}),
    ("gopher_repetition", "max_dup_lines", "\n".join(["the same"] * 4 + ["another one"] * 1), {}),
    ("gopher_repetition", "max_dup_line_chars", LONG_REPEATS, {}),
    ("gopher_repetition", "max_top_ngram_chars.2", "buy now and buy now or buy now then buy now", {}),
    ("c4", "min_sentences", "One sentence. Two sentences. Three here. Four here.", {}),
    ("c4", "min_sentences", "\n".join(["A menu entry without an end"] * 10), {}),
    ("c4", "drop_lorem_ipsum", prose(10) + "\nThis is Lorem Ipsum text.", {}),
    ("c4", "drop_curly_bracket", prose(10) + "\nif (x) { return the value.", {}),
    ("fineweb", "min_line_punctuation", NO_STOPS, {}),
    ("fineweb", "max_short_lines", "\n".join(f"Short {i}." for i in range(10)), {}),
    ("fineweb", "max_dup_line_chars", prose(30) + "\nThis very line stands in the text twice over.\n" * 2, {}),
    ("fineweb", "max_newline_ratio", "\n".join(f"{'x' * 31}{i}." for i in range(20)), {}),
]


@pytest.mark.parametrize(("name", "rule", "text", "values"), CASES, ids=[f"{c[1]}-{i}" for i, c in enumerate(CASES)])
def test_each_rule_gives_its_measure(name, rule, text, values):
    found = verdict(text, "en", name, **values)
    assert (found.reason, found.rule) == (name, rule) and found.value != found.threshold
    assert apply(text)[2] is None  # switched off


def test_thresholds_are_the_published_ones():
    assert GopherQuality().model_dump() == {
        "enabled": False,
        "min_words": 50,
        "max_words": 100_000,
        "min_mean_word_length": 3.0,
        "max_mean_word_length": 10.0,
        "max_symbol_word_ratio": 0.1,
        "max_bullet_lines": 0.9,
        "max_ellipsis_lines": 0.3,
        "min_alpha_words": 0.8,
        "min_stop_words": 2,
    }
    repetition = GopherRepetition()
    assert list(repetition.max_dup_ngram_chars.values()) == [0.15, 0.14, 0.13, 0.12, 0.11, 0.10]
    assert list(repetition.max_top_ngram_chars.values()) == [0.2, 0.18, 0.16]
    assert (FineWeb().min_line_punctuation, FineWeb().max_short_lines, FineWeb().max_dup_line_chars) == (
        0.12,
        0.67,
        0.01,
    )


def test_rules_are_exact_at_the_threshold():
    words = ["the", "with"] + [f"wo{i:03d}" for i in range(48)]
    p = GopherQuality()
    enough, few = (" ".join(x) for x in (words, words[:-1]))
    assert gopher_quality(enough, *read_tokens([enough]), "en", p) is None
    assert gopher_quality(few, *read_tokens([few]), "en", p) == ("min_words", 49, 50)
    lines = ["Ends with a stop, as lines of thirty and more do."] * 3 + [
        "no stop at its end, thirty and more long"
    ] * 22
    p = FineWeb(max_dup_line_chars=1.0)
    assert fineweb("\n".join(lines), p) is None  # 0.12 exactly
    assert fineweb("\n".join(lines[1:]), p).rule == "min_line_punctuation"
    text = "A first line stands here. " * 5
    assert c4(text, C4())[1] is None
    assert c4("A first line stands here. " * 4, C4())[1] == ("min_sentences", 4, 5)


def test_c4_drops_lines_and_leaves_the_rest():
    good = [f"This is line number {i} of the text." for i in range(6)]
    bad = [
        "Home | About | Contact",
        "Two words.",
        "Please enable JavaScript to go on.",
        "We use cookies to serve you.",
        "x" * 1001 + " and so on.",
    ]
    text, words, found = apply(
        "\n".join(x for pair in zip(good, [*bad, ""], strict=True) for x in pair), c4={"enabled": True}
    )
    assert found is None and text.split("\n") == good and words.names() == gram_words(text)
    assert apply("Cited[12] text here[edit] stands. " * 6, c4={"enabled": True})[0].count("[") == 0


def test_c4_removes_lines_in_the_stage(project, write_jsonl):
    some = [prose(20, i) + "\nHome About Contact" for i in range(100)]
    write_jsonl(project / "corpus/a.jsonl", [*some, "\n".join(["menu entry"] * 30)])
    report = run(MINE, c4={"enabled": True}, max_dup_line_ratio=1.0, max_top_ngram_ratio=1.0)
    assert report["documents"]["dropped"]["c4"] == 1 and report["documents"]["kept"] == 100
    assert not any("Contact" in t for t in texts())
    (one,) = rejected()
    assert (one["reason"], one["rule"], one["value"], one["threshold"]) == ("c4", "min_sentences", 0, 5)


CHINESE = (
    "春天来了，山上的花都开了。孩子们在河边放风筝，老人坐在树下喝茶，谈论着今年的收成。\n"
    "村子后面有一条小路，一直通到山顶的古庙。庙里住着一位老和尚，他每天早上都要敲钟，钟声传得很远很远。\n"
    "有一年夏天下了很大的雨，河水涨了起来，把桥冲走了。村民们商量了三天，决定一起修一座新的石桥。\n"
    "石头是从十里外的采石场运来的，每块都有几百斤重。大家白天干活，晚上围着火堆唱歌，不觉得辛苦。\n"
    "到了秋天，新桥终于修好了。第一个走过桥的是那位老和尚，他说：“这座桥会比我们每个人都活得更久。”\n"
)


@pytest.mark.parametrize("lang", ["zh", "und"])
def test_good_chinese_passes_all_sets(lang):
    text, words, found = apply(CHINESE, lang, **{n: {"enabled": True} for n in SETS})
    assert found is None and text == CHINESE.strip() and len(words.names()) > 150


@pytest.mark.parametrize(
    ("name", "rule", "text"),
    [
        ("gopher_quality", "min_words", "今天天气很好。"),
        ("gopher_quality", "min_mean_word_length", "价格：１２￥，３４￥；" * 20),
        ("gopher_quality", "min_stop_words", "".join(chr(0x4E00 + 7 * i) for i in range(40, 120))),
        ("gopher_repetition", "max_top_ngram_chars.2", "点击这里" * 20),
        ("c4", "min_sentences", "首页\n新闻中心\n联系我们\n关于我们\n"),
        ("c4", "min_sentences", "我们使用cookie来改善服务。\n" * 9),
        (
            "fineweb",
            "min_line_punctuation",
            "首页导航栏目内容列表更多新闻资讯\n"
            + "".join(f"第{i}个栏目没有标点符号结尾的一行内容\n" for i in range(20)),
        ),
        ("fineweb", "max_short_lines", "短句。\n很短。\n太短。\n"),
    ],
)
def test_bad_chinese_is_dropped_by_characters(name, rule, text):
    found = verdict(text, "zh", name)
    assert (found.reason, found.rule) == (name, rule)


def test_tokens_are_words_and_marks():
    assert tokens("Don't pay $3.50, e.g. now...") == ["Don", "'t", "pay", "$", "3.50", ",", "e.g.", "now", "..."]
    assert tokens("我爱NLP。") == ["我", "爱", "NLP", "。"]


def test_block_lists(project, story, write_jsonl):
    (project / "corpus").mkdir()
    (project / "corpus/block.txt").write_text("# a list\nbadword\nvery bad phrase\n坏词\n", encoding="utf-8")
    good = [story(i) for i in range(100)]
    bad = [f"{story(200)} A Badword.", f"{story(201)} a very\nbad phrase", f"{story(202)} 这里有坏词吗"]
    fine = [f"{story(300)} badwords very bad phrases", f"{story(301)} bad word, very badly, 坏 词"]
    write_jsonl(project / "corpus/a.jsonl", [*good, *bad, *fine])
    report = run(MINE, block_lists=["corpus/block.txt"])
    assert report["documents"]["dropped"]["blocked"] == 3 and report["documents"]["kept"] == 102
    assert sorted(r["rule"] for r in rejected() if r["reason"] == "blocked") == ["badword", "very bad phrase", "坏词"]
    for name, content, message in (("none.txt", None, "cannot be read"), ("empty.txt", "#\n", "contains no word")):
        if content:
            (project / f"corpus/{name}").write_text(content)
        with pytest.raises(ConfigError, match=message):
            run(MINE, block_lists=[f"corpus/{name}"])
