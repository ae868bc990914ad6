"""What is learnt: the answers and their ends, as transformers masks them; encoders with a mistake are caught."""

import json
import random

import pytest
import torch
from conversations import conversations

from foundry.chat import shards as shards_module
from foundry.chat.example import Example, Turn
from foundry.chat.formats import format_of_record
from foundry.chat.loader import ChatLoader
from foundry.chat.pieces import on_terminal, pieces
from foundry.chat.proof import prove
from foundry.chat.shards import ChatShards, write_chat
from foundry.config import ConfigError, DataError
from foundry.config.corpus import CONTROL_SYMBOLS
from foundry.export.huggingface import tokenizer_config, tokenizer_json
from foundry.tokenizers.chat import CHAT_TEMPLATE, Message, SupervisedIds, encode_chat, encode_supervised
from foundry.utils.targets import IGNORE

PARTS = [
    *("salt and water", "Star.", "  ", "\n", "\n\n", "\t", "assistant", "assistant\n", "user\n", "system", "Answer: "),
    *("<0x0A>", "{{ bos_token }}", "{% generation %}", "[INST]", "|im_end|>", "<|", "0123456789", "a" * 60, "'\"\\"),
    *("é", "e\u0301", "好的。", "🙂", "\u202e", "\ufeff", "\u00a0", "\u2028", "\x7f", "####", "\r\n", "👩\u200d👧"),
]  # fmt: skip


def hostile(rng, markers=False):
    """A text that is not blank, of parts that break encoders; markers of the chat template only if they are wanted."""
    parts = [*PARTS, *CONTROL_SYMBOLS] if markers else PARTS
    while True:
        text = "".join(rng.choices(parts, k=rng.randint(1, 6)))
        if text.strip() and (markers or not any(s in text for s in CONTROL_SYMBOLS)):
            return text


def exchanges(rng, most=3):
    return [(hostile(rng), hostile(rng)) for _ in range(rng.randint(1, most))]


def listed(pairs, role="role", content="content", names=("user", "assistant")):
    return [{role: name, content: text} for pair in pairs for name, text in zip(names, pair, strict=True)]


SHAREGPT = {"role": "from", "content": "value", "names": ("human", "gpt")}
FORMATS = {
    "messages": lambda rng: {"messages": listed(exchanges(rng))},
    "messages with a system turn": lambda rng: {
        "messages": [{"role": "system", "content": hostile(rng)}, *listed(exchanges(rng))]
    },
    "ShareGPT": lambda rng: {"conversations": listed(exchanges(rng), **SHAREGPT)},
    "ShareGPT with a system turn": lambda rng: {
        "conversations": listed(exchanges(rng), **SHAREGPT),
        "system": hostile(rng),
    },
    "Alpaca": lambda rng: {"instruction": hostile(rng), "input": hostile(rng), "output": hostile(rng)},
    "Alpaca with a history": lambda rng: {
        "instruction": hostile(rng),
        "output": hostile(rng),
        "history": [list(pair) for pair in exchanges(rng)],
    },
    "prompt and completion": lambda rng: {"prompt": hostile(rng), "completion": hostile(rng)},
    "question and answer": lambda rng: {"question": hostile(rng), "answer": hostile(rng) + "\n#### 7"},
}


