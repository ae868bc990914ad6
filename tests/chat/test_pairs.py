"""Pairs of answers: their division by turns, their file, their batches."""

import numpy as np
import pytest
import torch
from pair_runs import make_pairs

from foundry.chat.example import Turn
from foundry.chat.pairs import PairLoader, encode_pairs, encode_side, read_pairs, sides_of, write_pairs
from foundry.config import ConfigError, DataError
from foundry.tokenizers.chat import END, Message, encode_chat
from foundry.utils.targets import IGNORE


@pytest.fixture(scope="module")
def pairs(tokenizer):
    return encode_pairs(tokenizer, make_pairs(), 48)[0]


def test_mistake_21_a_pair_is_divided_by_turns_and_the_prompt_is_never_a_target(tokenizer):
    """The sides begin with the same characters, and with an earlier answer, which belongs to the prompt."""
    prompt = (Turn("user", "a"), Turn("assistant", "first"), Turn("user", "b"))
    sides = [encode_side(tokenizer, prompt, (Turn("assistant", text),)) for text in ("the same end", "the same")]
    asked = encode_chat(tokenizer, [Message(t.role, t.content) for t in prompt])
    for side, text in zip(sides, ("the same end", "the same"), strict=True):
        assert side.tokens[: len(asked)].tolist() == asked
        assert not side.learnt[: len(asked)].any() and side.learnt[len(asked) :].all()
        answer = side.tokens[side.learnt].tolist()
        assert answer[-1] == tokenizer.id_of(END) and tokenizer.decode(answer[:-1]) == text


def test_mistake_21_a_side_without_an_answer_is_refused(tokenizer):
    with pytest.raises(DataError, match="has no answer"):
        encode_side(tokenizer, (Turn("user", "a"),), (Turn("assistant", "b", False),))


def test_the_end_symbol_is_the_last_target_and_the_token_after_it(pairs, tokenizer):
    tokens, targets = sides_of(pairs[:3], width=40)
    assert tokens.shape == targets.shape == (3, 2, 40)
    for row, pair in enumerate(pairs[:3]):
        for i, side in enumerate((pair.chosen, pair.rejected)):
            at = (targets[row, i] != IGNORE).nonzero().squeeze(1)
            assert len(at) == side.length and at[-1] == len(side.tokens) - 2
            assert targets[row, i, at].tolist() == tokens[row, i, at + 1].tolist() == side.tokens[side.learnt].tolist()
            assert tokens[row, i, at[-1] + 1] == tokenizer.id_of(END)


def test_pairs_are_read_as_they_were_written_and_a_changed_file_is_refused(tmp_path):
    pairs = make_pairs()
    write_pairs(tmp_path, pairs, {"weights_sha256": "w"})
    assert read_pairs(tmp_path, "train") + read_pairs(tmp_path, "val") == [
        *(p for p in pairs if p.split == "train"),
        *(p for p in pairs if p.split == "val"),
    ]
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    write_pairs(tmp_path, pairs, {"weights_sha256": "w"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == first
    (tmp_path / "val.parquet").write_bytes(first["train.parquet"])
    with pytest.raises(DataError, match="is not what"):
        read_pairs(tmp_path, "val")


def test_an_epoch_reads_each_pair_once_and_ranks_share_a_batch(pairs, tokenizer):
    reference = np.arange(2.0 * len(pairs)).reshape(-1, 2)
    whole = PairLoader(tokenizer, pairs, reference, 4, 5)
    assert sorted(n for b in range(len(pairs) // 4) for n in whole.numbers(b)) == list(range(len(pairs)))
    ranks = [PairLoader(tokenizer, pairs, reference, 4, 5, rank=r, world_size=2) for r in (0, 1)]
    for batch in (0, 3, 50):
        parts = [r.tensors(batch, True) for r in ranks]
        for every, *some in zip(whole.tensors(batch, True), *parts, strict=True):
            assert torch.equal(every, torch.cat(some))
        assert whole.tensors(batch, True)[2].tolist() == reference[whole.numbers(batch)].tolist()
    assert whole.numbers(0).tolist() != whole.numbers(len(pairs) // 4).tolist()


@pytest.mark.parametrize(("size", "world", "text"), [(25, 1, "there are 24 training pairs"), (3, 2, "multiple of")])
def test_a_batch_that_cannot_be_filled_or_shared_is_refused(pairs, tokenizer, size, world, text):
    with pytest.raises(ConfigError, match=text):
        PairLoader(tokenizer, pairs, None, size, world_size=world)


def test_a_pair_whose_longer_side_does_not_fit_is_counted(tokenizer):
    every = make_pairs()
    widths = sorted(p.width for p in encode_pairs(tokenizer, every, 48)[0])
    fit, left = encode_pairs(tokenizer, every, widths[5])
    assert left == sum(w > widths[5] for w in widths) > 0 and len(fit) + left == len(every)
