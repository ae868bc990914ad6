"""Decoding by captured CUDA graphs gives the tokens of the ordinary way on the GPU, and those of the CPU."""

import copy

import pytest
import torch

from foundry.config import ModelConfig
from foundry.inference import Generator
from foundry.inference.piece import Piece
from foundry.inference.runner import Runner
from foundry.models import MiniLLM

SHAPE = {"vocab_size": 400, "dim": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 96, "max_seq_len": 64}
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def random_model(**changes):
    torch.manual_seed(0)
    model = MiniLLM(ModelConfig(**SHAPE | changes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}, {"sliding_window": 7}, {"n_kv_heads": 4}])
def test_greedy_tokens_are_those_without_a_graph_and_those_of_the_cpu(tokenizer, changes):
    model = random_model(**changes)
    on_cpu = Generator(copy.deepcopy(model), tokenizer, "cpu")
    graphs, eager = (Generator(copy.deepcopy(model), tokenizer, "cuda") for _ in range(2))
    eager.fixed_shapes = False
    texts = [list(g.generate_ids([1, 5, 6], 120, temperature=0.0)) for g in (graphs, eager, on_cpu)]
    assert graphs._made.runner._decoders[1]._graph is not None
    assert texts[0] == texts[1] == texts[2] and len(set(texts[0])) > 3


@torch.inference_mode()
def test_replayed_steps_of_several_rows_give_the_logits_of_the_full_forward_pass():
    model = random_model().cuda()
    tokens = torch.randint(400, (5, 64), generator=torch.Generator().manual_seed(1))
    expected = model(tokens.cuda())[0]
    runner = Runner(model, 5)
    for begin in (20, 7):  # a second text on the same graph
        for slot in range(5):
            runner.begin(slot)
            runner.forward([Piece(slot, 0, tokens[slot, :begin].tolist(), True, 0)])
        for t in range(begin, 64):
            logits = runner.forward([Piece(slot, t, [tokens[slot, t].item()], False, 1) for slot in range(5)])
            torch.testing.assert_close(logits, expected[:, t], atol=1e-4, rtol=1e-4)
    assert runner._decoders[5]._graph is not None


def test_a_graph_reads_the_weights_as_they_are_now(tokenizer):
    model = random_model()
    graphs, eager = (Generator(model, tokenizer, "cuda") for _ in range(2))
    eager.fixed_shapes = False
    texts = []
    for change in (lambda p: None, lambda p: p.mul_(-1.5), lambda p: setattr(p, "data", p.data.clone().mul_(2))):
        with torch.no_grad():
            for p in model.layers.parameters():  # in place, and at other places
                change(p)
        texts.append(list(graphs.generate_ids([1, 5, 6], 40, temperature=0.0)))
        assert texts[-1] == list(eager.generate_ids([1, 5, 6], 40, temperature=0.0))
    assert len({tuple(t) for t in texts}) == 3
