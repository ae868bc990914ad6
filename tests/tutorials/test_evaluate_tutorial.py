"""tutorials/evaluate.py computes the scores and intervals of foundry.evaluation."""

import json
import subprocess
import sys

import numpy as np
import pytest
from tiny_chat import tiny_model
from tutorial_files import TUTORIALS, tutorial, write_folder

from foundry.data.tokens.shards import read_clean
from foundry.evaluation.bits_per_byte import bits_per_byte_interval, score

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def page():
    return tutorial("evaluate")


@pytest.fixture(scope="module")
def texts(clean):
    """Documents that are shorter than the context, that just fill it, that are much longer, and not only ASCII."""
    found = [row["text"] for rows in read_clean(clean / "test", ["text"]) for row in rows]
    return [*found, found[0][:40], "é中🙂 " * 60, " ".join(found[:3])]


@pytest.mark.parametrize("tied", [True, False])
def test_nats_bytes_and_the_interval_are_those_of_the_package(page, tokenizer, texts, tmp_path, tied):
    """Nats to 1e-6 of their value: the package scores several windows at once. The draws are the same ones."""
    model = tiny_model(1, zero_init=False, tie_embeddings=tied, rope_theta=500.0)
    ours = page.score(*page.load(write_folder(tmp_path, model, tokenizer)), texts)
    encoded = [np.array(tokenizer.encode(t, bos=True, eos=True)) for t in texts]
    theirs = score(model, encoded, model.cfg.max_seq_len)
    sizes = {len(ids) > model.cfg.max_seq_len + 1 for ids in encoded}
    assert sizes == {True, False}
    assert np.allclose(ours[0], theirs.nats, rtol=1e-6, atol=0) and (ours[2] == theirs.tokens).all()
    assert ours[1].tolist() == [len(t.encode()) for t in texts]
    expected = bits_per_byte_interval(theirs.nats, ours[1], 300, 7)
    found = page.bits_per_byte(ours[0], ours[1], 300, 7)
    assert found == pytest.approx((expected.value, expected.low, expected.high), abs=6e-5)  # the package rounds to 1e-4
    assert found[1] < found[0] < found[2]


def test_the_paired_interval_is_narrower_and_finds_which_model_is_better(page, tokenizer, texts, tmp_path):
    folder = write_folder(tmp_path, tiny_model(1, zero_init=False), tokenizer)
    nats, n_bytes, tokens = page.score(*page.load(folder), texts)
    worse = nats + 0.02 * tokens
    value, low, high = page.difference(nats, worse, n_bytes, 200)
    assert value < 0 and high < 0
    alone = page.bits_per_byte(nats, n_bytes, 200)
    assert high - low < 0.2 * (alone[2] - alone[1])
    assert page.difference(nats, nats, n_bytes, 200) == (0.0, 0.0, 0.0)


def test_the_command_prints_the_value_and_refuses_another_models_documents(page, tokenizer, texts, tmp_path):
    folders = [write_folder(tmp_path / str(i), tiny_model(i, zero_init=False), tokenizer) for i in range(2)]
    for folder in folders:
        (folder / "held_out.json").write_text(json.dumps({"val": [], "test": texts[:4]}))
    command = [sys.executable, TUTORIALS / "evaluate.py", "--model", folders[0], "--against", folders[1]]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    nats, n_bytes, _ = page.score(*page.load(folders[0]), texts[:4])
    assert f"model      {page.bits_per_byte(nats, n_bytes)[0]:.4f} bits per byte" in shown and "difference" in shown
    (folders[1] / "held_out.json").write_text(json.dumps({"val": [], "test": texts[1:5]}))
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1 and "other test documents" in refused.stderr
