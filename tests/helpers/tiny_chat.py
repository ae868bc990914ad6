"""Conversations of three tiny tasks, and a tiny model that learns two of them in some steps of a loop of its own."""

import logging
import random
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from foundry.chat.example import Example, Turn
from foundry.config import ModelConfig
from foundry.config.chat import ChatEvaluate
from foundry.data.tokens.shards import TokenizedDocument
from foundry.export.lineage import FilesLink, HashedLink, Lineage, ModelLink, ShardsLink
from foundry.models import MiniLLM
from foundry.tokenizers.chat import Message, encode_chat

LOG = logging.getLogger("test")
PARAMS = ChatEvaluate(bootstrap=200, sampled_prompts=3, samples=4, prompts_per_task=60)
SHAPE = {"vocab_size": 400, "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 96, "max_seq_len": 96}
WORDS = ("salt", "water", "oven", "king", "music", "star", "cup", "history")
KINDS = ("a food", "a place", "a person", "a thing")
WORDINGS = {"echo": ("Say {}", "First of {}!"), "kind": ("{} is", "Kind: {}"), "tell": ("Tell me of {}", "More of {}")}


def example(task, word, wording, split, doc_id=None):
    first, last = word.split()[0], word.split()[-1]
    kind = KINDS[len(last) % 4]
    answer, verifier, arguments = {
        "echo": (first, "exact", {"expected": first}),
        "kind": (kind, "one_of", {"expected": [kind]}),
        "tell": (f"The {last} is {kind}.", None, {}),
    }[task]
    turns = (Turn("user", WORDINGS[task][wording].format(word)), Turn("assistant", answer))
    return Example(turns, task, "tiny", doc_id, wording, split, verifier, arguments, "CC0-1.0")


def examples(split, words=WORDS, doc_ids=True):
    """The second wording of each task occurs in the test split only."""
    wordings = (0, 1) if split == "test" else (0,)
    return [
        example(task, word, wording, split, f"{split}-{word}" if doc_ids else None)
        for task in WORDINGS
        for wording in wordings
        for word in words
    ]


def held_out():
    """(training examples, test examples): made-up words of the test split are pairs of known ones."""
    rng = random.Random(0)
    pairs = [f"{a} {b}" for a in WORDS for b in WORDS if a != b]
    rng.shuffle(pairs)
    return examples("train", pairs[20:]), examples("test", pairs[:20])


def tiny_model(seed=0, **changes):
    torch.manual_seed(seed)
    return MiniLLM(ModelConfig(**SHAPE | changes)).eval()


def train_to_answer(model, tokenizer, data, steps=220, seed=0):
    """AdamW on the answers and their end symbols; in place."""
    rows = []
    for e in data:
        prompt = encode_chat(tokenizer, [Message(t.role, t.content) for t in e.prompt])
        answer = [*tokenizer.encode(e.answer), tokenizer.id_of("<|im_end|>")]
        rows.append((prompt + answer, [-100] * (len(prompt) - 1) + answer))
    width = max(len(ids) for ids, _ in rows)
    x = torch.tensor([ids[:-1] + [0] * (width - len(ids)) for ids, _ in rows])
    y = torch.tensor([targets + [-100] * (width - 1 - len(targets)) for _, targets in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(steps):
        at = torch.randint(len(rows), (16,), generator=generator)
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1.0, (steps - step) / (steps / 2))
        loss = F.cross_entropy(model(x[at])[0].flatten(0, 1), y[at].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def plain_documents(tokenizer):
    texts = ["The salt water of the river.", "Boil 3 onions.", "The history of the mountain and the city."] * 4
    return [TokenizedDocument(np.array(tokenizer.encode(t, bos=True, eos=True)), len(t), "one") for t in texts]


@dataclass(frozen=True)
class Lookup:
    """What `foundry.chat.baselines` says about one method and task."""

    task: str
    method: str
    prompts: tuple[int, ...]
    scores: tuple[float, ...]


def always(answer, task, prompts):
    """A lookup that always gives one answer."""
    places = tuple(i for i, p in enumerate(prompts) if p.example.task == task)
    return Lookup(task, "constant", places, tuple(float(prompts[i].reference == answer) for i in places))


def base_lineage(base_sha256):
    nothing = FilesLink(files={})
    hashed = HashedLink(sha256="5" * 64, files={})
    return Lineage(
        model=ModelLink(weights_sha256=base_sha256, fingerprint="b" * 16, steps=10, tokens=100, files={}),
        evaluation=nothing,
        reports=nothing,
        shards=ShardsLink(index_sha256="6" * 64, files={}),
        tokenizer=hashed,
        clean=hashed,
        raw=[],
        raw_manifest_sha256="7" * 64,
        raw_sha256="8" * 64,
        parameters={"seed": 1},
    )
