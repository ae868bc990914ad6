"""`response_format`: answers that are JSON, or a refusal by name."""

import json

import pytest
from openai import BadRequestError
from pydantic import BaseModel

TALK = [{"role": "user", "content": "Give me a number."}]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}, "s": {"enum": ["a", "b"]}},
    "required": ["n", "s"],
    "additionalProperties": False,
}


def chat(client, form, **given):
    options = {"model": "tiny", "messages": TALK, "response_format": form, "temperature": 0.5, "max_tokens": 50}
    return client.chat.completions.create(**{**options, **given})


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_follows_the_schema(client, seed):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    choice = chat(client, form, seed=seed).choices[0]
    found = json.loads(choice.message.content)
    assert (
        set(found) == {"n", "s"} and found["n"] in range(10) and found["s"] in "ab" and choice.finish_reason == "stop"
    )
    text = client.completions.create(
        model="tiny", prompt="a", seed=seed, max_tokens=50, extra_body={"response_format": form}
    )
    assert set(json.loads(text.choices[0].text)) == {"n", "s"}


def test_a_stream_follows_the_schema_and_the_client_parses_it(client):
    class Found(BaseModel):
        yes: bool

    options = {"model": "tiny", "messages": TALK, "max_tokens": 50, "seed": 1}
    parsed = client.chat.completions.parse(response_format=Found, **options)
    assert isinstance(parsed.choices[0].message.parsed, Found)
    with client.chat.completions.stream(response_format=Found, **options) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed.choices[0].message.parsed


def test_an_object_is_an_object(client, asked):
    choice = chat(client, {"type": "json_object"}, seed=2, max_tokens=60).choices[0]
    assert choice.message.content.lstrip().startswith("{") and asked[0].constraint is not None
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)
    chat(client, {"type": "text"}, max_tokens=1)
    assert asked[1].constraint is None


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "strange"},
        {"type": "object", "properties": 5},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"$ref": "http://example.org/schema.json"},
        {"type": "string", "unheardOf": {"a": 1}, "pattern": "("},
        {"enum": ["x" * 70_000]},
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused(client, asked, schema):
    with pytest.raises(BadRequestError) as e:
        chat(client, {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert e.value.param == "response_format" and not asked
    with pytest.raises(BadRequestError) as e:
        chat(client, {"type": "json_schema"})
    assert e.value.param == "response_format" and "json_schema" in e.value.message


def test_without_the_grammar_library_it_is_refused_by_name(client, version, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.delitem(version.__dict__, "grammars", raising=False)
    with pytest.raises(BadRequestError) as e:
        chat(client, {"type": "json_object"})
    assert e.value.param == "response_format" and e.value.code == "unsupported_parameter"
