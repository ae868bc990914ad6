"""The loader of conversations: complete, masked, packed and mixed exactly, the same for every number of ranks."""

from collections import Counter

import numpy as np
import pytest
import torch
from conversations import conversations, write_conversations

from foundry.chat.example import Example, Turn
from foundry.chat.examples import read_examples
from foundry.chat.loader import ChatLoader
from foundry.chat.shards import ChatShards, write_chat
from foundry.config import ConfigError, DataError
from foundry.models import MiniLLM
from foundry.tokenizers.chat import encode_supervised
from foundry.utils.targets import IGNORE

SEQ = 128


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    return write_conversations(tmp_path_factory.mktemp("chat") / "chat", tokenizer)


@pytest.fixture(scope="module")
def model(tokenizer):
    from foundry.config import ModelConfig

    torch.manual_seed(0)
    cfg = ModelConfig(
        vocab_size=tokenizer.vocab_size, dim=32, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=SEQ
    )
    model = MiniLLM(cfg)
    for p in model.parameters():  # at the usual initialisation the output matrices are zero, and no token sees another
        torch.nn.init.normal_(p, std=0.2)
    return model


def epoch_rows(loader):
    """(tokens, targets, segments) of all rows of the first epoch of a loader of one row per step."""
    return [torch.cat(x) for x in zip(*(loader.tensors(n, True) for n in range(loader.rows_per_epoch)), strict=True)]


