"""Every option of the official client works or is refused by its name; none is ignored."""

import inspect
import sys

import pytest
from openai import BadRequestError
from openai.resources.chat.completions import Completions as Chat
from openai.resources.completions import Completions as Text
from openai.types.chat import completion_create_params as chat_params

from foundry.config.sampling import PARAMETERS
from foundry.serving.protocol import REFUSED, ChatRequest, CompletionRequest

OF_THE_CLIENT = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
# Options that work, each with a value that the tests beside this one give and look for in the answer or the engine.
WORKS = {
    "chat": {
        *("frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens", "messages", "model"),
        *("n", "presence_penalty", "response_format", "safety_identifier", "seed", "stop", "stream", "stream_options"),
        *("temperature", "top_logprobs", "top_p", "user"),
    },
    "text": {
        *("best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "model", "n"),
        *("presence_penalty", "prompt", "seed", "stop", "stream", "stream_options", "temperature", "top_p", "user"),
    },
}
IS_REFUSED = {
    "chat": {
        "audio": {"voice": "alloy", "format": "wav"},
        "function_call": "auto",
        "functions": [{"name": "f"}],
        "metadata": {"a": "b"},
        "modalities": ["text", "audio"],
        "moderation": {"model": "m"},
        "parallel_tool_calls": True,
        "prediction": {"type": "content", "content": "x"},
        "prompt_cache_key": "k",
        "prompt_cache_options": {"mode": "explicit"},
        "prompt_cache_retention": "24h",
        "reasoning_effort": "low",
        "service_tier": "priority",
        "store": True,
        "tool_choice": "auto",
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "verbosity": "low",
        "web_search_options": {},
    },
    "text": {"suffix": "the end"},
}
MEANS_OFF = [("store", False), ("modalities", ["text"]), ("service_tier", "auto"), ("tool_choice", "none")]


def options(method):
    return set(inspect.signature(method).parameters) - OF_THE_CLIENT


def create(client, kind, **given):
    if kind == "chat":
        return client.chat.completions.create(
            **{"model": "tiny", "messages": [{"role": "user", "content": "a"}], **given}
        )
    return client.completions.create(**{"model": "tiny", "prompt": "a", **given})


def test_the_tables_of_this_file_are_complete():
    assert options(Chat.create) == WORKS["chat"] | set(IS_REFUSED["chat"])
    assert options(Chat.stream) | {"stream"} == options(Chat.parse) | {"stream"} == options(Chat.create)
    assert options(Text.create) == WORKS["text"] | set(IS_REFUSED["text"])
    assert set(chat_params.CompletionCreateParamsBase.__annotations__) <= options(Chat.create)
    sampling = {p.name for p in PARAMETERS}
    assert WORKS["chat"] <= set(ChatRequest.model_fields) | sampling
    assert WORKS["text"] <= set(CompletionRequest.model_fields) | sampling
    assert set(REFUSED) == {*IS_REFUSED["chat"], *IS_REFUSED["text"]}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in IS_REFUSED.items() for name in table])
def test_an_option_that_is_not_supported_is_refused_by_its_name(client, asked, kind, name):
    with pytest.raises(BadRequestError) as e:
        create(client, kind, **{name: IS_REFUSED[kind][name]})
    assert e.value.param == name and name in e.value.message and e.value.code == "unsupported_parameter"
    assert not asked


@pytest.mark.parametrize(("name", "value"), MEANS_OFF)
def test_a_value_that_means_off_is_accepted(client, name, value):
    assert create(client, "chat", max_tokens=1, **{name: value}).usage.completion_tokens == 1


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_null_counts_as_absent(client, asked, kind):
    nothing = {name: None for name in {*REFUSED, "temperature", "stop", "seed", "n", "logit_bias", "top_k"}}
    assert create(client, kind, max_tokens=1, extra_body=nothing).usage.completion_tokens == 1
    assert asked[0].sampling.temperature == 1 and asked[0].stop == ()


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_an_unknown_field_is_refused_by_its_name(client, asked, kind):
    for name in ("top_pp", "min_length", "guided_json"):
        with pytest.raises(BadRequestError) as e:
            create(client, kind, extra_body={name: 1})
        assert e.value.param == name and e.value.code == "unknown_parameter"
    with pytest.raises(BadRequestError) as e:
        create(client, kind, extra_query={"api-version": "1"})
    assert e.value.param == "api-version" and not asked