@pytest.fixture(scope="module")
def theirs(tokenizer, tmp_path_factory):
    """The tokenizer as transformers loads it from an export."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("hf")
    for name, content in (
        ("tokenizer.json", tokenizer_json(tokenizer)),
        ("tokenizer_config.json", tokenizer_config(tokenizer, 4096)),
    ):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


def their_ids_and_mask(theirs, turns, **options):
    messages = [{"role": t.role, "content": t.content} for t in turns]
    found = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True, **options)
    return found["input_ids"], [bool(m) for m in found["assistant_masks"]]


@pytest.mark.parametrize("name", FORMATS)
def test_ids_and_masks_are_those_of_transformers_for_every_format(name, tokenizer, theirs):
    rng = random.Random(name)
    for _ in range(200):
        record = FORMATS[name](rng)
        turns = format_of_record(record).convert(record).turns
        ids, mask = encode_supervised(tokenizer, turns)
        assert (ids, mask) == their_ids_and_mask(theirs, turns), record
        assert any(mask) and not all(mask)


def test_mistake_03_a_template_without_marks_teaches_nothing_and_is_noticed(tokenizer, theirs):
    """What transformers gives for a template without `{% generation %}`, as most are: the comparison above fails."""
    turns = conversations(1)[0].messages
    bare = CHAT_TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    ids, mask = their_ids_and_mask(theirs, turns, chat_template=bare)
    assert ids == encode_supervised(tokenizer, turns).ids and not any(mask)


def test_mistake_06_an_answer_begins_with_the_ids_that_it_was_trained_after(tokenizer):
    """The ids up to an answer are those that inference reads, whatever the texts are."""
    rng = random.Random(6)
    for _ in range(300):
        pairs = [(hostile(rng, True), hostile(rng, True)) for _ in range(rng.randint(1, 3))]
        turns = [t for q, a in pairs for t in (Turn("user", q), Turn("assistant", a))]
        ids, mask = encode_supervised(tokenizer, turns)
        starts = [i for i in range(1, len(mask)) if mask[i] and not mask[i - 1]]
        assert len(starts) == len(pairs)
        for n, start in enumerate(starts):
            asked = [Message(t.role, t.content) for t in turns[: 2 * n + 1]]
            assert encode_chat(tokenizer, asked) == ids[:start]


def test_mistake_06_a_tokenizer_that_merges_across_the_border_is_refused(tokenizer, monkeypatch):
    """As one with the user symbol "\\nx" would: planted in the encoder."""
    own = type(tokenizer).encode
    monkeypatch.setattr(type(tokenizer), "encode", lambda self, text: own(self, text.replace("\nx", "y")))
    encode_supervised(tokenizer, [Turn("user", "xa"), Turn("assistant", "a")])  # of the question nothing is learnt
    with pytest.raises(ConfigError, match="merges the line end before the answer"):
        encode_supervised(tokenizer, [Turn("user", "a"), Turn("assistant", "xa")])


def test_mistake_08_symbols_that_somebody_typed_stay_text(tokenizer):
    rng = random.Random(8)
    found = 0
    for _ in range(300):
        turns = [Turn("user", hostile(rng, True)), Turn("assistant", hostile(rng, True))]
        ids, mask = encode_supervised(tokenizer, turns)
        symbols = [tokenizer.piece(i) for i in ids if tokenizer.is_control(i)]
        assert symbols == ["<s>", "<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"]
        found += any(s in t.content for t in turns for s in CONTROL_SYMBOLS)
        assert tokenizer.decode(i for i, m in zip(ids, mask, strict=True) if m) == turns[1].content
    assert found > 100


def wrong(encode):
    """An encoder with a mistake, from (ids, mask, tokenizer) → (ids, mask)."""

    def encoder(tokenizer, turns):
        ids, mask = encode_supervised(tokenizer, turns)
        return SupervisedIds(*encode(list(ids), list(mask), tokenizer))

    return encoder


def without_ends(ids, mask, tok):
    """Mistake 1: what equals the padding symbol is masked."""
    return ids, [m and i != tok.id_of("<|im_end|>") for i, m in zip(ids, mask, strict=True)]


def ends_of_the_next_turn(ids, mask, tok):
    """Mistake 2: the end symbol belongs to the turn that follows."""
    ends = [i == tok.id_of("<|im_end|>") for i in ids]
    return ids, [m != e for m, e in zip(mask, ends, strict=True)]


def roles_too(ids, mask, tok):
    """Mistake 4: the header is learnt, too."""
    n = len(tok.encode("assistant\n")) + 1
    return ids, [any(mask[i : i + n + 1]) for i in range(len(mask))]


def everything(ids, mask, tok):
    """Mistake 4: the question is learnt, too."""
    return ids, [i > 0 for i in range(len(ids))]


def nothing(ids, mask, tok):
    """Mistake 3: the mask is all zero."""
    return ids, [False] * len(ids)


def begun_twice(ids, mask, tok):
    """Mistake 5: the template and the tokenizer both write the begin symbol."""
    return [tok.bos_id, *ids], [False, *mask]


def cut_off(ids, mask, tok):
    """Mistake 9: the limit cuts an answer, and its end symbol with it."""
    n = len(ids) - 3
    return ids[:n], mask[:n]


PLANTED = {
    "01": (without_ends, "an end of a turn is not learnt"),
    "02": (ends_of_the_next_turn, "an end of a turn"),
    "03": (nothing, "is in no shard"),
    "04_roles": (roles_too, "is learnt"),
    "04_questions": (everything, "is learnt"),
    "05": (begun_twice, "2 begin symbols"),
    "09": (cut_off, "1 ends of turns for 2 turns"),
}


@pytest.mark.parametrize("number", PLANTED)
def test_mistakes_01_to_05_and_09_do_not_pass_the_proof(number, tokenizer, tmp_path, monkeypatch):
    examples = [e for e in conversations(30) if len(e.messages) == 2]
    write_chat(tmp_path / "right", {"train": examples}, tokenizer, context=128, verifier_version=1)
    assert prove(ChatShards(tmp_path / "right", "train"), examples, tokenizer) == len(examples) > 3
    plant, message = PLANTED[number]
    monkeypatch.setattr(shards_module, "encode_supervised", wrong(plant))
    write_chat(tmp_path / "wrong", {"train": examples}, tokenizer, context=128, verifier_version=1)
    with pytest.raises(DataError, match=message):
        prove(ChatShards(tmp_path / "wrong", "train"), examples, tokenizer)


def test_mistake_01_the_ends_of_a_short_and_of_a_long_answer_are_targets(tokenizer, tmp_path):
    short = Example((Turn("user", "star"), Turn("assistant", "king")), "talk", "made", None, 0, "train")
    long = Example((Turn("user", "star"), Turn("assistant", "king " * 40)), "talk", "made", None, 0, "train")
    write_chat(tmp_path / "chat", {"train": [short, long]}, tokenizer, context=200, verifier_version=1)
    n = ChatShards(tmp_path / "chat", "train").places(0).max()
    loader = ChatLoader(tmp_path / "chat", 2, int(n))  # the long one fills a row, the other row is mostly padding
    _, targets, segments = loader.tensors(0, True)
    assert (segments < 0).any() and not (segments < 0).all(dim=1).any()
    assert (targets == tokenizer.id_of("<|im_end|>")).sum(dim=1).tolist() == [1, 1]
    assert (targets[segments < 0] == IGNORE).all()
    assert torch.equal((targets >= 0).sum(dim=1).sort().values, torch.tensor(sorted(_learnt(tokenizer, short, long))))


def _learnt(tokenizer, *examples):
    return [sum(encode_supervised(tokenizer, e.messages).mask) for e in examples]


def test_mistake_09_an_example_of_one_token_too_many_is_dropped_and_counted(tokenizer, tmp_path):
    examples = [e for e in conversations(30) if len(e.messages) == 2]
    write_chat(tmp_path / "chat", {"train": examples}, tokenizer, context=128, verifier_version=1)
    places = sorted(ChatShards(tmp_path / "chat", "train").places(0).tolist())
    assert places[-2] < places[-1]
    assert ChatLoader(tmp_path / "chat", 1, places[-1]).too_long == 0
    loader = ChatLoader(tmp_path / "chat", 1, places[-1] - 1)
    assert loader.too_long == 1
    rows = torch.cat([loader.tensors(n, True)[1] for n in range(loader.rows_per_epoch)])
    assert int((rows == tokenizer.id_of("<|im_end|>")).sum()) == len(examples) - 1  # every end that is left, once


def test_the_pieces_of_a_conversation_are_its_text_with_the_answers_marked(tokenizer):
    rng = random.Random(3)
    for _ in range(50):
        turns = [Turn("system", hostile(rng)), Turn("user", hostile(rng)), Turn("assistant", hostile(rng, True))]
        found = list(pieces(tokenizer, *encode_supervised(tokenizer, turns)))
        rendered = "".join(f"<|im_start|>{t.role}\n{t.content}<|im_end|>\n" for t in turns)
        assert "".join(p.text for p in found) == "<s>" + rendered
        assert "".join(p.text for p in found if p.learnt) == turns[2].content + "<|im_end|>"
        shown = on_terminal(iter(found), colours=False)
        assert f"⟦{turns[2].content}<|im_end|>⟧" in shown
    assert "\x1b[32m" in on_terminal(iter(found), colours=True)