def test_files_are_those_that_were_written_and_damage_is_refused(folder, tokenizer, tmp_path):
    train = conversations(60)
    assert read_examples(folder, "train") == train
    shards = ChatShards(folder, "train", tokenizer_sha256=tokenizer.sha256)
    assert len(shards) == 60
    for encoded, example in zip(shards, train, strict=True):
        ids, mask = encode_supervised(tokenizer, example.messages)
        assert encoded.tokens.tolist() == ids and encoded.learnt.tolist() == mask
        assert encoded.n_bytes == sum(len(t.content) for t in example.messages if t.role == "assistant")
    other = write_conversations(tmp_path / "again", tokenizer)
    for path in (p for p in folder.rglob("*") if p.is_file()):
        assert path.read_bytes() == (other / path.relative_to(folder)).read_bytes()
    for name in ("train/shard-00000.arrow", "train/examples.parquet"):
        data = bytearray((other / name).read_bytes())
        data[len(data) // 2] ^= 1
        (other / name).write_bytes(data)
    with pytest.raises(DataError, match="was changed after it was written"):
        ChatShards(other, "train")
    with pytest.raises(DataError, match="was changed after it was written"):
        read_examples(other, "train")
    with pytest.raises(DataError, match="with the tokenizer"):
        ChatShards(folder, "train", tokenizer_sha256="0" * 64)


def test_an_epoch_reads_every_conversation_once_and_learns_exactly_its_mask(folder, tokenizer):
    loader = ChatLoader(folder, 1, SEQ)
    tokens, targets, segments = epoch_rows(loader)
    found = Counter()
    for x, y, s in zip(tokens, targets, segments, strict=True):
        for part in range(int(s.max()) + 1):
            here = s == part
            found[tuple(x[here].tolist()), tuple(y[here].tolist())] += 1
        assert (y[s < 0] == IGNORE).all() and (y >= 0).any()
    expected = Counter()
    for example in conversations(60):
        ids, mask = encode_supervised(tokenizer, example.messages)
        n = len(mask) - 1 - mask[::-1].index(True)
        expected[tuple(ids[:n]), tuple(i if m else IGNORE for i, m in zip(ids[1 : n + 1], mask[1:], strict=False))] += 1
    assert found == expected
    assert int((targets >= 0).sum()) == loader.learnt_per_epoch
    assert loader.padding == pytest.approx(float((segments < 0).float().mean()))
    again = epoch_rows(ChatLoader(folder, 1, SEQ))
    assert all(torch.equal(a, b) for a, b in zip(again, (tokens, targets, segments), strict=True))
    assert not torch.equal(epoch_rows(ChatLoader(folder, 1, SEQ, seed=2))[0], tokens)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_ranks_read_the_global_batch(folder, shards, share):
    options = {"pretraining": shards, "pretraining_share": share}
    whole = ChatLoader(folder, 8, SEQ, **options)
    ranks = [ChatLoader(folder, 8, SEQ, rank=r, world_size=4, **options) for r in range(4)]
    for step in (0, 7, 3):
        parts = [torch.cat(x) for x in zip(*(r.tensors(step, True) for r in ranks), strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(whole.tensors(step, True), parts, strict=True))
    assert whole.tensors(0, False)[2] is None


def test_the_share_of_pre_training_rows_is_exact_and_takes_no_conversation_away(folder, shards):
    loader = ChatLoader(folder, 8, SEQ, pretraining=shards, pretraining_share=0.1)
    rows = [row for step in range(50) for row in loader.contents(step)]
    assert sum(bool(r.text) for r in rows) == 40 and not any(r.text and r.examples for r in rows)
    for i in range(0, 400, 10):
        assert sum(bool(r.text) for r in rows[i : i + 10]) == 1
    alone = ChatLoader(folder, 1, SEQ)
    chat = [[e.example for e in r.examples] for r in rows if r.examples]
    assert chat == [[e.example for e in next(alone.contents(n)).examples] for n in range(360)]
    places = [r.text[0].doc_id for r in rows if r.text]
    assert len(set(places)) > 10  # it is not the same text again
    assert loader.identity["pretraining_share"] == "1/10" and "pretraining_index_sha256" in loader.identity
    text = next(i for i, r in enumerate(rows) if r.text)
    targets = loader.tensors(text // 8, True)[1][text % 8]
    assert (targets >= 0).all()


def test_weights_say_how_often_an_epoch_reads_a_task(tokenizer, tmp_path):
    folder = write_conversations(tmp_path / "chat", tokenizer, train=400, weights={"list": 3.0})
    loader = ChatLoader(folder, 1, SEQ)
    seen = Counter(e.example for n in range(loader.rows_per_epoch) for e in next(loader.contents(n)).examples)
    assert {seen[i] for i in range(0, 400, 2)} == {1} and {seen[i] for i in range(1, 400, 2)} == {3}
    with pytest.raises(DataError, match=r"chat\.weights names none"):
        write_conversations(tmp_path / "other", tokenizer, weights={"none": 2.0})


def test_what_cannot_be_trained_on_is_refused(folder, shards, tokenizer, tmp_path):
    with pytest.raises(DataError, match="no example that fits a row of 8 tokens"):
        ChatLoader(folder, 1, 8)
    with pytest.raises(ConfigError, match="pretraining_share"):
        ChatLoader(folder, 1, SEQ, pretraining_share=0.1)
    with pytest.raises(ConfigError, match="world_size"):
        ChatLoader(folder, 3, SEQ, world_size=2)
    with pytest.raises(ConfigError, match="step"):
        ChatLoader(folder, 1, SEQ).tensors(-1, True)
    with pytest.raises(DataError, match=r"input tokens, more than the context"):
        write_conversations(tmp_path / "long", tokenizer, context=8)
    prompt = Example((Turn("user", "star"),), "talk", "made", None, 0, "train")
    write_chat(tmp_path / "prompts", {"train": [prompt]}, tokenizer, context=64, verifier_version=1)
    assert read_examples(tmp_path / "prompts", "train") == [prompt]
    with pytest.raises(DataError, match="no example that fits"):
        ChatLoader(tmp_path / "prompts", 1, SEQ)


def test_mistake_10_long_examples_leave_no_row_of_padding(tokenizer, tmp_path):
    """40 % of the examples are longer than a row: they are left out and counted, and an epoch ends as without them."""
    long = Example((Turn("user", "star " * 60), Turn("assistant", "king " * 60)), "talk", "made", None, 0, "train")
    short = conversations(60)
    folder = write_conversations(tmp_path / "chat", tokenizer, context=1000, train=[*[long] * 40, *short])
    loader = ChatLoader(folder, 1, SEQ)
    assert loader.too_long == 40
    tokens, targets, _ = epoch_rows(loader)
    assert (targets >= 0).any(dim=1).all()
    assert (
        loader.rows_per_epoch == ChatLoader(write_conversations(tmp_path / "short", tokenizer), 1, SEQ).rows_per_epoch
    )
    seen = Counter(e.example for n in range(loader.rows_per_epoch) for e in next(loader.contents(n)).examples)
    assert seen == Counter(range(40, 100)) and len(tokens) < 60  # and they are packed


def nats_of_examples(model, loader, step, documents=True):
    """{example: nats of its learnt tokens} of a step."""
    x, y, segments = loader.tensors(step, documents)
    shown = loader.tensors(step, True)[2]
    logits = model(x, segments=segments)[0]
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=IGNORE, reduction="none")
    nats = nats.view_as(y)
    rows = [row.examples for row in loader.contents(step)]
    return {e.example: nats[r][shown[r] == i] for r, row in enumerate(rows) for i, e in enumerate(row)}


def test_mistake_11_a_packed_conversation_has_the_loss_and_the_gradient_that_it_has_alone(folder, model, tokenizer):
    loader = ChatLoader(folder, 4, SEQ)
    packed = nats_of_examples(model, loader, 0)
    assert len(packed) > 5
    weight = model.tok_embeddings.weight
    together = torch.autograd.grad(sum(n.sum() for n in packed.values()), weight)[0]
    apart = torch.zeros_like(weight)
    for number, nats in packed.items():
        ids, mask = encode_supervised(tokenizer, conversations(60)[number].messages)
        n = len(nats)
        y = torch.tensor([[i if m else IGNORE for i, m in zip(ids[1:], mask[1:], strict=True)][:n]])
        logits = model(torch.tensor([ids[:n]]))[0]
        alone = torch.nn.functional.cross_entropy(logits[0], y[0], ignore_index=IGNORE, reduction="none")
        torch.testing.assert_close(nats, alone, rtol=1e-5, atol=1e-5)
        apart += torch.autograd.grad(alone.sum(), weight)[0]
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    # Without the document mask they see each other, which this test would notice.
    planted = nats_of_examples(model, loader, 0, documents=False)
    assert any(not torch.allclose(planted[k], packed[k], rtol=1e-3, atol=1e-3) for k in packed)


@pytest.mark.parametrize("documents", [True, False])
def test_mistake_12_another_conversation_changes_no_bit_of_the_loss(folder, model, documents):
    loader = ChatLoader(folder, 1, SEQ)
    step = next(n for n in range(loader.rows_per_epoch) if len(next(loader.contents(n)).examples) > 2)
    x, _, segments = loader.tensors(step, True)
    first = segments[0] == 0
    changed = x.clone()
    changed[0, first] = (x[0, first] + 7) % 300
    given = segments if documents else None
    with torch.no_grad():
        before, after = model(x, segments=given)[0], model(changed, segments=given)[0]
    others = (segments[0] > 0).numpy()
    assert np.array_equal(before[0][others], after[0][others]) == documents
