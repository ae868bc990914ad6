"""Each limit of a request is a parameter, and what exceeds it gets a status that the client does not repeat."""

import httpx
import pytest
from small_server import SmallServer, listening

from foundry.config.serving import Serving

TALK = [{"role": "user", "content": "abc"}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "x" * 100}}}
LIMITS = {
    "max_body_bytes": (1024, {"prompt": "a" * 50, "user": "u" * 500}, {"prompt": "a" * 2000}),
    "max_json_depth": (5, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, None),
    "max_prompts": (2, {"prompt": ["a", "b"]}, {"prompt": ["a", "b", "c"]}),
    "max_prompt_chars": (5, {"prompt": "ab" * 2}, {"prompt": ["abc", "def"]}),
    "max_prompt_tokens": (4, {"prompt": [5] * 4}, {"prompt": [5] * 5}),
    "max_new_tokens": (7, {"max_tokens": 7}, {"max_tokens": 8}),
    "max_n": (3, {"n": 3}, {"n": 4}),
    "max_stop": (2, {"stop": ["a", "b"]}, {"stop": ["a", "b", "c"]}),
    "max_stop_chars": (3, {"stop": "abc"}, {"stop": "abcd"}),
    "max_logprobs": (2, {"logprobs": 2}, {"logprobs": 3}),
    "max_logit_bias": (2, {"logit_bias": {"5": 1, "6": 1}}, {"logit_bias": {"5": 1, "6": 1, "7": 1}}),
    "max_schema_bytes": (40, {}, {"response_format": SCHEMA}),
}
# Limits of time, of the server, and of what it does besides are tested over connections, with the engine and the keys.
OTHERS = {"max_running", "max_queue", "max_connections", "max_header_bytes"}


def test_the_table_is_complete():
    assert {name for name in Serving.model_fields if name.startswith("max_")} == {*LIMITS, *OTHERS}


@pytest.mark.parametrize("name", LIMITS)
def test_what_reaches_a_limit_is_answered_and_what_exceeds_it_is_refused(version, asked, name):
    value, within, beyond = LIMITS[name]
    if beyond is None:
        beyond = {"logit_bias": {"5": [[[[1]]]]}}
    with listening(SmallServer(version, **{name: value})) as url, httpx.Client(base_url=f"{url}/v1") as http:
        route = "/chat/completions" if "messages" in within else "/completions"
        good = http.post(route, json={"max_tokens": 1, **within})
        assert good.status_code == 200, good.text
        asked.clear()
        bad = http.post("/completions", json={"max_tokens": 1, **beyond})
    assert bad.status_code == (413 if name == "max_body_bytes" else 400)
    assert f"serving.{name}" in bad.json()["error"]["message"] and not asked


def test_other_forms_of_the_same_limits(version, asked):
    limits = {"max_logit_bias": 2, "max_stop": 2, "max_stop_chars": 3, "max_n": 3, "max_logprobs": 1}
    with (
        listening(SmallServer(version, **limits, max_prompt_chars=5)) as url,
        httpx.Client(base_url=f"{url}/v1") as http,
    ):
        for body in (
            {"bad_words": ["a", "b", "c"]},
            {"bad_words": ["abcd"]},
            {"bad_words": [[5, 6, 7, 8]]},
            {"top_p_reset_ids": [5, 6, 7]},
            {"stop_token_ids": [5, 6, 7]},
            {"best_of": 4},
            {"echo": True, "logprobs": 2},
        ):
            bad = http.post("/completions", json={"prompt": "a", "max_tokens": 1, **body})
            assert bad.status_code == 400 and "serving.max_" in bad.json()["error"]["message"], body
        for body in ({"logprobs": True, "top_logprobs": 2}, {"messages": [*TALK, *TALK]}):
            bad = http.post("/chat/completions", json={"messages": TALK, "max_tokens": 1, **body})
            assert bad.status_code == 400 and "serving.max_" in bad.json()["error"]["message"], body
        bad = httpx.post(f"{url}/tokenize", json={"prompt": "abcdef"})
        assert bad.status_code == 400 and "serving.max_prompt_chars" in bad.json()["error"]["message"]
    assert not asked
