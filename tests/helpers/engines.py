"""Tiny models with weights far from their beginning, engines that run them, and what requests give."""

from dataclasses import replace

import torch

from foundry.config import ModelConfig
from foundry.inference.engine import Engine, deliver
from foundry.inference.request import Delta, Finished, PromptScores
from foundry.inference.runner import Runner
from foundry.models import MiniLLM

SHAPE = {"vocab_size": 400, "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48, "max_seq_len": 160}
VARIANTS = [
    {},
    {"n_kv_heads": 4},
    {"n_kv_heads": 1},
    {"qk_norm": True},
    {"sliding_window": 7},
    {"logit_softcap": 3.0},
    {"tie_embeddings": False},
    {"dim": 40, "ffn_dim": 43},  # no multiples of a vector register
    # Slots and rows that begin anywhere in a vector register, and functions of all logits at once.
    {
        "max_seq_len": 161,
        "dim": 42,
        "n_heads": 3,
        "n_kv_heads": 1,
        "ffn_dim": 51,
        "vocab_size": 403,
        "logit_softcap": 3.0,
    },
]


def random_model(**changes):
    torch.manual_seed(0)
    model = MiniLLM(ModelConfig(**SHAPE | changes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


def make_engine(model, tokenizer, slots=4, **options):
    return Engine(Runner(model, slots), tokenizer, **options)


def run(engine, requests):
    """Answers the requests, all of them there at the beginning: a list of events for each."""
    events = [[] for _ in requests]
    for request, listener in zip(requests, events, strict=True):
        engine.add(engine.answer(request, listener.append))
    finish(engine)
    return events


def finish(engine):
    while not engine.idle:
        deliver(engine.step())


def text_of(events):
    return "".join(e.text for e in events if isinstance(e, Delta))


def tokens_of(events):
    """All that was said about new tokens: ids, log-probabilities and alternatives."""
    return [token for e in events if isinstance(e, Delta) for token in e.tokens]


def ids_of(events):
    return [token.id for token in tokens_of(events)]


def end_of(events):
    assert [isinstance(e, Finished) for e in events] == [*[False] * (len(events) - 1), True]
    return events[-1]


def result(events):
    """What must not depend on other requests: everything but where the prompt's blocks came from."""
    scores = [e for e in events if isinstance(e, PromptScores)]
    end = replace(end_of(events), cached_tokens=0, drafted=0, accepted=0)
    return text_of(events), tokens_of(events), scores, end
