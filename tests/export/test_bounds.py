"""The memory of an export does not grow with the corpus, and a model is copied one tensor at a time."""

import weakref

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foundry.data.tokens.proof_text import LONGEST, SCORED_TOKENS, TEXTS, proof_text
from foundry.export import export_gguf, export_huggingface, gguf_file, gguf_read, import_huggingface
from foundry.export.gguf_parity import prove_gguf
from foundry.export.gguf_read import load_gguf
from foundry.export.quantised import HeldOutText, measure
from foundry.models import MiniLLM


class Alive:
    """Counts the arrays of one kind that live at the same time."""

    def __init__(self):
        self.refs, self.most, self.made = [], 0, 0

    def watch(self, function):
        def watched(*args):
            array = function(*args)
            self.refs = [r for r in self.refs if r() is not None] + [weakref.ref(array)]
            self.made, self.most = self.made + 1, max(self.most, len(self.refs))
            return array

        return watched


@pytest.fixture
def alive(monkeypatch):
    return Alive()


def test_a_gguf_is_written_one_encoded_tensor_at_a_time(model, tokenizer, tmp_path, monkeypatch, alive):
    monkeypatch.setattr(gguf_file, "encoded", alive.watch(gguf_file.encoded))
    export_gguf(model, tokenizer, tmp_path / "m.gguf", "q8_0", "m")
    assert alive.made == 20 and alive.most <= 2  # the one before may still be bound while the next is made


def test_a_gguf_is_proved_and_loaded_one_tensor_at_a_time(model, tokenizer, tmp_path, monkeypatch, alive):
    export_huggingface(model, tokenizer, tmp_path / "hf")
    export_gguf(model, tokenizer, tmp_path / "m.gguf", "q8_0", "m")
    monkeypatch.setattr(gguf_read.Stored, "value", alive.watch(gguf_read.Stored.value))
    prove_gguf(tmp_path / "m.gguf", "q8_0", model.cfg, tokenizer, tmp_path / "hf/model.safetensors")
    load_gguf(tmp_path / "m.gguf", model.cfg)
    assert alive.made == 40 and alive.most <= 2


def test_the_folder_is_written_and_read_without_a_second_copy_of_the_weights(model, tokenizer, tmp_path, monkeypatch):
    """`safetensors.torch.save` and `load` read all bytes of the file into memory."""
    import safetensors.torch

    for name in ("save", "load", "load_file"):
        monkeypatch.setattr(safetensors.torch, name, lambda *args: pytest.fail("all of the file is in memory"))
    export_huggingface(model, tokenizer, tmp_path / "hf")
    back, _ = import_huggingface(tmp_path / "hf")
    assert back.cfg.vocab_size == 400 and not list((tmp_path / "hf").glob(".*"))


def test_the_formats_are_scored_without_the_full_logits(model, tokenizer, tmp_path, monkeypatch):
    export_gguf(model, tokenizer, tmp_path / "m.gguf", "q4_0", "m")
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, 400, (2, 3, 40))
    text = HeldOutText([(tokens, targets, np.array([0, 1, 2]))], np.array([90, 80, 70]))
    in_one_piece = measure({"q4_0": tmp_path / "m.gguf"}, model, text)
    monkeypatch.setattr("foundry.export.quantised.LOGITS", 400 * 7)  # seven positions at a time
    monkeypatch.setattr(MiniLLM, "forward", lambda *args, **options: pytest.fail("full logits"))
    assert measure({"q4_0": tmp_path / "m.gguf"}, model, text) == in_one_piece


def test_the_test_text_of_an_export_is_bounded_whatever_the_size_of_the_split(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/clean/test").mkdir(parents=True)
    long = "the salt water of the ancient city " * 20_000  # 700,000 characters
    texts = [long, *(f"the river {i} and the oven" for i in range(3000)), long]
    table = pa.table({"text": texts, "n_bytes": [len(t) for t in texts]})
    pq.write_table(table, tmp_path / "data/clean/test/part-00000.parquet", row_group_size=100)
    held_out = proof_text(tokenizer, 64)
    taken = held_out.texts
    assert len(taken) == TEXTS and max(map(len, taken)) == LONGEST
    tokens = sum(int((targets != -100).sum()) for _, targets, _ in held_out.batches)
    assert 0 < tokens <= SCORED_TOKENS
    assert len(held_out.n_bytes) > 0 and held_out.n_bytes.max() <= LONGEST
