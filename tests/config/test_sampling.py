"""The table of sampling parameters: it refuses what breaks a rule, and says which."""

import math
from pathlib import Path

import numpy as np
import pytest

from foundry.config import ConfigError
from foundry.config.sampling import PARAMETER, PARAMETERS, Sampling


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, r"temperature must be a number in \[0, 1000\] \(0 = greedy\), got -0.1"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"temperature": math.inf}, "temperature must be"),
        ({"temperature": True}, "temperature must be"),
        ({"temperature": None}, "temperature must be"),
        ({"temperature": 10**400}, "temperature must be"),
        ({"top_k": -1}, r"top_k must be an integer of at least 0 \(0 = off\), got -1"),
        ({"top_k": 1.5}, "top_k must be"),
        ({"top_p": 0}, r"top_p must be a number in \(0, 1\] \(1 = off\), got 0"),
        ({"top_p": "0.5"}, "top_p must be"),
        ({"min_p": 1.1}, "min_p must be"),
        ({"typical_p": 0.0}, "typical_p must be"),
        ({"top_n_sigma": -1}, "top_n_sigma must be"),
        ({"dynatemp_exponent": 0}, "dynatemp_exponent must be"),
        ({"dynatemp_range": 0.5, "temperature": 0}, "dynatemp_range must be 0 when temperature is 0"),
        ({"top_p_decay": 0}, "top_p_decay must be"),
        ({"top_p_decay": 0.9, "top_p": 0.3, "top_p_min": 0.5}, r"top_p_min must be at most top_p \(0.3\), got 0.5"),
        ({"top_p_reset_ids": [-1]}, "top_p_reset_ids must be a list of token ids"),
        ({"top_p_reset_ids": 5}, "top_p_reset_ids must be"),
        ({"top_p_reset_ids": [True]}, "top_p_reset_ids must be"),
        ({"repetition_penalty": 0}, "repetition_penalty must be"),
        ({"presence_penalty": 2.5}, r"presence_penalty must be a number in \[-2, 2\] \(0 = off\)"),
        ({"frequency_penalty": -2.5}, "frequency_penalty must be"),
        ({"logit_bias": {5: 101}}, r"logit_bias must be a mapping of token ids to numbers in \[-100, 100\]"),
        ({"logit_bias": {"5": 1}}, "logit_bias must be"),
        ({"logit_bias": {2**31: 1}}, "logit_bias must be"),
        ({"logit_bias": [(1, 2), (1, 3)]}, "logit_bias must name each token id once, got 1 twice"),
        ({"logit_bias": "5"}, "logit_bias must be"),
        ({"min_tokens": -1}, "min_tokens must be"),
        ({"bad_words": [[]]}, "bad_words must be a list of words"),
        ({"bad_words": ["salt"]}, "bad_words must be"),
        ({"bad_words": [3]}, "bad_words must be"),
    ],
)
def test_a_bad_value_is_refused_with_its_rule(options, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**options)


def test_values_of_any_numeric_type_become_plain_ones():
    how = Sampling(top_k=np.int64(4), top_p=np.float32(0.5), bad_words=np.array([[1, 2]]), logit_bias={np.int32(3): 1})
    assert how == Sampling(top_k=4, top_p=0.5, bad_words=((1, 2),), logit_bias=((3, 1.0),))
    assert type(how.top_k) is int and type(how.logit_bias[0][0]) is int and hash(how)


def test_the_bounds_of_every_parameter_are_allowed_and_nothing_beyond():
    for p in PARAMETERS:
        if p.kind not in ("number", "integer"):
            continue
        given = {"top_p": 1.0, "temperature": 1.0} | {p.name: p.low}
        if p.low_open:
            with pytest.raises(ConfigError, match=f"{p.name} must be"):
                Sampling(**given)
        else:
            Sampling(**given)
        if p.high is not None:
            Sampling(**(given | {p.name: p.high}))
            with pytest.raises(ConfigError, match=f"{p.name} must be"):
                Sampling(**(given | {p.name: p.high + 1}))


def test_every_parameter_is_described_in_both_languages_and_its_default_is_allowed():
    for p in PARAMETERS:
        assert p.text.endswith(".") and p.chinese.endswith("。") and p.checked(p.default) == p.default
        assert p.off is None or p.default == p.off
        assert p.usual is None or all(p.low <= x and (p.high is None or x <= p.high) for x in p.usual)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0.5", 0.5),
        ("top_k", "40", 40),
        ("top_p_reset_ids", "5,7", (5, 7)),
        ("top_p_reset_ids", "", ()),
        ("bad_words", "salt, sea salt", ("salt", " sea salt")),
        ("bad_words", "", ()),
        ("logit_bias", "5=-2, 7=1.5", ((5, -2.0), (7, 1.5))),
    ],
)
def test_a_value_can_be_typed(name, text, value):
    assert PARAMETER[name].parsed(text) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [("temperature", "warm"), ("top_k", "1.5"), ("logit_bias", "5"),
     ("logit_bias", "5=1=2"), ("top_p_reset_ids", "a"), ("temperature", "nan")],
)  # fmt: skip
def test_a_text_that_is_no_value_is_refused(name, text):
    with pytest.raises(ConfigError, match=f"{name} must be"):
        PARAMETER[name].parsed(text)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_documentation_has_the_ranges_and_off_values_of_the_table(language):
    text = (Path(__file__).resolve().parents[2] / f"docs/{language}/inference.md").read_text(encoding="utf-8")
    rows = {row[1].strip(" `"): row for line in text.splitlines() if len(row := line.split("|")) == 7}
    for p in PARAMETERS:
        _, _, _, allowed, off, _, _ = rows[p.name]
        if p.kind in ("number", "integer"):
            assert allowed.strip().replace("至少", "at least") == p.range
            assert off.strip() == ("" if p.off is None else f"{p.off:g}")
    assert len(rows) == len(PARAMETERS) + 2
