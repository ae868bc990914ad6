"""Answers of many prompts at once are those of each prompt alone, and end where the model ends them."""

import pytest
import torch
from engines import random_model

from foundry.chat.answers import Asked, answer_all
from foundry.config import ConfigError, FoundryError
from foundry.config.sampling import Sampling
from foundry.tokenizers.chat import Message, encode_chat, end_of_turn


@pytest.fixture(scope="module")
def asked(tokenizer):
    texts = ["The salt", "", "of the river?\n12", "history of the mountain " * 3, "a", "boil"]
    ids = [tuple(encode_chat(tokenizer, [Message("user", text)])) for text in texts]
    return [Asked(p, 12 + 3 * i, seed=i) for i, p in enumerate(ids)]


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), Sampling()])
def test_company_and_slots_change_no_answer(tokenizer, asked, sampling):
    model = random_model()
    together = answer_all(model, tokenizer, asked, sampling)
    assert together == answer_all(model, tokenizer, asked, sampling, slots=2)
    assert together == [answer_all(model, tokenizer, [one], sampling)[0] for one in asked]
    assert together[::-1] == answer_all(model, tokenizer, asked[::-1], sampling)
    assert len({a.text for a in together}) > 2


def test_an_answer_ends_by_both_end_symbols_and_never_contains_a_control_symbol(tokenizer, asked):
    """A model that writes the end symbol of a turn ends its answer; today's text generator bars that symbol."""
    control = {i for i in range(tokenizer.vocab_size) if tokenizer.is_control(i)}
    for end in end_of_turn(tokenizer):
        model = random_model(tie_embeddings=False)
        with torch.no_grad():
            model.output.weight.mul_(0.1)
            model.output.weight[end] = 50 * model.output.weight[end].sign()
        answers = answer_all(model, tokenizer, asked)
        for one, answer in zip(asked, answers, strict=True):
            assert answer.ended == (answer.stop == end) and (answer.ended or len(answer.ids) == one.max_tokens)
            assert not set(answer.ids) & control
        assert any(a.ended for a in answers)


def test_a_prompt_that_fills_the_context_and_damaged_weights_are_errors(tokenizer, asked):
    model = random_model()
    with pytest.raises(ConfigError, match="fit the context"):
        answer_all(model, tokenizer, [Asked(tuple(range(4, 4 + model.cfg.max_seq_len)), 4)])
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(FoundryError, match="an answer failed"):
        answer_all(model, tokenizer, asked)
    assert answer_all(model, tokenizer, []) == []
