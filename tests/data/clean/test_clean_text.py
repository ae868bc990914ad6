"""Normal form and rules: what is repaired, what is not changed, and which rule drops what."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry.config import Clean
from foundry.data.clean.markup import strip_html
from foundry.data.clean.normalize import _ftfy, fix_mojibake, normalize
from foundry.data.clean.rules import Rules, dup_line_ratio, symbol_ratio, top_ngram_ratio
from foundry.data.text.words import gram_words


@pytest.mark.parametrize(
    "broken, right",
    [
        ("The caf\u00c3\u00a9 isn\u00e2\u20ac\u2122t open", "The café isn\u2019t open"),
        ("schÃ¶n\nplain line", "schön\nplain line"),
        ("\x1b[1mbold\x1b[0m", "bold"),
    ],
)
def test_mojibake_is_repaired(broken, right):
    assert fix_mojibake(broken) == right


@pytest.mark.parametrize(
    "text",
    [
        "“curly” ‘quotes’ — dash…",
        "ﬁne ligature",
        "ＡＢＣ１２３ full width",
        "½ cup, 350 °F, x² ± 3 µm",
        "naïve Ærø Żółć",
        "中文，标点。",
        "&amp; <b>",
    ],
)
def test_good_text_is_not_touched_by_the_mojibake_repair(text):
    assert fix_mojibake(text) == text


@pytest.mark.parametrize(
    "text, plain",
    [
        ("2 tbs<nowiki/>p oil", "2 tbsp oil"),
        ("shell.<ref></ref> Pull", "shell. Pull"),
        ('acid <ref group="N">In the <i>US</i></ref>; salt <ref name="a" /> and <ref>b</ref>.', "acid ; salt  and ."),
        ("Prep: 5 minutes<br/>Chilling: 60", "Prep: 5 minutes\nChilling: 60"),
        ('<p class="x">One</p><p>Two</p>', "\nOne\n\nTwo\n"),
        ("see <a href=\"x?a=1&amp;b=2\" title='y'>here</a>", "see here"),
        ("<!-- hidden\ncomment -->shown<script>x < y</script>", "shown"),
        ("&frac12; cup &deg;F &#189; &#xBD; &amp;lt; Fish &amp; chips", "½ cup °F ½ ½ &lt; Fish & chips"),
        ("escaped &lt;b&gt; stays", "escaped <b> stays"),
    ],
)
def test_markup_is_removed(text, plain):
    assert strip_html(text) == plain


@pytest.mark.parametrize(
    "text",
    [
        "if a < b and c > d",
        "0 ≤ x<2 and y>1",
        "vector<T> x; map<String, int>",
        "AT&T, R&D; Q&A",
        "a &copy without semicolon &notit",
        "<3 and <- and ->",
        "me <me@example.org>",
        "if a <b and c> d",
        "#include <stdio.h>",
        "&unknownentity; stays",
        "a List<Object> and an Option<S>, a Vec<Option<Table>>, a Map<String, Object>",
        "std::vector<label> or Box<b> in prose",
        "markers like <s>, </s> bound a sequence; <s> and </s> are symbols",
        "write `<b>bold</b>` or `<br>` to break a line",
        "```\n<p>shown as it is</p>\n<!-- a comment -->\n```",
        'Run print("<b>hello</b>") and see.',
    ],
)
def test_text_that_only_looks_like_markup_stays(text):
    assert strip_html(text) == text


CODE = [
    'String s = "<p>Hello, <b>you</b> &amp; me</p>";\nList<Object> all = new ArrayList<Object>();\nreturn s;',
    "def page(name):\n    # the page\n    return '<h1>' + name + '</h1><br>'",
    "fn take(x: Option<S>) -> Vec<u> {\n    x.map(|a| a).collect()\n}",
    "export const A = () => (\n  <div className={x}>\n    <b>hi</b>\n  </div>\n);\nconst b = 'x';\nlet c = 1;",
]


@pytest.mark.parametrize("code", CODE)
def test_code_keeps_its_type_parameters_and_string_literals(code):
    assert strip_html(code) == code
    assert strip_html(code, "strip") != code
    # A program inside running text that has markup of its own: the markup is removed, string literals are not.
    literal = 'let s = "<i>x</i>";'
    mixed = "<p>Some words.</p>" + "\nMore words that are no code." * 6 + "\n" + literal
    assert literal in strip_html(mixed) and "<p>" not in strip_html(mixed)


def test_markup_between_type_parameters_is_removed_and_they_stay():
    assert strip_html("<p>A List<Object> of <b>things</b></p>") == "\nA List<Object> of things\n"


def test_html_written_without_attributes_or_closing_tags_is_removed():
    assert strip_html("one<br>two<BR>three") == "one\ntwo\nthree"
    assert strip_html("<P>First.\n<P>Second.") == "\nFirst.\n\nSecond."
    assert strip_html("<li>salt\n<li>pepper and <em>oil</em>") == "\nsalt\n\npepper and oil"
    assert strip_html("broken </b> tag <br> here") == "broken  tag\nhere"


def test_the_treatment_is_the_sources_choice():
    text = "Option<S> &lt; <b>x</b>"
    assert strip_html(text) == "Option<S> < x"
    assert strip_html(text, "strip") == "Option < x"
    assert strip_html(text, "keep") == text


@pytest.mark.parametrize(
    "text, normal",
    [
        ("a\r\nb\rc\u2028d\x85e\x0cf", "a\nb\nc\nd\ne\nf"),
        ("the field  of\xa0the \u2009 field \n\n\n\nend  ", "the field of the field\n\nend"),
        ("def f():\n    return\t1\n\tx", "def f():\n    return 1\n\tx"),
        ("a\x00b\x07c\x7fd\u200be\u2060f\ufeffg\xadh\u202ei\ufffej", "abcdefghij"),
        ("e\u0301 u\u0308 A\u030a \u212b", "é ü Å Å"),
        ("one▁two", "one two"),
        ("no\u200dise \u200cx\u200c", "noise x"),
        ("می\u200cخواهم 👩\u200d🍳 क्\u200dष", "می\u200cخواهم 👩\u200d🍳 क्\u200dष"),
        ("x² ½ ﬁ Ａ \u3000中", "x² ½ ﬁ Ａ 中"),
    ],
)
def test_spaces_line_ends_and_invisible_characters_have_one_form(text, normal):
    assert normalize(text) == normal


def test_normal_form_is_stable(story):
    wild = "".join(
        map(
            chr,
            [
                *range(1, 0x300),
                *range(0x2000, 0x2100),
                *range(0xFF00, 0xFFFE),
                0x1F469,
                0x200D,
                0x1F373,
                0x212A,
                0x200C,
                0x37E,
            ],
        )
    )
    for text in (wild, wild[::-1], "K\u200d\u0301x", "a\u200b\u200d\u200dé", story(1)):
        once = normalize(text)
        assert normalize(once) == once


def test_each_rule_drops_its_own_kind_and_good_text_passes(story):
    rules = Clean(min_chars=50, max_chars=2000)
    cases = {
        "too_short": "Short.",
        "too_long": story(0, 500),
        "symbol_ratio": "$$$ ==== ++++ <<<< >>>> ||| ~~~ ^^^ " * 4 + "word",
        "duplicate_lines": "\n".join([story(1, 8), *["the same line again"] * 3, story(2, 8)]),
        "repeated_ngrams": "buy now cheap " * 7,
        None: story(3, 40),
    }
    for reason, text in cases.items():
        text = normalize(text)
        verdict = Rules(rules, Path()).apply(text, "en")[2]
        assert (verdict and verdict.reason) == reason


def test_rules_come_in_the_order_of_the_parameters():
    text = "=" * 20
    assert Rules(Clean(), Path()).apply(text, "en")[2].reason == "too_short"
    text = "spam and eggs\n" * 40_000
    assert Rules(Clean(), Path()).apply(text, "en")[2].reason == "too_long"


def test_symbols_are_counted_and_letters_of_any_script_are_not():
    assert symbol_ratio("ab==") == 0.5
    assert symbol_ratio("") == 0.0
    for text in ("中文，标点。「」", "हिन्दी भाषा", "ภาษาไทย", "été — “ça” 12 %", "עברית، العربية"):
        assert symbol_ratio(text) == 0.0
    assert symbol_ratio("\ufffd" * 5 + "abcde") == 0.5


def test_repeated_lines_are_counted_without_empty_ones():
    assert dup_line_ratio("a\n\nb\n\na\n\nc") == 0.25
    assert dup_line_ratio("") == 0.0


def test_top_ngram_covers_its_share_and_a_topics_name_covers_nothing():
    words = gram_words(
        "salt and pepper " * 5 + " ".join(f"w{i:02d}x" for i in range(13))
    )  # 5 * 13 = 65 letters of 65 + 52
    assert top_ngram_ratio(words) == pytest.approx(65 / 117)
    assert (
        top_ngram_ratio(
            gram_words("Pope Alexander VI was head of the Church. Pope Alexander VI died. Pope Alexander VI lived.")
        )
        == 0.0
    )
    assert top_ngram_ratio([]) == 0.0


def test_gram_words_are_words_or_characters_of_scripts_without_spaces():
    assert gram_words("The Cat's 2 mice") == ["the", "cat", "s", "2", "mice"]
    assert gram_words("我爱 NLP。") == ["我", "爱", "nlp"]
    assert gram_words("ไทย กา") == ["ไ", "ท", "ย", "ก", "า"]
    assert gram_words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert gram_words("ひらカナ") == ["ひ", "ら", "カ", "ナ"]


PARTS = st.tuples(
    st.text(st.sampled_from("abc é–’“中文字，。アñß\u00a0\ufffd😀ก½"), max_size=12),
    st.sampled_from(["right", "latin-1", "cp1252", "cp1251"]),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(PARTS, max_size=5))
def test_a_line_that_is_not_examined_is_one_that_ftfy_does_not_change(parts):
    text = "".join(t if how == "right" else t.encode().decode(how, "replace") for t, how in parts)
    fix, config = _ftfy()
    assert fix_mojibake(text) == "\n".join(fix(line, config) for line in text.split("\n"))
