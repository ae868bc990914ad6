"""What a constrained model writes parses and is valid under its schema, whatever the model would rather write."""

import json

import jsonschema
import pytest
import torch

from foundry.config import ConfigError, FoundryError, MissingPackageError, ModelConfig
from foundry.config.sampling import Sampling
from foundry.inference.constraints import MAX_SCHEMA, Grammars
from foundry.inference.engine import Engine
from foundry.inference.request import Delta, Finished, Request
from foundry.inference.runner import Runner
from foundry.inference.sampling import Sampler
from foundry.models import MiniLLM


@pytest.fixture(scope="module")
def grammars(tokenizer):
    return Grammars(tokenizer)


@pytest.fixture(scope="module")
def engine(tokenizer):
    torch.manual_seed(0)
    cfg = ModelConfig(vocab_size=400, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=16, max_seq_len=128)
    return Engine(Runner(MiniLLM(cfg), 2), tokenizer)


def tokens_with(tokenizer, character):
    return [i for i in range(tokenizer.vocab_size) if character in tokenizer.decode([i])]


def write(tokenizer, constraint, seed, bias=None, most=600):
    """The answer of a model without any idea: its logits are noise. None if it does not end in time.

    Quotes are preferred a little, because a string would otherwise be hundreds of tokens long.
    """
    generator = torch.Generator().manual_seed(seed)
    control = [i for i in range(tokenizer.vocab_size) if i == 0 or tokenizer.is_control(i)]
    how = Sampling(logit_bias=dict.fromkeys(tokens_with(tokenizer, '"'), 3.0) if bias is None else bias)
    sampler = Sampler(
        how,
        [1],
        vocab_size=tokenizer.vocab_size,
        generator=generator,
        end_ids=[tokenizer.eos_id],
        barred=[i for i in control if i != tokenizer.eos_id],
        matcher=constraint.start(),
    )
    ids = []
    while len(ids) < most and not sampler.matcher.over:
        token = sampler.choose(torch.randn(tokenizer.vocab_size, generator=generator))
        if token == tokenizer.eos_id:
            assert sampler.matcher.complete
            break
        sampler.accept(token)
        ids.append(token)
    else:
        if not sampler.matcher.over:
            return None
    assert not any(tokenizer.is_control(i) or i == 0 for i in ids)
    return tokenizer.decode(ids)


