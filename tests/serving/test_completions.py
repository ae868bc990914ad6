"""`/v1/completions` with the official client and the real engine."""

import math

import pytest
import torch
from openai import BadRequestError, NotFoundError

PROMPT = "The salt water of the river"


def create(client, **given):
    return client.completions.create(**{"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "seed": 5, **given})


def texts(response):
    return [c.text for c in response.choices]


def names_of(tokenizer):
    """{id: as the server names it}, made in another way than the server does."""
    names = {}
    for i in range(tokenizer.vocab_size):
        piece = tokenizer.piece(i)
        names[i] = piece if tokenizer.is_control(i) or i == 0 else tokenizer.decode([i])
        if tokenizer.is_byte(i) and int(piece[3:5], 16) > 127:
            names[i] = "bytes:\\x" + piece[3:5].lower()
    return names


def test_the_same_seed_gives_the_same_text_and_a_seed_that_was_drawn_is_returned(client):
    first = create(client, seed=None)
    assert isinstance(first.seed, int) and 0 <= first.seed < 2**53
    again = create(client, seed=first.seed)
    assert texts(again) == texts(first) and again.seed == first.seed
    assert len({texts(create(client, seed=s))[0] for s in range(8)}) > 1
    assert texts(create(client, seed=-1)) == texts(create(client, seed=2**63 - 1))


def test_every_answer_of_many_can_be_repeated_alone(client):
    many = create(client, n=4, prompt=[PROMPT, "bread"], stop=["e"])
    assert [c.index for c in many.choices] == list(range(8)) and [c.seed for c in many.choices] == list(range(5, 13))
    assert len(set(texts(many))) > 2
    for choice in many.choices:
        alone = create(client, prompt=[PROMPT, "bread"][choice.index // 4], seed=choice.seed, stop="e")
        assert (alone.choices[0].text, alone.choices[0].finish_reason) == (choice.text, choice.finish_reason)


def test_a_stream_joins_to_the_same_answer(client):
    options = {"n": 3, "prompt": [PROMPT, "cut"], "echo": True, "logprobs": 2, "temperature": 1.5}
    whole = create(client, **options)
    parts = list(create(client, stream=True, stream_options={"include_usage": True}, **options))
    assert parts[-1].choices == [] and parts[-1].usage == whole.usage and all(p.usage is None for p in parts[:-1])
    assert len({p.id for p in parts}) == 1 and parts[0].seed == whole.seed == 5 and len(parts) > 12
    for choice in whole.choices:
        mine = [c for p in parts for c in p.choices if c.index == choice.index]
        assert "".join(c.text for c in mine) == choice.text
        assert [c.finish_reason for c in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1].finish_reason == choice.finish_reason == "length"
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            joined = [x for c in mine if c.logprobs for x in getattr(c.logprobs, name)]
            assert joined == getattr(choice.logprobs, name), name


def test_a_prompt_may_be_text_or_its_ids(client, tokenizer):
    ids = tokenizer.encode(PROMPT, bos=True)
    expected = texts(create(client))[0]
    assert texts(create(client, prompt=ids)) == texts(create(client, prompt=[PROMPT])) == [expected]
    assert texts(create(client, prompt=[ids])) == [expected]
    assert texts(create(client, prompt=ids[1:])) != [expected]  # ids are taken as they are, without a begin symbol
    assert create(client, prompt=ids[1:]).usage.prompt_tokens == len(ids) - 1


def test_an_absent_prompt_is_the_beginning_of_a_text(client, asked, url):
    import httpx

    assert httpx.post(f"{url}/v1/completions", json={"max_tokens": 2}).json()["usage"]["prompt_tokens"] == 1
    create(client, prompt="")
    assert [r.ids for r in asked] == [(1,), (1,)] and asked[0].max_tokens == 2
    assert httpx.post(f"{url}/v1/completions", json={}).json()["usage"]["completion_tokens"] == 16  # as the API says


def test_usage_counts_tokens(client, tokenizer):
    n = len(tokenizer.encode(PROMPT, bos=True))
    usage = create(client, n=3).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (n, 36, n + 36)
    long = "salt " * 40
    create(client, prompt=long, max_tokens=1)
    assert create(client, prompt=long, max_tokens=1).usage.prompt_tokens_details.cached_tokens >= 32


def test_a_stop_text_ends_the_answer_and_is_not_in_it(client):
    free = texts(create(client, max_tokens=40))[0]
    stop = free[5:7]
    choice = create(client, max_tokens=40, stop=["\u2603", stop]).choices[0]
    assert choice.text == free[: free.index(stop)] and (choice.finish_reason, choice.stop_reason) == ("stop", stop)
    parts = list(create(client, max_tokens=40, stop=stop, stream=True))
    assert "".join(p.choices[0].text for p in parts) == choice.text
    assert parts[-1].choices[0].finish_reason == "stop"


def test_a_stop_id_ends_the_answer(client, tokenizer):
    scored = create(client, logprobs=0, max_tokens=20).choices[0]
    name = scored.logprobs.tokens[6]
    token = next(i for i, known in names_of(tokenizer).items() if known == name)
    choice = create(client, max_tokens=20, logprobs=0, extra_body={"stop_token_ids": [token]}).choices[0]
    end = scored.logprobs.tokens.index(name)
    assert choice.logprobs.tokens == scored.logprobs.tokens[:end] and choice.stop_reason == token


def test_log_probabilities_are_those_of_the_model(client, tokenizer, model):
    """Compared with a plain forward pass; temperature and penalties do not change them."""
    choice = create(client, echo=True, logprobs=3, temperature=0.3, presence_penalty=1.5).choices[0]
    scores = choice.logprobs
    assert choice.text.startswith(PROMPT)
    names = names_of(tokenizer)
    prompt = tokenizer.encode(PROMPT)
    ids = [1]
    assert [names[i] for i in prompt] == scores.tokens[: len(prompt)] and len(scores.tokens) == len(prompt) + 12
    for token, logprob, top in zip(scores.tokens, scores.token_logprobs, scores.top_logprobs, strict=True):
        with torch.inference_mode():
            p = model(torch.tensor([ids]))[0][0, -1].float().log_softmax(-1)
        same = [i for i, name in names.items() if name == token]
        found = [i for i in same if math.isclose(p[i].item(), logprob, abs_tol=2e-4)]
        assert found, (token, logprob)
        ids.append(prompt[len(ids) - 1] if len(ids) <= len(prompt) else found[0])
        best = p.topk(3)
        for i, value in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            assert math.isclose(top[names[i]], value, abs_tol=2e-4)
        assert math.isclose(top[token], logprob) and len(top) in (3, 4)
    text = choice.text
    for token, offset in zip(scores.tokens, scores.text_offset, strict=True):
        assert token.startswith("bytes:") or text[offset : offset + len(token)] == token


def test_ids_are_echoed_one_by_one_and_a_prompt_can_be_scored_without_an_answer(client, tokenizer):
    ids = tokenizer.encode(PROMPT, bos=True)
    choice = create(client, prompt=ids, echo=True, logprobs=1, max_tokens=0).choices[0]
    assert len(choice.logprobs.tokens) == len(ids) and choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.tokens[0] == "<s>" and choice.text == PROMPT and choice.finish_reason == "length"
    text = create(client, echo=True, logprobs=1, max_tokens=0).choices[0].logprobs
    assert text.token_logprobs == choice.logprobs.token_logprobs[1:]
    parts = list(create(client, prompt=ids, echo=True, logprobs=1, max_tokens=0, stream=True))
    assert [x for p in parts if p.choices[0].logprobs for x in p.choices[0].logprobs.tokens] == choice.logprobs.tokens


def test_best_of_returns_the_answers_with_the_highest_mean_log_probability(client):
    means = {}
    for choice in create(client, n=8, logprobs=0).choices:
        means[choice.seed] = sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)
    best = sorted(means, key=means.get, reverse=True)[:3]
    response = create(client, n=3, best_of=8)
    assert [c.seed for c in response.choices] == best and [c.index for c in response.choices] == [0, 1, 2]
    assert response.choices[0].logprobs is None and response.usage.completion_tokens == 96
    with pytest.raises(BadRequestError, match="best_of"):
        create(client, n=3, best_of=2)
    with pytest.raises(BadRequestError, match="best_of"):
        create(client, n=3, best_of=4, stream=True)


def test_bias_and_bad_words_act(client, tokenizer):
    token = tokenizer.encode(" bread")[0]
    forced = create(client, logit_bias={str(token): 100}, max_tokens=4)
    assert texts(forced) == [tokenizer.text_of(token) * 4]
    bread = {"logit_bias": {str(token): 100}, "max_tokens": 4}
    assert " bread" not in texts(create(client, **bread, extra_body={"bad_words": ["bread"]}))[0]
    assert " bread" not in texts(create(client, **bread, extra_body={"bad_words": [[token]]}))[0]


def test_what_does_not_fit_the_context_is_refused(client):
    for given in (
        {"prompt": "salt " * 200},
        {"max_tokens": 96},
        {"prompt": [5] * 96},
        {"prompt": [5] * 95, "max_tokens": 2},
    ):
        with pytest.raises(BadRequestError) as e:
            create(client, **given)
        assert e.value.code == "context_length_exceeded" and e.value.param == "prompt"
    assert create(client, prompt=[5] * 95, max_tokens=1).usage.completion_tokens == 1
    assert create(client, prompt=[5] * 96, max_tokens=0).usage.prompt_tokens == 96
    slid = create(client, max_tokens=200, extra_body={"past_context": "slide"})
    assert slid.usage.completion_tokens == 200 and slid.choices[0].finish_reason == "length"


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(NotFoundError) as e:
        create(client, model="gpt-5")
    assert e.value.code == "model_not_found" and e.value.param == "model" and "tiny" in e.value.message
    assert texts(create(client, model="models:/tiny@x")) == texts(create(client))
    assert create(client, model="models:/tiny@x").model == "tiny"


def test_headers_name_the_weights_the_seed_and_the_request(client):
    raw = client.completions.with_raw_response.create(
        model="tiny", prompt="a", max_tokens=1, seed=9, extra_headers={"X-Request-Id": "mine-1"}
    )
    assert raw.headers["x-foundry-model"] == "a" * 64 and raw.headers["x-foundry-seed"] == "9"
    assert raw.headers["x-request-id"] == "mine-1" and raw.parse()._request_id == "mine-1"
    assert raw.parse().system_fingerprint == "f" * 16
    with client.completions.with_streaming_response.create(model="tiny", prompt="a", stream=True) as streamed:
        assert streamed.headers["x-foundry-model"] == "a" * 64 and streamed.headers["x-foundry-seed"].isdecimal()
        assert streamed.headers["x-request-id"].startswith("req-")
        assert streamed.headers["content-type"].startswith("text/event-stream")
        streamed.read()
