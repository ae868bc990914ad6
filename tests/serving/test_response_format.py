"""`response_format`: answers of a random model are JSON of the schema, by the official client over a socket."""

import json
from typing import Literal

import openai
import pytest
from engines import random_model
from pydantic import BaseModel, Field
from small_server import SmallServer, engine, listening, version_of

MESSAGES = [{"role": "user", "content": "salt"}]


@pytest.fixture(scope="module")
def client(tokenizer):
    model = random_model()
    with engine(model, tokenizer) as worker, listening(SmallServer(version_of(model, tokenizer, worker))) as url:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            yield client


class Step(BaseModel):
    kind: Literal["mix", "bake", "\u714e"]
    minutes: int = Field(ge=0, le=90)


class Recipe(BaseModel):
    vegan: bool
    steps: list[Step] = Field(min_length=1, max_length=2)


def test_the_clients_own_parser_gets_what_it_asked_for(client, tokenizer):
    """Without white space, for which a random model would spend its tokens."""
    blank = {str(i): -100 for i in range(3, 400) if not tokenizer.decode([i]).strip()}
    for seed in range(4):
        got = client.chat.completions.parse(
            model="tiny",
            messages=MESSAGES,
            response_format=Recipe,
            max_completion_tokens=140,
            seed=seed,
            temperature=1,
            logit_bias=blank,
        )
        recipe = got.choices[0].message.parsed
        assert isinstance(recipe, Recipe) and 1 <= len(recipe.steps) <= 2 and got.choices[0].finish_reason == "stop"


def asked(schema):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def test_a_stream_and_every_one_of_several_answers_is_valid(client):
    options = {
        "model": "tiny",
        "messages": MESSAGES,
        "response_format": asked({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}),
        "max_completion_tokens": 100,
        "seed": 7,
        "n": 3,
    }
    got = client.chat.completions.create(**options)
    texts = [choice.message.content for choice in got.choices]
    assert all(2 <= len(json.loads(text)) <= 4 for text in texts)
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**options, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_an_object_is_an_object_or_the_beginning_of_one(client):
    reasons = set()
    for seed in range(8):
        choice = client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            response_format={"type": "json_object"},
            max_completion_tokens=60,
            seed=seed,
        ).choices[0]
        reasons.add(choice.finish_reason)
        assert choice.message.content.startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)
    assert reasons <= {"stop", "length"}


def test_a_completion_can_be_constrained_too(client):
    got = client.completions.create(
        model="tiny", prompt="salt", max_tokens=20, extra_body={"response_format": asked({"enum": ["a", "b"]})}
    )
    assert json.loads(got.choices[0].text) in ("a", "b")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (asked({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (asked({"$ref": "https://example.org/x"}), "https://example.org/x"),
        (asked({"type": "string", "pattern": "(?=a)"}), "look-ahead"),
        ({"type": "json_schema"}, "json_schema is missing"),
        (asked({"type": "integer", "minimum": 2, "maximum": 1}), "minimum"),
        (asked({"enum": ["a" * 500_000]}), "max_schema_bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_enforced_is_refused_by_name(client, wrong, message):
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        client.chat.completions.create(model="tiny", messages=MESSAGES, response_format=wrong)
    assert refused.value.param.startswith("response_format")


@pytest.mark.parametrize("schema", ['{"enum": ["\\ud800"]}', '{"enum": [NaN]}', '{"items":' * 5000 + "{}" + "}" * 5000])
def test_a_schema_that_python_reads_and_nobody_else_is_refused(client, schema):
    body = f'{{"model": "tiny", "prompt": "a", "response_format": {json.dumps(asked(1)).replace("1", schema, 1)}}}'
    got = client._client.post("completions", content=body, headers={"Content-Type": "application/json"})
    assert got.status_code == 400 and got.json()["error"]["type"] == "invalid_request_error"