SHORT = {"type": "string", "maxLength": 8}
SCHEMAS = {
    "integer": {"type": "integer", "minimum": -5, "maximum": 1234},
    "number": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 9999},
    "boolean or null": {"type": ["boolean", "null"]},
    "enum": {"enum": ["salt", 'a "quoted" word', "日本語", "🙂", 12, None, {"a": [1, 2]}, ["x"]]},
    "const": {"const": {"n": -0.5, "text": "line\nend\ttab \\ é"}},
    "string": {"type": "string", "minLength": 3, "maxLength": 6},
    "pattern": {"type": "string", "pattern": "^[a-cé日]{2,5}-[0-9]+$", "maxLength": 9},
    "date": {"type": "string", "format": "date"},
    "email": {"type": "string", "format": "email"},
    "address": {"type": "string", "format": "ipv4"},
    "uuid": {"type": "string", "format": "uuid"},
    "object": {
        "type": "object",
        "properties": {"name": SHORT, "age": {"type": "integer", "minimum": 0, "maximum": 150}, "größe 日本": SHORT},
        "required": ["name", "größe 日本"],
        "additionalProperties": False,
    },
    "open object": {"type": "object", "properties": {"a": SHORT}, "additionalProperties": {"type": "boolean"}},
    "names by pattern": {"type": "object", "patternProperties": {"^x": {"enum": [1]}}, "additionalProperties": False},
    "array": {"type": "array", "items": SHORT, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [{"const": 1}, {"type": "boolean"}], "items": False, "minItems": 2},
    "any of": {"anyOf": [{"type": "boolean"}, {"type": "object", "properties": {"b": {"const": 2}}, "required": ["b"],
                                             "additionalProperties": False}]},
    "one of": {"oneOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 99}]},
    "all of": {"allOf": [{"type": "object", "properties": {"a": {"type": "boolean"}}}, {"required": ["a"]},
                         {"additionalProperties": {"type": "boolean"}}]},
    "recursive": {
        "$defs": {"tree": {"type": "object", "properties": {"v": {"type": "boolean"}, "left": {"$ref": "#/$defs/tree"}},
                           "required": ["v"], "additionalProperties": False}},
        "$ref": "#/$defs/tree",
    },
    "nested": {
        "type": "object",
        "properties": {"steps": {"type": "array", "maxItems": 2, "items": {
            "type": "object", "properties": {"text": SHORT, "minutes": {"type": "number", "minimum": 0, "maximum": 9}},
            "required": ["text", "minutes"], "additionalProperties": False}}},
        "required": ["steps"],
        "additionalProperties": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_written_under_a_schema_parses_and_is_valid(grammars, tokenizer, name):
    schema = SCHEMAS[name]
    constraint = grammars.json_schema(schema)
    texts = [write(tokenizer, constraint, seed) for seed in range(12)]
    finished = [text for text in texts if text is not None]
    assert len(finished) >= 8
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    for text in finished:
        validator.validate(json.loads(text))
    assert len(set(finished)) > 1 or name == "const"


def test_what_is_written_as_an_object_is_one(grammars, tokenizer):
    texts = [write(tokenizer, grammars.json_object(), seed, most=200) for seed in range(40)]
    finished = [text for text in texts if text is not None]
    assert len(finished) > 5 and all(isinstance(json.loads(text), dict) for text in finished)
    assert any(len(json.loads(text)) for text in finished)


def test_characters_are_spelt_in_byte_pieces_and_never_wrongly(grammars, tokenizer):
    """A model that likes bytes above 127: left alone, it would write hardly any valid character."""
    high = [tokenizer.id_of(f"<0x{b:02X}>") for b in range(128, 256)]
    constraint = grammars.json_schema({"type": "string", "minLength": 6, "maxLength": 12})
    texts = [write(tokenizer, constraint, seed, bias=dict.fromkeys(high, 8.0)) for seed in range(30)]
    lengths = {len(c.encode()) for text in texts for c in text}
    assert {2, 3, 4} <= lengths
    for text in texts:
        assert 6 <= len(json.loads(text)) <= 12


def test_an_answer_can_be_followed_in_whole_pieces_and_its_texts_in_bytes(grammars, tokenizer):
    """Where the schema leaves no choice of text, as in a name, only the pieces of the tokenizer are allowed."""
    parts = ('{"name":"', 'é 日🙂 \\"s', '","age":12,"größe 日本":""}')
    in_bytes = [tokenizer.id_of(f"<0x{b:02X}>") for b in parts[1].encode()]
    text = tokenizer.encode("".join(parts))
    for ids in (text, [*tokenizer.encode(parts[0]), *in_bytes, *tokenizer.encode(parts[2])]):
        matcher = grammars.json_schema(SCHEMAS["object"]).start()
        for token in ids:
            assert not matcher.complete and matcher.allowed()[token]
            matcher.accept(token)
        assert matcher.complete and matcher.over and not matcher.allowed().any()


def test_a_token_that_is_not_allowed_is_an_error(grammars, tokenizer):
    matcher = grammars.json_object().start()
    with pytest.raises(FoundryError, match="cannot be kept within its JSON schema"):
        matcher.accept(tokenizer.encode("salt")[0])


def test_neither_control_symbols_nor_the_end_are_among_the_allowed(grammars, tokenizer):
    matcher = grammars.json_schema({"type": "string"}).start()
    control = [i for i in range(tokenizer.vocab_size) if i == 0 or tokenizer.is_control(i)]
    for token in tokenizer.encode('"salt'):
        assert len(control) > 5 and not matcher.allowed()[control].any()
        matcher.accept(token)
    assert matcher.allowed().sum() > 200 and not matcher.allowed()[control].any()


def test_a_copy_goes_on_independently(grammars, tokenizer):
    one = grammars.json_schema({"enum": ["ab", "ac"]}).start()
    for token in tokenizer.encode('"a'):
        one.accept(token)
    other = one.copy()
    before = one.allowed()
    for token in tokenizer.encode("b"):
        other.accept(token)
    assert torch.equal(one.allowed(), before) and not torch.equal(other.allowed(), before)


def test_white_space_is_short(grammars, tokenizer):
    space = tokenizer.id_of("<0x20>")
    matcher = grammars.json_object().start()
    matcher.accept(tokenizer.encode("{")[0])
    assert matcher.allowed()[space]
    matcher.accept(space)
    assert not matcher.allowed()[space]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "array", "uniqueItems": True}, "cannot be enforced: .*uniqueItems"),
        ({"not": {"type": "string"}}, 'cannot be enforced: .*"not"'),
        ({"if": {"type": "string"}, "then": {"minLength": 2}}, '"if", "then"'),
        ({"type": "object", "x-guidance": {"lenient": True}, "propertyNames": {"pattern": "a"}}, "propertyNames"),
        ({"type": "string", "format": "regex"}, "format: regex"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"type": "nonsense"}, "nonsense"),
        ({"$ref": "https://example.org/schema.json"}, "https://example.org/schema.json"),
        ({"$ref": "#/$defs/missing"}, "/\\$defs/missing"),
        ({"$ref": "#"}, "allows no answer"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum .5. is greater than maximum"),
        ("{", "the JSON schema is not JSON"),
        ("[" * 100_000, "the JSON schema is not JSON"),
        ('{"items":' * 100_000, "the JSON schema is not JSON"),
        ("[]", "must be a JSON object, got list"),
        (True, "must be a JSON object, got bool"),
        ({"enum": [float("nan")]}, "not valid JSON"),
        ({"enum": ["\ud800"]}, "not valid JSON"),
        ({"enum": ["a" * MAX_SCHEMA]}, "at most 200,000"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_schema_that_cannot_be_enforced_is_refused_with_its_reason(grammars, schema, message):
    with pytest.raises(ConfigError, match=message):
        grammars.json_schema(schema)


def test_a_constraint_is_known_by_its_schema(grammars):
    one = grammars.json_schema({"type": "integer"})
    assert one == grammars.json_schema('{"type": "integer"}') != grammars.json_schema({"type": "number"})
    assert hash(one) and one.kind == "json_schema" and json.loads(one.schema) == {"type": "integer"}
    assert grammars.json_object().kind == "json_object" and "JsonMatcher" not in repr(one)


def test_a_missing_library_is_named(tokenizer, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(MissingPackageError, match="llguidance is not installed: make setup extras=serve"):
        Grammars(tokenizer)


def ask(engine, *requests):
    """(text, tokens, end) of each request, all at the same time."""
    events = {}
    for request in requests:
        answer = engine.answer(request, lambda event: None)
        events[answer] = []
        engine.add(answer)
    while not engine.idle:
        for answer, event in engine.step():
            events[answer].append(event)
    results = []
    for parts in events.values():
        deltas = [e for e in parts if isinstance(e, Delta)]
        assert isinstance(parts[-1], Finished)
        results.append(("".join(d.text for d in deltas), [s.id for d in deltas for s in d.tokens], parts[-1]))
    return results


def test_the_engine_keeps_an_answer_within_its_schema_and_ends_it(engine, grammars):
    constraint = grammars.json_schema(SCHEMAS["object"])
    requests = [
        Request((1,), Sampling(temperature=t), max_tokens=120, seed=s, stop_ids=(2,), constraint=constraint)
        for s, t in enumerate((0.0, 0.7, 1.0, 1.0, 1.5, 2.0))
    ]
    results = ask(engine, *requests)
    for text, _, end in results:
        assert end.reason == "stop"
        jsonschema.validate(json.loads(text), SCHEMAS["object"])
    assert results == [result for request in requests for result in ask(engine, request)]


def test_a_full_context_cuts_the_answer_off(engine, grammars, tokenizer):
    bias = dict.fromkeys(tokens_with(tokenizer, '"'), -100.0) | {tokenizer.encode('"')[0]: -90.0}
    request = Request((1,), Sampling(logit_bias=bias), max_tokens=500, seed=1, stop_ids=(2,),
                      constraint=grammars.json_schema({"type": "string"}))  # fmt: skip
    ((text, tokens, end),) = ask(engine, request)
    assert end.reason == "length" and len(tokens) == 127 and text.startswith('"') and '"' not in text[1:]


def test_min_tokens_yields_to_a_constraint_that_allows_only_the_end(engine, grammars):
    how = Sampling(temperature=0, min_tokens=50)
    request = Request((1,), how, max_tokens=60, stop_ids=(2,), constraint=grammars.json_schema({"const": 7}))
    assert ask(engine, request)[0][0] == "7"
    many = Request((1,), how, max_tokens=60, stop_ids=(2,), constraint=grammars.json_schema({"type": "integer"}))
    assert len(ask(engine, many)[0][1]) >= 50  # digits may follow, so the end has to wait


def test_the_end_is_allowed_only_where_the_answer_is_complete(engine, grammars):
    how = Sampling(temperature=0, logit_bias={2: 100})
    schema = {"type": "integer", "minimum": 1000}
    ((text, _, end),) = ask(
        engine, Request((1,), how, max_tokens=60, stop_ids=(2,), constraint=grammars.json_schema(schema))
    )
    assert int(text) >= 1000 and len(text) == 4 and (end.reason, end.stop) == ("stop", 2)
