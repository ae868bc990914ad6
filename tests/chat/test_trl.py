"""TRL continues on an export: it gets Foundry's ids and mask, and what it saves can be read here again."""

import json
import shutil

import pytest
import torch

from foundry.chat.example import Turn
from foundry.config import ModelConfig
from foundry.export.huggingface import export_huggingface, import_huggingface
from foundry.inference import Generator
from foundry.models import MiniLLM
from foundry.tokenizers.chat import Message, encode_supervised

TALKS = [
    [("user", "Where is the salt?"), ("assistant", "in the river")],
    [
        ("system", "Be short."),
        ("user", "Is it ancient?"),
        ("assistant", "the king is"),
        ("user", "And\nthe water?"),
        ("assistant", "a small cup of water"),
    ],
]


@pytest.fixture(scope="module")
def hf(tokenizer, tmp_path_factory):
    torch.manual_seed(0)
    shape = {"dim": 32, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64, "max_seq_len": 128}
    folder = tmp_path_factory.mktemp("export") / "hf"
    export_huggingface(MiniLLM(ModelConfig(vocab_size=400, **shape)).eval(), tokenizer, folder)
    return folder


def test_trl_trains_on_the_same_tokens_and_its_model_answers_here(hf, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = [{"messages": [{"role": r, "content": c} for r, c in talk]} for talk in TALKS]
    settings = SFTConfig(
        str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=0.01,
        assistant_only_loss=True,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        seed=0,
    )
    trainer = SFTTrainer(
        str(hf),
        settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(hf),
    )
    (batch,) = trainer.get_train_dataloader()
    seen = set()
    for ids, labels, there in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        n = int(there.sum())
        seen.add(tuple((int(i), int(label) != -100) for i, label in zip(ids[:n], labels[:n], strict=True)))
        assert (labels[n:] == -100).all()
    ours = [encode_supervised(tokenizer, [Turn(*turn) for turn in talk]) for talk in TALKS]
    assert seen == {tuple((i, bool(m)) for i, m in zip(ids, mask, strict=True)) for ids, mask in ours}

    before, _ = import_huggingface(hf)
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    shutil.copy(hf / "tokenizer.model", tmp_path / "out")
    model, same = import_huggingface(tmp_path / "out")
    assert same.sha256 == tokenizer.sha256
    assert not torch.equal(model.tok_embeddings.weight, before.tok_embeddings.weight), "it was trained"
    text = Generator(model, same, "cpu").generate_text([Message("user", "Where?")], max_new_tokens=5, temperature=0)
    assert isinstance(text, str) and json.loads((tmp_path / "out/config.json").read_text())["model_type"] == "llama"