VALUES = {
    "temperature": 0.5,
    "top_k": 7,
    "top_p": 0.9,
    "min_p": 0.1,
    "typical_p": 0.8,
    "top_n_sigma": 2.0,
    "dynatemp_range": 0.25,
    "dynatemp_exponent": 2.0,
    "top_p_decay": 0.95,
    "top_p_min": 0.5,
    "top_p_reset_ids": [5, 6],
    "repetition_penalty": 1.1,
    "presence_penalty": 0.3,
    "frequency_penalty": 0.2,
    "logit_bias": {"7": -5, "9": 2.5},
    "min_tokens": 1,
    "bad_words": [[5, 6], [7]],
}


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_every_sampling_parameter_reaches_the_engine(client, asked, kind):
    assert set(VALUES) == {p.name for p in PARAMETERS}
    create(client, kind, max_tokens=2, extra_body=VALUES)
    how = asked[0].sampling
    for name, value in VALUES.items():
        expected = {
            "logit_bias": ((7, -5.0), (9, 2.5)),
            "bad_words": ((5, 6), (7,)),
            "top_p_reset_ids": (5, 6),
        }.get(name, value)
        assert getattr(how, name) == expected != getattr(type(how)(), name), name


BAD = {
    "temperature": [-0.1, 1001, "1", True, [1]],
    "top_k": [-1, 1.5, True, "1"],
    "top_p": [0, 1.01, -1, True],
    "min_p": [-0.1, 1.1],
    "presence_penalty": [2.1, -2.1, "x"],
    "frequency_penalty": [2.1, -2.1, False],
    "repetition_penalty": [0, -1, 101],
    "logit_bias": [{"5": 101}, {"x": 1}, {"400": 1}, {"-1": 1}, {"5": "1"}, {"5": True}, [[5, 1, 1]], 5, {"1" * 30: 1}],
    "bad_words": ["x", [[]], [[400]], [[-1]], [5], [[True]]],
    "min_tokens": [-1, 1.5, 17],
    "top_p_reset_ids": [[400], ["a"], 5],
    "n": [0, -1, 17, 1.0, True, "1"],
    "seed": [2**63, -(2**63) - 1, 1.5, True, "1"],
    "stop": [5, [5], [""], "", ["a"] * 17, "a" * 257, {"a": 1}],
    "stop_token_ids": [5, ["a"], [400], [-1], [True], [5] * 17],
    "stream": ["yes", 1],
    "stream_options": [{"include_usage": 1}, {"x": True}, {"include_obfuscation": True}, 5],
    "user": [5, "x" * 513],
    "past_context": ["roll", 5],
    "response_format": [{"type": "xml"}, {"type": "json_schema", "json_schema": 5}, 5, {"type": "text", "x": 1}],
    "model": [5, True, "m" * 600],
}
BAD_TEXT = {
    "max_tokens": [-1, 97, 10**30, 1.5, "5", True, [5]],
    "prompt": [5, [], {"a": 1}, ["a", 5], [[5], ["a"]], [5.0], [True], [[]], [400], [[-1]], ["a"] * 33, [[[5]]]],
    "best_of": [0, 17, True],
    "echo": ["x", 1],
    "logprobs": [-1, 21, True, 1.5],
}
BAD_CHAT = {
    "max_tokens": [0, -1, 97, True],
    "max_completion_tokens": [0, 97, "5"],
    "logprobs": [1, "x"],
    "top_logprobs": [1, -1, 21],
    "continue_final_message": [1],
    "truncation": ["drop", True, 5],
}
CASES = [
    *(("text", name, value) for name, values in {**BAD, **BAD_TEXT}.items() for value in values),
    *(("chat", name, value) for name, values in {**BAD, **BAD_CHAT}.items() for value in values),
]


def test_a_value_that_breaks_its_rule_is_refused_by_its_name(client, asked):
    wrong = []
    for kind, name, value in CASES:
        try:
            create(client, kind, **({"max_tokens": 16} if "max_" not in name else {}), extra_body={name: value})
            wrong.append((kind, name, value, "was accepted"))
        except BadRequestError as e:
            named = (e.param or "").partition("[")[0].partition(".")[0]
            # Too many tokens for the context is a mistake of the prompt, too.
            if not (named == name or e.code == "context_length_exceeded") or name not in e.message:
                wrong.append((kind, name, value, e.body))
            assert len(e.message) < 500
    assert not wrong and not asked


def test_without_the_grammar_library_a_format_is_refused_by_name(client, version, asked, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.delitem(version.__dict__, "grammars", raising=False)  # it may have been made by another test
    for kind in ("chat", "text"):
        with pytest.raises(BadRequestError) as e:
            create(client, kind, extra_body={"response_format": {"type": "json_object"}})
        assert e.value.param == "response_format" and e.value.code == "unsupported_parameter"
    assert not asked
